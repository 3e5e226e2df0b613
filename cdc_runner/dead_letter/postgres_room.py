"""What waits at a PostgreSQL destination: see `dead_letter.room.WaitingRoom`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.dead_letter.replay import Replayer, ReplayResult
from cdc_runner.dead_letter.stock import Stock, take_stock
from cdc_runner.destinations.base import Applied, ApplyMode, RowFetcher
from cdc_runner.destinations.marks import Mark, Selection, WaitingTable
from cdc_runner.destinations.postgres import waiting
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.position import Position
from cdc_runner.schema import TableId
from cdc_runner.shaping.net import NetChange
from cdc_runner.spec import ResolvedSync

_PURGED_AT_ONCE = 1000


class PostgresRoom:
    """Everything happens under the lock of the position, by whatever process."""

    def __init__(
        self,
        destination: PostgresDestination,
        pipeline: str,
        queue: DeadLetterQueue,
        fetch: RowFetcher,
        consumer: str,
        *,
        beside: bool = False,
    ) -> None:
        """Args:
        destination: opened.
        pipeline: its pipeline.
        queue: where the changes are.
        fetch: reads rows from the source, in place of entries that were lost.
        consumer: name in the consumer group.
        beside: the pipeline may be running in another process, which is not to be fenced.
        """
        self.name = destination.name
        self.queue = queue
        self._destination = destination
        self._pipeline = pipeline
        self._beside = beside
        self._replayer = Replayer(destination, pipeline, queue, fetch, consumer)

    @property
    def tables(self) -> Mapping[TableId, WaitingTable]:
        """The waiting keys, by target."""
        return self._destination.diversion.tables

    @property
    def superseded(self) -> int:
        """Changes that a TRUNCATE or a new load made void, since the start."""
        return self._destination.diversion.superseded

    def ready(self) -> None:
        """Open the destination again if an error has closed it."""
        if not self._destination.is_open:
            self._destination.open(beside=self._beside)

    def apply(
        self,
        segments: Iterable[Sequence[tuple[ResolvedSync, NetChange]]],
        through: Position,
        commit_time: float,
        mode: ApplyMode,
    ) -> Applied:
        """Apply a batch; what must wait goes to the queue."""
        return self._destination.apply(segments, through, commit_time, mode=mode, sink=self.queue)

    def serve(self) -> None:
        """Others do what they want done by themselves, under the lock."""
        return

    def take_stock(self, *, thorough: bool) -> Stock:
        """Compare what should wait with what the queue has."""
        return take_stock(self._destination, self._pipeline, self.queue, thorough=thorough)

    def replay(self, selection: Selection, stopping: Callable[[], bool]) -> ReplayResult:
        """Bring what is selected into the destination."""
        return self._replayer.replay(selection, stopping)

    def reasons(self) -> Mapping[TableId, str]:
        """Return why the first change of each target was refused."""
        with self._destination.exclusive() as cursor:
            if self._beside:
                self._destination.diversion.load(cursor)
            return waiting.read_reasons(cursor, self._pipeline)

    def marks(self, selection: Selection, limit: int) -> list[Mark]:
        """Return marks in their order, for people."""
        with self._destination.exclusive() as cursor:
            return waiting.read_marks(
                cursor, self._pipeline, target=selection.target, entry=selection.entry, limit=limit
            )

    def page(self, selection: Selection, after: int, limit: int) -> list[Mark]:
        """Return all marks of the next keys after a number, in order."""
        with self._destination.exclusive() as cursor:
            return waiting.read_page(cursor, self._pipeline, selection, after, limit)

    def count(self, selection: Selection) -> tuple[int, int]:
        """Return how many keys and changes a selection has."""
        with self._destination.exclusive() as cursor:
            return waiting.count(cursor, self._pipeline, selection)

    def purge(self, selection: Selection) -> dict[TableId, int]:
        """Give up what is selected; return how many changes of each target."""
        removed: dict[TableId, int] = {}
        while True:
            finished: dict[TableId, dict[str, str]] = {}
            with self._destination.exclusive() as cursor:
                marks = waiting.read_page(cursor, self._pipeline, selection, 0, _PURGED_AT_ONCE)
                if not marks:
                    return removed
                waiting.forget_entries(cursor, self._pipeline, [mark.entry for mark in marks])
                waiting.raise_version(cursor, self._pipeline)
                self._destination.diversion.load(cursor)
            for mark in marks:
                removed[mark.target] = removed.get(mark.target, 0) + 1
                finished.setdefault(mark.source, {})[mark.stream_id] = mark.entry
            for source, entries in finished.items():
                self.queue.finish(source, entries)
