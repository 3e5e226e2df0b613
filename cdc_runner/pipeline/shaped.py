"""Batches to net changes: computed once when a batch is small, piece by piece when it is large."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from cdc_runner.capture.base import ChangeBatch
from cdc_runner.pipeline.applier import ShapedBatch
from cdc_runner.shaping.net import NetChange, NetShaper


class Shaper:
    """Makes shaped batches. Each thread that iterates over segments has a DuckDB connection of its own."""

    def __init__(self, inline_bytes: int) -> None:
        """Args:
        inline_bytes: batches up to this raw size are shaped at once, in the caller's thread.
        """
        self._inline_bytes = inline_bytes
        self._local = threading.local()

    def shape(self, batch: ChangeBatch, readers: int) -> ShapedBatch:
        """Return a batch as net changes for a number of destinations, each of which releases it once."""
        segments: Callable[[], Iterator[Sequence[NetChange]]]
        if batch.raw_bytes <= self._inline_bytes:
            ready = list(self._segments(batch))
            batch.release()

            def segments() -> Iterator[Sequence[NetChange]]:
                return iter(ready)
        else:

            def segments() -> Iterator[Sequence[NetChange]]:
                return self._segments(batch)

        left = [readers]
        lock = threading.Lock()

        def release() -> None:
            with lock:
                left[0] -= 1
                last = left[0] == 0
            if last:
                batch.release()

        return ShapedBatch(batch.last, batch.last_commit_time, batch.events, segments, release)

    def _segments(self, batch: ChangeBatch) -> Iterator[list[NetChange]]:
        shaper: NetShaper | None = getattr(self._local, "shaper", None)
        if shaper is None:
            shaper = self._local.shaper = NetShaper()
        for segment in batch.segments():
            yield [change for changes in segment.tables for change in shaper.shape(changes)]
