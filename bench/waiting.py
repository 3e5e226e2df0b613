"""Observing something that moves, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator


def wait_until(
    condition: Callable[[], bool], timeout_seconds: float, what: str, interval_seconds: float = 0.005
) -> float:
    """Wait for a condition; return when it was seen to hold (monotonic, seconds).

    Raises:
        TimeoutError: it did not hold in time.
    """
    for _ in ticks(timeout_seconds, interval_seconds):
        if condition():
            return time.monotonic()
    raise TimeoutError(f"waited {timeout_seconds} s for {what}")


def ticks(timeout_seconds: float, interval_seconds: float) -> Iterator[float]:
    """Yield the time every so often until the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        now = time.monotonic()
        if now > deadline:
            return
        yield now
        time.sleep(interval_seconds)
