"""What goes into an applier, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cdc_runner.errors import RosettaError
from cdc_runner.position import Position
from cdc_runner.shaping.net import NetChange

if TYPE_CHECKING:
    from cdc_runner.pipeline.applier import Applier


@dataclass(frozen=True, slots=True)
class ShapedBatch:
    """A batch as net changes a source table; shared by the destinations.

    Attributes:
        last: position of its last transaction.
        commit_time: that transaction's commit time at the source, seconds since the epoch.
        events: row events in it.
        segments: yields the net changes segment by segment; may be called again until `release`.
        event_segments: likewise every event, for destinations that take those.
        release: tells that this destination needs it no more.
    """

    last: Position
    commit_time: float
    events: int
    segments: Callable[[], Iterator[Sequence[NetChange]]]
    event_segments: Callable[[], Iterator[Sequence[NetChange]]]
    release: Callable[[], None]


@dataclass(slots=True)
class ApplyStatus:
    """What a destination's thread is doing, for reports; `position` is applied, `parked` is kept until it can be."""

    position: Position
    commit_time: float = 0.0
    lag_ms: int | None = None
    applied_at: float = 0.0
    batches: int = 0
    events: int = 0
    apply_seconds: float = 0.0
    error: RosettaError | None = None
    detached: bool = False
    parked: Position | None = None

    @property
    def durable(self) -> Position:
        """Up to where everything is at the destination, or parked for it."""
        return self.position if self.parked is None else max(self.position, self.parked)


class FencePoint(Protocol):
    """A position at which the destination is held for a moment."""

    position: Position

    def reached(self, applier: Applier) -> None:
        """Do what is to be done there, in the applier's thread: all up to the position is applied, nothing beyond it.

        Never raises. The destination may be closed afterwards.
        """
        ...
