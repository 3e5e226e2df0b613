"""Memory and CPU time of a process."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil


class Usage:
    """Samples the resident size of a process while the block runs."""

    def __init__(self, pid: int, interval_seconds: float = 0.1) -> None:
        self._process = psutil.Process(pid)
        self._interval = interval_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="usage", daemon=True)
        self.peak_mb = 0.0

    def __enter__(self) -> Usage:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(5)

    def _sample(self) -> None:
        while not self._ended.wait(self._interval):
            try:
                self.peak_mb = max(self.peak_mb, self._process.memory_info().rss / 1e6)
            except psutil.NoSuchProcess:
                return

    def cpu_seconds(self) -> float:
        """User and system time so far, of the process alone."""
        times = self._process.cpu_times()
        return float(times.user + times.system)
