"""Waiting for a state with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], *, timeout_seconds: float, interval_seconds: float = 0.05) -> bool:
    """Wait until a condition holds; tell whether it did before the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval_seconds)
    return True
