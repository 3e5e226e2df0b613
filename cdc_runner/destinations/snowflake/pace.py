"""Budgets of a channel: how many requests and bytes a second the service takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Budget:
    """A token bucket. Thread-safe."""

    def __init__(
        self,
        per_second: float,
        burst: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Args:
        per_second: units that become free each second.
        burst: units that may be used at once after a pause.
        clock: seconds.
        sleep: waits for seconds.
        """
        self._rate = per_second
        self._burst = burst
        self._clock = clock
        self._sleep = sleep
        self._free = burst
        self._at = clock()
        self._lock = threading.Lock()

    def take(self, units: float = 1.0) -> float:
        """Wait until so many units may be used; return the seconds waited. More than the burst is paid off later."""
        with self._lock:
            now = self._clock()
            self._free = min(self._burst, self._free + (now - self._at) * self._rate)
            self._at = now
            self._free -= units
            wait = max(0.0, -self._free / self._rate)
        if wait:
            self._sleep(wait)
        return wait
