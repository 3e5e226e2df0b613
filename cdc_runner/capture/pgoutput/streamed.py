"""Transactions that the server sends while they are still open, kept in a file until they commit or are gone."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cdc_runner.capture.base import TableVersion
from cdc_runner.capture.buffer import Payload
from cdc_runner.capture.pgoutput.messages import Relation
from cdc_runner.capture.pgoutput.relations import Resolved
from cdc_runner.capture.rows.columns import HEADER, RUN_BYTES, pack
from cdc_runner.capture.rows.stamps import pack_runs
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId

PREFIX = 9
"""Bytes before the first tuple mark of a row message within a streamed transaction."""


class _File:
    """A file that goes away when nobody needs it any more."""

    def __init__(self, directory: Path) -> None:
        self._handle, self._path = tempfile.mkstemp(dir=directory, suffix=".part")
        self._users = 1
        # Capture gives it up while destinations give up pieces of it.
        self._lock = threading.Lock()
        self.size = 0

    def append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._handle, view) :]
        self.size += len(data)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._handle, size, offset)

    def use(self) -> None:
        with self._lock:
            self._users += 1

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            unused = self._users == 0
        if unused:
            os.close(self._handle)
            Path(self._path).unlink(missing_ok=True)


class _Slice(Payload):
    """A piece in the file of its transaction."""

    __slots__ = ("_file", "_header", "_offset", "_released")

    def __init__(self, file: _File, header: bytes, offset: int, size: int, events: int) -> None:
        super().__init__(b"", events)
        self.size = size + len(header)
        self._file, self._header, self._offset = file, header, offset
        self._released = False
        file.use()

    @property
    def spilled(self) -> bool:
        return True

    def read(self) -> bytes:
        return self._header + self._file.read(self._offset, self.size - len(self._header))

    def spill(self, directory: Path) -> None:
        """It is on disk already."""

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._file.release()


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring rows of one relation by one (sub)transaction."""

    transaction: bytes
    relation: Relation
    offset: int
    size: int
    events: int


class StreamedTransaction:
    """The rows of an open transaction in the order in which they came, by subtransaction."""

    def __init__(self, directory: Path) -> None:
        """Args:
        directory: where its file goes.

        Raises:
            RosettaError: SPILL_FAILED.
        """
        self.relations: dict[bytes, Relation] = {}
        """Tables as this transaction sees them; others do only after its commit."""
        self._directory = directory
        self._runs: list[_Run] = []
        try:
            self._file = _File(directory)
        except OSError as error:
            raise self._failed(error) from error

    def add(self, messages: Sequence[bytes], relations: dict[bytes, Relation]) -> None:
        """Take over row messages.

        Args:
            messages: with the number of their (sub)transaction.
            relations: tables as everybody sees them.

        Raises:
            RosettaError: SPILL_FAILED.
        """
        for transaction, rows in groupby(messages, lambda message: message[1:5]):
            by_relation: dict[bytes, list[bytes]] = {}
            for message in rows:
                by_relation.setdefault(message[5:9], []).append(message)
            for number, group in by_relation.items():
                data = pack(group)
                relation = self.relations.get(number) or relations[number]
                self._runs.append(_Run(transaction, relation, self._file.size, len(data), len(group)))
                try:
                    self._file.append(data)
                except OSError as error:
                    raise self._failed(error) from error

    def abort(self, transaction: bytes) -> None:
        """Forget what a subtransaction did."""
        self._runs = [run for run in self._runs if run.transaction != transaction]

    def payloads(
        self, resolve: Callable[[Relation], Resolved | None], stamp: int | None
    ) -> list[tuple[TableVersion, Payload]]:
        """Return what is to be applied after the commit, in order; the file lives until the last is released.

        Args:
            resolve: tells what a relation stands for.
            stamp: the transaction's number, in a stream that is stamped.
        """
        found: list[tuple[TableVersion, Payload]] = []
        counts: dict[TableId, int] = {}
        for run in self._runs:
            resolved = resolve(run.relation)
            if resolved is not None:
                first = counts.get(run.relation.table, 0) + 1
                counts[run.relation.table] = first + run.events - 1
                runs = b"" if stamp is None else pack_runs([(stamp, first, run.events)])
                header = HEADER.pack(resolved.layout, PREFIX, run.events, len(runs) // RUN_BYTES) + runs
                found.append((resolved.version, _Slice(self._file, header, run.offset, run.size, run.events)))
        return found

    def release(self) -> None:
        """Give up the file, as far as no payload needs it."""
        self._file.release()

    def _failed(self, error: OSError) -> RosettaError:
        return RosettaError(
            ErrorKind.SPILL_FAILED, f"cannot spill a large transaction to {self._directory}: {error.strerror}"
        )
