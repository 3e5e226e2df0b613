"""Parts are never joined across a position that a fence has set, however late it came."""

from __future__ import annotations

import threading
from pathlib import Path

from cdc_runner.capture.buffer import Part, PartBuffer
from cdc_runner.position import Position
from tests.support.waiting import wait_for


def test_a_barrier_that_comes_while_parts_are_waited_for_is_heeded(tmp_path: Path) -> None:
    buffer = PartBuffer(1 << 20, tmp_path)
    barriers: tuple[Position, ...] = ()
    taken: list[Part] = []

    def take() -> None:
        taken.extend(buffer.take(100, 1 << 20, lambda: barriers, 30.0))

    reader = threading.Thread(target=take)
    # As a `PartBuffer` that is waited on: its lock is free again, and the reader has come so far.
    changed = buffer._changed
    reader.start()
    wait_for(lambda: len(changed._waiters) == 1, 30, "the reader to wait")  # type: ignore[attr-defined]
    with changed:
        # Both before the reader can look.
        barriers = (Position(20),)
        buffer.put(Part(Position(10), 0.0, 1))
        buffer.put(Part(Position(30), 0.0, 1))
    reader.join(30)
    assert [part.end for part in taken] == [Position(10)]
    assert [part.end for part in buffer.take(100, 1 << 20, lambda: barriers, 30.0)] == [Position(30)]
