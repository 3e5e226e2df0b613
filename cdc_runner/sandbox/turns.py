"""Bounds how many sandboxes of a host run at once, whatever process starts them: files in a directory, with locks.

Each request takes a ticket, a numbered file that it holds locked until it is done. The lowest tickets have their turn.
The system frees the lock of a process that dies, so that a ticket without one is nobody's and is removed.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cdc_runner.errors import ErrorKind, RosettaError

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 600.0
MAX_WAITING = 500

PREVIEWS = "previews"
"""Directory of the previews' turns, below ROSETTA_HOME."""

_QUEUE = "queue.lock"
_DIGITS = 12


class TurnCancelled(Exception):
    """The request was cancelled while it waited."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Requests of this host.

    Attributes:
        running: how many have their turn.
        waiting: how many do not yet.
    """

    running: int
    waiting: int


class Turns:
    """Turns of one directory; first come, first served."""

    def __init__(self, directory: Path, at_once: int) -> None:
        """Args:
        directory: made when absent, readable by its owner only.
        at_once: most requests that have their turn.
        """
        self._directory = directory
        self._at_once = at_once

    @contextmanager
    def turn(
        self, cancelled: threading.Event | None = None, on_wait: Callable[[int], None] | None = None
    ) -> Iterator[float]:
        """Wait for a turn and hold it during the block; gives the seconds that were waited.

        Args:
            cancelled: when set, waiting ends.
            on_wait: told how many requests stand before this one, at first and whenever that changes.

        Raises:
            RosettaError: CONFLICT when MAX_WAITING requests wait, or the turn did not come within PATIENCE_SECONDS.
            TurnCancelled: it was.
        """
        began = time.monotonic()
        ticket, number = self._take()
        try:
            self._await(number, began, cancelled, on_wait)
            yield time.monotonic() - began
        finally:
            self._path(number).unlink(missing_ok=True)
            os.close(ticket)

    def queue(self) -> Queue:
        """Return how many requests run and wait now."""
        count = sum(self._living(number) for number in self._numbers())
        return Queue(min(count, self._at_once), max(0, count - self._at_once))

    def _take(self) -> tuple[int, int]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        gate = os.open(self._directory / _QUEUE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)
            numbers = self._numbers()
            if len(numbers) > MAX_WAITING and sum(map(self._living, numbers)) > MAX_WAITING:
                raise RosettaError(ErrorKind.CONFLICT, f"{MAX_WAITING} statements wait already: try again later")
            # Above the number that was given last, even when its file is gone: the order stays that of the requests.
            number = max(int(os.pread(gate, 20, 0) or b"0"), *numbers, 0) + 1
            os.pwrite(gate, str(number).zfill(_DIGITS).encode(), 0)
            ticket = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(ticket, fcntl.LOCK_EX)
            return ticket, number
        finally:
            os.close(gate)

    def _await(
        self,
        number: int,
        began: float,
        cancelled: threading.Event | None,
        on_wait: Callable[[int], None] | None,
    ) -> None:
        told: int | None = None
        pause = cancelled or threading.Event()
        while True:
            before = sum(self._living(other) for other in self._numbers() if other < number)
            if before < self._at_once:
                return
            if on_wait is not None and before != told:
                on_wait(before)
                told = before
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise RosettaError(
                    ErrorKind.CONFLICT, f"no turn within {PATIENCE_SECONDS:.0f} s: {before} statements are before this"
                )
            if pause.wait(POLL_SECONDS):
                raise TurnCancelled

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if name.isdigit())

    def _path(self, number: int) -> Path:
        return self._directory / str(number).zfill(_DIGITS)

    def _living(self, number: int) -> bool:
        """Tell whether a process holds a ticket; the file of one that died is removed."""
        try:
            ticket = os.open(self._path(number), os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(ticket, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(ticket)
        self._path(number).unlink(missing_ok=True)
        return False


def preview_queue(home: Path, at_once: int) -> Queue:
    """Return how many previews of this host run and wait now."""
    return Turns(home / PREVIEWS, at_once).queue()
