"""Keeps the reading of a backfill below a rate, and ends it when that is asked for."""

from __future__ import annotations

import threading
import time

from cdc_runner.backfill.window import Work


class Pace:
    """A gate for the parts of a COPY stream, shared by the chunks that are read at once."""

    def __init__(self, bytes_per_second: int, work: Work) -> None:
        """Args:
        bytes_per_second: most bytes of all streams together; 0 for no limit.
        work: asked whether to go on.
        """
        self._rate = bytes_per_second
        self._work = work
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, size: int) -> None:
        """Wait until a part of this size may pass.

        Raises:
            Interrupted: the work was asked to end.
        """
        self._work.check()
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + size / self._rate
        self._work.ended.wait(start - now)
        self._work.check()
