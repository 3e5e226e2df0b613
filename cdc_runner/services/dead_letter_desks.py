"""What waits at each destination of a pipeline, opened beside the process that runs it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Engine

from cdc_runner.capture.fetch import SourceRows
from cdc_runner.catalog import leases
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.dead_letters import DeadLetterCount
from cdc_runner.catalog.environment import read_environment
from cdc_runner.dead_letter import requests
from cdc_runner.dead_letter.postgres_room import PostgresRoom
from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.dead_letter.replay import ReplayResult
from cdc_runner.dead_letter.room import WaitingRoom
from cdc_runner.dead_letter.snowflake_room import SnowflakeRoom, page_of, select_marks
from cdc_runner.dead_letter.stock import count_waiting
from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.destinations.marks import Mark, Selection
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.snowflake.administration import read_waiting
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.destinations.snowflake.waiting import EventMark
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import DestinationSpec, PipelineSpec

LEASE_SECONDS = 300.0
_ENOUGH_SECONDS = 240.0


class Waiting(Protocol):
    """What waits at one destination, for a person."""

    queue: DeadLetterQueue

    def marks(self, selection: Selection, limit: int) -> list[Mark]:
        """Return marks in their order."""
        ...

    def page(self, selection: Selection, after: int, limit: int) -> list[Mark]:
        """Return all marks of the next keys after a number, in order."""
        ...

    def count(self, selection: Selection) -> tuple[int, int]:
        """Return how many keys and changes a selection has."""
        ...

    def purge(self, selection: Selection) -> dict[str, int]:
        """Give up what is selected; return how many changes of each target."""
        ...

    def replay(self, selection: Selection, stopping: Callable[[], bool]) -> dict[str, Any]:
        """Bring what is selected into the destination; return what was done, as JSON."""
        ...

    def counts(self) -> list[DeadLetterCount] | None:
        """Return what waits now, for the config database; None where the running pipeline tells it."""
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """One destination and what waits there."""

    spec: PipelineSpec
    destination_spec: DestinationSpec
    waiting: Waiting

    @property
    def queue(self) -> DeadLetterQueue:
        """Where the payloads are."""
        return self.waiting.queue


@contextmanager
def open_desks(engine: Engine, spec: PipelineSpec, chosen: Sequence[DestinationSpec]) -> Iterator[list[Desk]]:
    """Open destinations for the time of the block, without fencing the process that runs the pipeline.

    Raises:
        RosettaError: a destination kind.
    """
    with ExitStack() as cleanup:
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="rosetta-letters-")))
        store = LetterStore(read_environment().redis_url)
        cleanup.callback(store.close)
        source = SourceRows(spec.source.address, "dead letters")
        cleanup.callback(source.close)
        desks = []
        for one in chosen:
            most = spec.settings.dead_letter_max_entries
            queue = DeadLetterQueue(store, spec.identity, spec.source.id, one.destination_id, max_entries=most)
            if one.type == "snowflake":
                desks.append(Desk(spec, one, _SnowflakeBeside(engine, spec, one, queue, source, directory)))
                continue
            destination = PostgresDestination(
                one, spec.identity, spec.settings, directory=directory, fetch=source.fetch, source=source.connection
            )
            cleanup.callback(destination.close)
            destination.open(beside=True)
            room = PostgresRoom(destination, spec.identity, queue, source.fetch, f"operator-{os.getpid()}", beside=True)
            desks.append(Desk(spec, one, _PostgresBeside(room)))
        yield desks


class _PostgresBeside:
    """At PostgreSQL the lock of the position lets anybody change what waits."""

    def __init__(self, room: PostgresRoom) -> None:
        self._room = room
        self.queue = room.queue
        self.marks, self.page, self.count = room.marks, room.page, room.count

    def purge(self, selection: Selection) -> dict[str, int]:
        return {str(table): count for table, count in self._room.purge(selection).items()}

    def replay(self, selection: Selection, stopping: Callable[[], bool]) -> dict[str, Any]:
        return self._room.replay(selection, stopping).as_json()

    def counts(self) -> list[DeadLetterCount] | None:
        self._room.ready()
        return _counted(self._room)


class _SnowflakeBeside:
    """At Snowflake only who runs the pipeline changes what waits: this process while nobody does, else it is asked."""

    def __init__(
        self,
        engine: Engine,
        spec: PipelineSpec,
        destination: DestinationSpec,
        queue: DeadLetterQueue,
        source: SourceRows,
        directory: Path,
    ) -> None:
        self.queue = queue
        self._engine = engine
        self._spec = spec
        self._destination = destination
        self._source = source
        self._directory = directory
        self._read: list[EventMark] | None = None
        self._counts: list[DeadLetterCount] | None = None

    def _marks(self) -> list[EventMark]:
        if self._read is None:
            self._read = read_waiting(self._destination.snowflake, self._spec.identity, self._destination.identity)
        return self._read

    def marks(self, selection: Selection, limit: int) -> list[Mark]:
        return select_marks(self._marks(), selection)[:limit]

    def page(self, selection: Selection, after: int, limit: int) -> list[Mark]:
        return page_of(self._marks(), selection, after, limit)

    def count(self, selection: Selection) -> tuple[int, int]:
        marks = select_marks(self._marks(), selection)
        return len({(one.target, one.key_hash) for one in marks}), len(marks)

    def purge(self, selection: Selection) -> dict[str, int]:
        def change(room: SnowflakeRoom) -> dict[str, int]:
            return {str(table): count for table, count in room.purge(selection).items()}

        found: dict[str, int] = self._changed("purge", selection, change)
        return found

    def replay(self, selection: Selection, stopping: Callable[[], bool]) -> dict[str, Any]:
        if not self._marks():
            return ReplayResult().as_json()
        until = time.monotonic() + _ENOUGH_SECONDS

        def change(room: SnowflakeRoom) -> dict[str, Any]:
            return room.replay(selection, lambda: stopping() or time.monotonic() > until).as_json()

        found: dict[str, Any] = self._changed("replay", selection, change)
        return found

    def counts(self) -> list[DeadLetterCount] | None:
        return self._counts

    def _changed(self, verb: str, selection: Selection, change: Callable[[SnowflakeRoom], Any]) -> Any:
        self._read = None
        with session_scope(self._engine) as session:
            holder = f"dead letters {os.getpid()}"
            lease = leases.acquire(session, self._spec.id, holder, LEASE_SECONDS)
        if lease is None:
            return requests.ask(self.queue, verb, selection, sleep=time.sleep)
        destination = SnowflakeDestination(
            self._destination,
            self._spec.identity,
            self._spec.settings,
            directory=self._directory,
            fetch=self._source.fetch,
            source=self._source.connection,
        )
        try:
            destination.open()
            room = SnowflakeRoom(destination, self.queue, self._source.fetch, f"operator-{os.getpid()}")
            result = change(room)
            self._counts = _counted(room)
            return result
        finally:
            destination.close()
            with session_scope(self._engine) as session:
                leases.release(session, lease)


def _counted(room: WaitingRoom) -> list[DeadLetterCount]:
    lost = room.take_stock(thorough=True).lost
    reasons = room.reasons()
    return count_waiting(room.tables, lost, reasons)


def chosen_destinations(spec: PipelineSpec, destination: str | None) -> list[DestinationSpec]:
    """Return the destinations that are meant.

    Raises:
        RosettaError: NOT_FOUND.
    """
    named = [one for one in spec.destinations if destination in (None, one.name)]
    if not named:
        raise RosettaError(ErrorKind.NOT_FOUND, f"pipeline {spec.name} has no destination {str(destination)[:63]!r}")
    return named
