"""What waits at one destination, whatever its type: counted, looked at, replayed, given up.

PostgresRoom     marks in the destination's own transactions (`dead_letter.postgres_room`)
SnowflakeRoom    marks in a state table, events brought back at new positions (`dead_letter.snowflake_room`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.dead_letter.replay import ReplayResult
from cdc_runner.dead_letter.stock import Stock
from cdc_runner.destinations.base import Applied, ApplyMode
from cdc_runner.destinations.marks import Mark, Selection, WaitingTable
from cdc_runner.position import Position
from cdc_runner.schema import TableId
from cdc_runner.shaping.net import NetChange
from cdc_runner.spec import ResolvedSync


class WaitingRoom(Protocol):
    """What waits at a destination that this process has opened; used by the destination's thread."""

    name: str
    queue: DeadLetterQueue

    @property
    def tables(self) -> Mapping[TableId, WaitingTable]:
        """The waiting keys, by target."""
        ...

    @property
    def superseded(self) -> int:
        """Changes that a TRUNCATE or a new load made void, since the start."""
        ...

    def ready(self) -> None:
        """Open the destination again if an error has closed it."""
        ...

    def apply(
        self,
        segments: Iterable[Sequence[tuple[ResolvedSync, NetChange]]],
        through: Position,
        commit_time: float,
        mode: ApplyMode,
    ) -> Applied:
        """Apply a batch; what must wait goes to the queue. See `Destination.apply`."""
        ...

    def serve(self) -> None:
        """Do what other processes ask of this one."""
        ...

    def take_stock(self, *, thorough: bool) -> Stock:
        """Compare what should wait with what the queue has; see `stock.take_stock`."""
        ...

    def replay(self, selection: Selection, stopping: Callable[[], bool]) -> ReplayResult:
        """Bring what is selected into the destination; see `replay.Replayer`."""
        ...

    def reasons(self) -> Mapping[TableId, str]:
        """Return why the first change of each target was refused."""
        ...

    def marks(self, selection: Selection, limit: int) -> list[Mark]:
        """Return marks in their order, for people."""
        ...

    def page(self, selection: Selection, after: int, limit: int) -> list[Mark]:
        """Return all marks of the next keys after a number, in order."""
        ...

    def count(self, selection: Selection) -> tuple[int, int]:
        """Return how many keys and changes a selection has."""
        ...

    def purge(self, selection: Selection) -> dict[TableId, int]:
        """Give up what is selected; return how many changes of each target."""
        ...
