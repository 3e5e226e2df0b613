"""The bounded buffer between a capture engine and the pipeline: parts of transactions, in memory or spilled to disk."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cdc_runner.capture.base import TableVersion
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position


class Payload:
    """Raw events of one table version: bytes in memory, or a file after `spill`."""

    __slots__ = ("_data", "_path", "events", "size")

    def __init__(self, data: bytes, events: int) -> None:
        self._data: bytes | None = data
        self._path: Path | None = None
        self.size = len(data)
        self.events = events

    @property
    def spilled(self) -> bool:
        """Whether the bytes are on disk."""
        return self._path is not None

    def read(self) -> bytes:
        """Return the bytes, from memory or disk."""
        if self._data is not None:
            return self._data
        assert self._path is not None, "a payload was read after its release"
        return self._path.read_bytes()

    def spill(self, directory: Path) -> None:
        """Move the bytes to a file of their own.

        Raises:
            RosettaError: SPILL_FAILED; the bytes stay in memory then.
        """
        if self._data is None:
            return
        name = None
        try:
            handle, name = tempfile.mkstemp(dir=directory, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(self._data)
        except OSError as error:
            if name is not None:
                # What was written takes the room that others need.
                Path(name).unlink(missing_ok=True)
            raise RosettaError(
                ErrorKind.SPILL_FAILED, f"cannot spill a large transaction to {directory}: {error.strerror}"
            ) from error
        self._path = Path(name)
        self._data = None

    def release(self) -> None:
        """Forget the bytes."""
        self._data = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


@dataclass(slots=True)
class Part:
    """A run of events: complete transactions up to `end`, or a piece of a transaction that goes on (`end` is None).

    `numbers` are those of the transactions that end in it, as in `ChangeBatch`. `marks` are the engine's own notes on
    them, for streams that are opened with `stamped`.
    """

    end: Position | None
    commit_time: float
    transactions: int
    payloads: list[tuple[TableVersion, Payload]] = field(default_factory=list)
    marks: list[bytes] = field(default_factory=list)
    numbers: bytes = b""

    @property
    def events(self) -> int:
        """Row events in the part."""
        return sum(payload.events for _, payload in self.payloads)

    @property
    def memory_bytes(self) -> int:
        """Bytes held in memory."""
        return sum(payload.size for _, payload in self.payloads if not payload.spilled)

    @property
    def size(self) -> int:
        """Bytes in memory or on disk."""
        return sum(payload.size for _, payload in self.payloads)

    def spill(self, directory: Path) -> None:
        """Move all bytes to disk."""
        for _, payload in self.payloads:
            payload.spill(directory)

    def release(self) -> None:
        """Forget all bytes."""
        for _, payload in self.payloads:
            payload.release()


class PartBuffer:
    """Parts between the engine's thread and the pipeline's.

    Holds at most `memory_bytes`; when that is full the engine waits, unless nothing in the buffer could be taken (one
    open transaction fills it), in which case further parts go to disk.
    """

    def __init__(self, memory_bytes: int, spill_directory: Path) -> None:
        self._limit = memory_bytes
        self._directory = spill_directory
        self._parts: deque[Part] = deque()
        self._memory = 0
        self._complete = 0
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None

    def put(self, part: Part) -> bool:
        """Add a part, waiting for room; False when the buffer was closed instead."""
        with self._changed:
            while not self._closed and self._memory + part.memory_bytes > self._limit and self._complete:
                self._changed.wait(1.0)
            if self._closed:
                part.release()
                return False
            if self._memory + part.memory_bytes > self._limit:
                part.spill(self._directory)
            self._parts.append(part)
            self._memory += part.memory_bytes
            if part.end is not None:
                self._complete += 1
            self._changed.notify_all()
            return True

    def take(
        self, max_events: int, max_bytes: int, barriers: Callable[[], Iterable[Position]], wait_seconds: float
    ) -> list[Part]:
        """Return parts that end with a complete transaction, as many as are there within the limits, or none in time.

        At least one complete run is returned whatever its size; parts are not joined across a barrier. The barriers are
        asked for once there are parts: one may come while they are waited for.

        Raises:
            BaseException: what `fail` was given, after everything complete was taken.
        """
        with self._changed:
            if not self._complete and not self._closed and self._error is None:
                self._changed.wait(wait_seconds)
            if not self._complete:
                if self._error is not None:
                    raise self._error
                return []
            return self._pop(max_events, max_bytes, sorted(barriers()))

    def _pop(self, max_events: int, max_bytes: int, barriers: list[Position]) -> list[Part]:
        taken: list[Part] = []
        pending: list[Part] = []
        last: Position | None = None
        events = size = 0
        for part in self._parts:
            pending.append(part)
            if part.end is None:
                continue
            events += sum(one.events for one in pending)
            size += sum(one.size for one in pending)
            if last is not None:
                crosses = any(last <= barrier < part.end for barrier in barriers)
                if crosses or events > max_events or size > max_bytes:
                    break
            taken.extend(pending)
            pending = []
            last = part.end
        for part in taken:
            self._parts.popleft()
            self._memory -= part.memory_bytes
            self._complete -= part.end is not None
        self._changed.notify_all()
        return taken

    def drop_open(self) -> None:
        """Forget the pieces of a transaction whose end has not come; it is to come again as a whole."""
        with self._changed:
            while self._parts and self._parts[-1].end is None:
                part = self._parts.pop()
                self._memory -= part.memory_bytes
                part.release()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def fail(self, error: BaseException) -> None:
        """Hand an error to the reader, behind what is complete already."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def close(self) -> None:
        """Release everything and let writers and readers go."""
        with self._changed:
            self._closed = True
            while self._parts:
                self._parts.popleft().release()
            self._memory = self._complete = 0
            self._changed.notify_all()
