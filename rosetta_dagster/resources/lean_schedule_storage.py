"""Dagster's storage of sensors, schedules and ticks, asking no more than it has to.

What dagster-postgres writes for a tick is three rows. Around it, it reads the names of all tables a dozen times, to see
whether two migrations of years ago were made, and deletes old ticks three times. With a tick each second on average, as
Rosetta's sensors make them, that was the largest part of what an idle control plane cost.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from dagster import DagsterInvariantViolationError
from dagster._core.scheduler.instigation import InstigatorState, TickStatus
from dagster._core.storage.schedules.schema import JobTable
from dagster._serdes import serialize_value
from dagster._time import get_current_datetime
from dagster_postgres import PostgresScheduleStorage
from sqlalchemy.engine import Connection

PURGE_SECONDS = 300.0
"""Old ticks are removed so often for each sensor; kept for days, they may stay five minutes longer."""


class LeanScheduleStorage(PostgresScheduleStorage):
    """PostgresScheduleStorage that remembers which tables and migrations are there, and purges now and then.

    A table or migration that is missing is looked for again each time, so `dagster instance migrate` works beside it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Before the base class: it asks while it is being made.
        self._has_instigators = False
        self._built: set[str] = set()
        self._purged: dict[tuple[str, ...], float] = {}
        super().__init__(*args, **kwargs)

    def has_instigators_table(self) -> bool:
        """Tell whether the table of sensors' and schedules' states is there; forever once it was seen."""
        return self._has_instigators or super().has_instigators_table()

    def _has_instigators_table(self, conn: Connection) -> bool:
        self._has_instigators = self._has_instigators or super()._has_instigators_table(conn)
        return self._has_instigators

    def has_built_index(self, migration_name: str) -> bool:
        """Tell whether a migration of data was made; forever once it was."""
        if migration_name not in self._built and super().has_built_index(migration_name):
            self._built.add(migration_name)
        return migration_name in self._built

    def update_instigator_state(self, state: InstigatorState) -> InstigatorState:
        """Store the state of a sensor or schedule that is known.

        Raises:
            DagsterInvariantViolationError: it is not known.
        """
        values = {
            "status": state.status.value,
            "job_body": serialize_value(state),
            "update_timestamp": get_current_datetime(),
            "selector_id": state.selector_id,
        }
        if not self.has_instigators_table():
            return super().update_instigator_state(state)
        with self.connect() as conn:
            update = JobTable.update().where(JobTable.c.job_origin_id == state.instigator_origin_id).values(**values)
            # The base class reads the old state first, only to see that there is one.
            if conn.execute(update).rowcount == 0 and not self.get_instigator_state(
                state.instigator_origin_id, state.selector_id
            ):
                raise DagsterInvariantViolationError(f"InstigatorState {state.instigator_origin_id} is not in storage")
            self._add_or_update_instigators_table(conn, state)
        return state

    def purge_ticks(
        self, origin_id: str, selector_id: str, before: float, tick_statuses: Sequence[TickStatus] | None = None
    ) -> None:
        """Remove old ticks of a sensor or schedule, unless that was done in the last PURGE_SECONDS."""
        what = (origin_id, selector_id, *sorted(status.value for status in tick_statuses or ()))
        now = time.monotonic()
        if now - self._purged.get(what, -PURGE_SECONDS) >= PURGE_SECONDS:
            super().purge_ticks(origin_id, selector_id, before, tick_statuses)
            self._purged[what] = now
