"""Named places where a process can be told to die as by `kill -9`, off unless ROSETTA_FAILPOINT is set.

Kills at random moments seldom meet the few microseconds between two durable steps; these always do.
"""

from __future__ import annotations

import os
import signal
import threading
from enum import StrEnum

from cdc_runner.errors import ErrorKind, RosettaError


class Failpoint(StrEnum):
    """Where a process can die."""

    AFTER_COPY = "after_copy"
    """A chunk of an initial load is copied, and not committed."""
    BEFORE_COMMIT = "before_commit"
    """A batch and its position are written at the destination, and not committed."""
    AFTER_COMMIT = "after_commit"
    """A batch is committed at the destination; nobody was told."""
    BEFORE_ACKNOWLEDGE = "before_acknowledge"
    """All destinations hold a position, which the capture engine is about to be told."""
    BEFORE_BATCH_FINISHED = "before_batch_finished"
    """The capture engine is about to tell the source, or to store its offset."""
    BEFORE_XACK = "before_xack"
    """Dead letters are committed at the destination, and still in the queue."""
    DURING_PARK = "during_park"
    """A part of a batch is in Redis, its end is not."""
    AFTER_PARK = "after_park"
    """A batch is parked; nobody was told."""
    BEFORE_UNPARK = "before_unpark"
    """Parked batches are committed at the destination, and still in Redis."""
    AFTER_UNPARK = "after_unpark"
    """They are removed; the next ones are still to be taken out."""
    BEFORE_EXCHANGE = "before_exchange"
    """A new table has taken its target's place, and that is not committed."""
    AFTER_EXCHANGE = "after_exchange"
    """It is committed; the config database was not told."""


_lock = threading.Lock()
_armed: Failpoint | None = None
_left = 0


def arm(text: str | None) -> None:
    """Have the process die at a place.

    Args:
        text: `NAME` or `NAME:TIMES`, how often the place is reached until the process dies there; None does nothing.

    Raises:
        RosettaError: CONFIG_INVALID, no such place or number.
    """
    global _armed, _left
    if text is None:
        return
    name, _, times = text.partition(":")
    if name not in set(Failpoint) or not (times or "1").isdecimal():
        known = ", ".join(Failpoint)
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"ROSETTA_FAILPOINT is not NAME or NAME:TIMES with one of {known}")
    _armed, _left = Failpoint(name), int(times or "1")


def reach(place: Failpoint) -> None:
    """Tell that the process is at a place; it may not return."""
    global _left
    if place is not _armed:
        return
    with _lock:
        _left -= 1
        if _left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
