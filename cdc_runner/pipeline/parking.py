"""What an applier does with batches while its destination is away for long, where a setting allows that: park them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from cdc_runner.catalog.environment import read_environment
from cdc_runner.dead_letter.parked import ParkedBatch, ParkedChange, Segments, Span
from cdc_runner.dead_letter.parking import ParkingLot
from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.destinations.base import ReloadNeeded
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.failpoints import Failpoint, reach
from cdc_runner.position import Position
from cdc_runner.schema import TableId
from cdc_runner.shaping.net import NetChange, NetKind, Origin
from cdc_runner.shaping.sync import TableShaper
from cdc_runner.spec import DestinationSpec, PipelineSpec, ResolvedSync

log = structlog.get_logger()

TRY_SECONDS = 5.0
"""Time between two looks whether the destination is back."""
TELL_SECONDS = 2.0

OUTAGES = frozenset({
    ErrorKind.DESTINATION_UNAVAILABLE,
    ErrorKind.DESTINATION_AUTHENTICATION,
    ErrorKind.DESTINATION_FULL,
})  # fmt: skip


def parking_lot(spec: PipelineSpec, destination: DestinationSpec) -> ParkingLot:
    """Return where the batches of one destination are parked, with a connection of its own."""
    return ParkingLot(
        LetterStore(read_environment().redis_url, binary=True),
        spec.source.id,
        destination.destination_id,
        most_bytes=spec.settings.park_max_megabytes * 1024 * 1024,
    )


@dataclass(frozen=True, slots=True)
class ReadyBatch:
    """A parked batch as an applier takes it: its changes are shaped already."""

    last: Position
    commit_time: float
    ready: Callable[[], Iterator[list[tuple[ResolvedSync, NetChange]]]]


class Parking:
    """The parked batches of one applier. Used in its thread, but for `through`."""

    def __init__(
        self,
        lot: ParkingLot,
        after_seconds: float,
        syncs: Sequence[ResolvedSync],
        snapshots: Mapping[TableId, Position],
        shapers: Mapping[TableId, TableShaper],
        on_parked: Callable[[int, int], None],
    ) -> None:
        """Args:
        lot: where they are.
        after_seconds: how long a destination must be away before batches are parked; 0 parks none.
        syncs: what the destination takes.
        snapshots: position of each target's load.
        shapers: by target, of the syncs that are no plain copies.
        on_parked: told how many batches and bytes are parked.
        """
        self._lot = lot
        self._after_seconds = after_seconds
        self._syncs = {sync.target: sync for sync in syncs}
        self._snapshots = snapshots
        self._shapers = shapers
        self._on_parked = on_parked
        self._next_try = 0.0
        self._told_at = 0.0
        self._told: tuple[int, int] | None = None
        self.through: Position | None = None if lot.span is None else lot.span.through
        """Position of the last transaction that is parked; None when nothing is."""

    @property
    def holds(self) -> bool:
        """Whether something is parked."""
        return self.through is not None

    def is_due(self, error: RosettaError, away_seconds: float) -> bool:
        """Tell whether batches are to be parked now, after an error of the destination."""
        return 0 < self._after_seconds <= away_seconds and error.kind in OUTAGES

    def park(self, segments: Segments, after: Position, last: Position, commit_time: float) -> None:
        """Park a batch.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE, DEAD_LETTER_FULL, PARKED_LOST, and the source kinds.
        """
        first = self._lot.span is None
        self._lot.append(segments, after, last, commit_time)
        self.through = last
        if first:
            self._next_try = time.monotonic() + TRY_SECONDS
            log.warning("park.began", after=str(after))
        self.tell()

    def wants_try(self) -> bool:
        """Tell whether it is time to look for the destination again; the next time is some seconds later."""
        if time.monotonic() < self._next_try:
            return False
        self._next_try = time.monotonic() + TRY_SECONDS
        return True

    def batches(self, held: Position | None, fence: Callable[[], Position | None]) -> Iterator[ReadyBatch]:
        """Yield what is parked, oldest first, small batches as one; each is removed when the next one is asked for.

        Thousands of small ones come together in minutes, and a transaction for each would take as long again.

        Args:
            held: position of the destination now.
            fence: tells a position that nothing may span.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE, PARKED_LOST.
        """
        while group := self._lot.oldest(fence()):
            last = group[-1]
            yield ReadyBatch(last.last, last.commit_time, partial(self._ready, group, held))
            reach(Failpoint.BEFORE_UNPARK)
            self._lot.remove(last)
            reach(Failpoint.AFTER_UNPARK)
            self.tell()
        self.through = None
        self.tell(at_once=True)
        log.info("park.ended")

    def tell(self, *, at_once: bool = False) -> None:
        """Report what is parked, when that has changed and was not told just now."""
        span: Span | None = self._lot.span
        now, told = time.monotonic(), (0, 0) if span is None else (span.batches, span.size)
        if told != self._told and (at_once or now - self._told_at >= TELL_SECONDS):
            self._told, self._told_at = told, now
            self._on_parked(*told)

    def close(self) -> None:
        """Close the connection; what is parked stays."""
        self._lot.store.close()

    def _ready(
        self, group: Sequence[ParkedBatch], held: Position | None
    ) -> Iterator[list[tuple[ResolvedSync, NetChange]]]:
        for batch in group:
            if held is not None and batch.last <= held:
                continue
            for segment in batch.segments():
                yield [
                    (self._syncs[one.target], self._with_origin(one))
                    for one in segment
                    # A table that was taken out meanwhile, or loaded anew behind the batch.
                    if one.target in self._syncs and batch.last > self._snapshots[one.target]
                ]

    def _with_origin(self, parked: ParkedChange) -> NetChange:
        change = parked.change
        if parked.origin is None:
            return change
        if change.kind is not NetKind.MERGE:
            return replace(change, origin=Origin(parked.origin, lambda _: {}))
        shaper = self._shapers.get(parked.target)
        origin = None if shaper is None else shaper.origin_of(parked.origin, change.rows)

        def load_again(keys: Sequence[tuple[str, ...]]) -> Mapping[tuple[str, ...], tuple[str | None, ...]]:
            raise ReloadNeeded(
                parked.target, f"{len(keys)} rows were parked without all of their values, and their keys are masked"
            )

        return replace(change, origin=origin or Origin(parked.origin, load_again))
