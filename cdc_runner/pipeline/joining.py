"""Tables that join a running pipeline and are too large to have its stream wait: loaded by a resync beside it.

The stream writes such a target from the position at which it joins, as it writes any other; what the source held before
comes by a resync (`backfill.turn`), which also takes away what a transaction older than the publication of the table
has deleted unseen. That a target is joining is remembered at the destination, with the target's state; the request in
the config database follows from it, however often that is lost, cancelled or fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import structlog
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cdc_runner.catalog import backfills
from cdc_runner.catalog.backfills import Task
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.table_reports import TableReport
from cdc_runner.destinations.base import Destination, TableLoad
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.pipeline.source import SourceSession
from cdc_runner.position import Position, format_lsn
from cdc_runner.schema import TableId
from cdc_runner.spec import PipelineSpec, ResolvedSync

log = structlog.get_logger()

ASK_AGAIN_SECONDS = 300.0
"""Pause before a resync that was cancelled, or has failed for good, is asked for once more."""
REPORT_SECONDS = 5.0
_MEGABYTE = 1_000_000

Tell = Callable[[int, Sequence[TableReport]], None]
"""Takes the id of a pipeline's destination and where its tables stand."""


def load_beside(
    source: SourceSession, destination: Destination, planned: Sequence[TableLoad], most_megabytes: int
) -> list[TableLoad]:
    """Have large tables join beside the stream; return the loads that are left for it to wait for.

    The smallest tables are left, up to the limit in all.

    Args:
        source: where the tables are.
        destination: planned for; its targets are there, and empty.
        planned: loads of one destination of a pipeline whose stream has begun.
        most_megabytes: how much may be loaded while the stream waits.

    Raises:
        RosettaError: the kinds of both sides.
    """
    if not isinstance(destination, PostgresDestination) or destination.ordered:
        # Where foreign keys are checked, rows of a child would be refused until their parents are there.
        return list(planned)
    able = [one for one in planned if not one.resumed and one.computed is None and one.state.schema.key]
    if not able:
        return list(planned)
    relations = [{chunk.relation for chunk in one.chunks} for one in able]
    sized = sorted(zip(source.sizes(relations), able, strict=True), key=lambda pair: pair[0])
    totals = accumulate(size for size, _ in sized)
    beside = [one for total, (_, one) in zip(totals, sized, strict=True) if total > most_megabytes * _MEGABYTE]
    if not beside:
        return list(planned)
    start = Position(source.wal_position())
    joining = [replace(one.state, snapshot=start) for one in beside]
    destination.join(joining)
    for state in joining:
        log.info("load.beside", table=str(state.sync.target), lsn=format_lsn(start.lsn))
    targets = {one.sync.target for one in joining}
    return [one for one in planned if one.state.sync.target not in targets]


def table_reports(destination: Destination, syncs: Sequence[ResolvedSync]) -> list[TableReport]:
    """Return where the tables of a destination stand."""
    states = {one.sync.target: one for one in destination.table_states() if one.ready}
    reports = []
    for sync in syncs:
        known = states.get(sync.target)
        reports.append(TableReport(sync, "PENDING" if known is None else "LOADING" if known.joining else "STREAMING"))
    return reports


class JoiningTables:
    """Sees to it that each target that joins gets its resync, and tells how far it is. Used by one thread."""

    def __init__(self, catalog: Engine, spec: PipelineSpec, tell: Tell) -> None:
        """Args:
        catalog: the config database.
        spec: the pipeline.
        tell: takes where tables stand, in the order in which it is told.
        """
        self._catalog = catalog
        self._spec = spec
        self._tell = tell
        self._not_before: dict[tuple[int, TableId], float] = {}
        self._told: dict[int, set[ResolvedSync]] = {}
        self._told_at = 0.0

    def look(self, destinations: Mapping[int, Destination], tasks: Sequence[Task]) -> None:
        """Ask for resyncs that nobody has asked for, and tell of progress.

        Args:
            destinations: those that can be written to now, by pipeline destination id.
            tasks: the open backfills of the pipeline.

        Raises:
            RosettaError: the config database is away.
        """
        now = time.monotonic()
        due = now - self._told_at > REPORT_SECONDS
        rows = {(one.pipeline_destination_id, one.target): one.rows for one in tasks}
        for identifier, destination in destinations.items():
            joining = [one for one in destination.table_states() if one.joining]
            missing = [
                one.sync
                for one in joining
                if (identifier, one.sync.target) not in rows
                and now >= self._not_before.get((identifier, one.sync.target), 0.0)
            ]
            joined = self._told.get(identifier, set()) - {one.sync for one in joining}
            if not (missing or joined or (joining and due)):
                continue
            reports = [
                TableReport(one.sync, "LOADING", None, None, one.snapshot.lsn, rows.get((identifier, one.sync.target)))
                for one in joining
            ]
            if missing:
                with session_scope(self._catalog) as session:
                    for sync in missing:
                        self._ask(session, identifier, sync)
            self._tell(identifier, [*reports, *(TableReport(sync, "STREAMING") for sync in joined)])
            self._told[identifier] = {one.sync for one in joining}
            self._told_at = now
            self._not_before |= {(identifier, sync.target): now + ASK_AGAIN_SECONDS for sync in missing}

    def _ask(self, session: Session, identifier: int, sync: ResolvedSync) -> None:
        backfills.enqueue(
            session,
            self._spec.id,
            self._spec.source.id,
            identifier,
            sync.source,
            sync.target,
            mode="RESYNC",
            filter_sql=None,
            priority=0,
            requested_by=backfills.JOINS,
        )
