"""Batches to net changes: computed once when a batch is small, piece by piece when it is large.

Either way the next piece is computed while a destination's server works on the one before.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from cdc_runner.capture.base import ChangeBatch
from cdc_runner.pipeline.batch import ShapedBatch
from cdc_runner.shaping.net import NetChange, NetShaper, as_events

Item = TypeVar("Item")


class Shaper:
    """Makes shaped batches. Whoever iterates over segments has a DuckDB connection for itself meanwhile.

    Connections are kept: opening one takes longer than shaping a small batch.
    """

    def __init__(self, inline_bytes: int) -> None:
        """Args:
        inline_bytes: batches up to this raw size are shaped at once, in the caller's thread.
        """
        self._inline_bytes = inline_bytes
        # The first batch shall not wait for one.
        self._idle = [NetShaper()]

    def shape(self, batch: ChangeBatch, readers: int, *, net: bool = True, events: bool = False) -> ShapedBatch:
        """Return a batch for a number of destinations, each of which releases it once.

        Args:
            batch: captured.
            readers: how many destinations.
            net: whether some of them take net changes.
            events: whether some of them take every event.
        """
        inline = batch.raw_bytes <= self._inline_bytes
        nets = self._give(batch, self._segments, keep=inline and net)
        all_events = self._give(batch, _event_segments, keep=inline and events)
        if inline:
            batch.release()

        left = [readers]
        lock = threading.Lock()

        def release() -> None:
            with lock:
                left[0] -= 1
                last = left[0] == 0
            if last:
                batch.release()

        return ShapedBatch(batch.last, batch.last_commit_time, batch.events, nets, all_events, release)

    def _give(
        self, batch: ChangeBatch, segments: Callable[[ChangeBatch], Iterator[list[NetChange]]], *, keep: bool
    ) -> Callable[[], Iterator[Sequence[NetChange]]]:
        """Return what gives a batch's segments, again and again: computed now to be kept, or at each call."""
        if not keep:
            return lambda: ahead(lambda: segments(batch))
        ready = list(segments(batch))
        return lambda: iter(ready)

    def _segments(self, batch: ChangeBatch) -> Iterator[list[NetChange]]:
        try:
            shaper = self._idle.pop()
        except IndexError:
            shaper = NetShaper()
        try:
            for segment in batch.segments():
                yield [change for changes in segment.tables for change in shaper.shape(changes, batch.numbers)]
        finally:
            self._idle.append(shaper)


def _event_segments(batch: ChangeBatch) -> Iterator[list[NetChange]]:
    for segment in batch.segments():
        yield [as_events(changes) for changes in segment.tables]


def ahead(make: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """Yield what an iterator yields, which runs in a thread of its own and is one item ahead.

    The thread ends when the iterator or this generator does.

    Raises:
        BaseException: what the iterator raised, after the items before it.
    """
    # An item alone in a tuple, or how it ended.
    ready: queue.SimpleQueue[tuple[Item] | BaseException | None] = queue.SimpleQueue()
    given_up = threading.Event()
    # Large values make large items: only one is computed, or waits, while another is applied.
    turn = threading.Semaphore(1)

    def work() -> None:
        try:
            turn.acquire()
            for item in make():
                ready.put((item,))
                del item
                turn.acquire()
                if given_up.is_set():
                    return
        except BaseException as error:
            ready.put(error)
        else:
            ready.put(None)

    thread = threading.Thread(target=work, name="shape", daemon=True)
    thread.start()
    try:
        while (made := ready.get()) is not None:
            turn.release()
            if isinstance(made, BaseException):
                raise made
            yield made[0]
    finally:
        given_up.set()
        turn.release()
        thread.join()
