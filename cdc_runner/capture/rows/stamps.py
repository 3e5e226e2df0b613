"""Where in the stream each row message belongs: its transaction, and its order among those of its table there."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc_runner.capture.base import KIND, STAMPS
from cdc_runner.errors import ErrorKind, RosettaError

Run = tuple[int, int, int]
"""Number of a transaction, the order of the first of its messages in a piece (from 1), and how many there are."""

_RUN = struct.Struct("<III")
_END = struct.Struct("<IQd")


def pack_runs(runs: Sequence[Run]) -> bytes:
    """Return runs as a piece has them."""
    return b"".join(_RUN.pack(*run) for run in runs)


def pack_end(transaction: int, end: int, moment: float) -> bytes:
    """Return a mark: end LSN and commit time (seconds since the epoch) of a transaction."""
    return _END.pack(transaction, end, moment)


def ends_of(marks: Iterable[bytes]) -> dict[int, tuple[int, float]]:
    """Return end LSN and commit time by transaction."""
    return {number: (end, moment) for mark in marks for number, end, moment in _END.iter_unpack(mark)}


_KINDS = {ord("I"): "c", ord("U"): "u", ord("D"): "d", ord("T"): "t"}


class RunCounter:
    """Counts the messages of each table in each transaction. Used by the capture thread, for stamped streams only."""

    def __init__(self) -> None:
        self._begins: list[tuple[int, int]] = []
        self._counts: dict[bytes, int] = {}
        self._transaction = 0

    def begin(self, transaction: int, place: int) -> None:
        """A transaction begins at a place of the list of rows."""
        self._begins.append((place, transaction))

    def runs(self, rows: Sequence[bytes]) -> dict[bytes, list[Run]]:
        """Return the runs of the first rows of the list, by relation; these rows leave the list."""
        begins = [(0, self._transaction), *((place, number) for place, number in self._begins if place < len(rows))]
        found: dict[bytes, list[Run]] = {}
        for position, (place, number) in enumerate(begins):
            stop = begins[position + 1][0] if position + 1 < len(begins) else len(rows)
            if position:
                self._counts.clear()
                self._transaction = number
            counts: dict[bytes, int] = {}
            for row in rows[place:stop]:
                counts[row[1:5]] = counts.get(row[1:5], 0) + 1
            for relation, count in counts.items():
                before = self._counts.get(relation, 0)
                found.setdefault(relation, []).append((number, before + 1, count))
                self._counts[relation] = before + count
        self._begins = [(place - len(rows), number) for place, number in self._begins if place >= len(rows)]
        return found


def stamp(
    rows: pa.Table, runs: Sequence[bytes], ends: Mapping[int, tuple[int, float]], kinds: npt.NDArray[np.uint8]
) -> pa.Table:
    """Return decoded rows with the columns `STAMPS` and `KIND`.

    Args:
        rows: `ord` is twice the number of the message, and one more for the row that is written.
        runs: of the pieces that the rows were decoded from.
        ends: of every transaction among them.
        kinds: first byte of each message.

    Raises:
        RosettaError: CAPTURE_FAILED when the end of a transaction is not known.
    """
    known = [run for data in runs for run in _RUN.iter_unpack(data)]
    missing = [number for number, _, _ in known if number not in ends]
    if missing:
        raise RosettaError(ErrorKind.CAPTURE_FAILED, f"the stream did not say where transaction {missing[0]} ends")
    counts = [count for _, _, count in known]
    place = rows.column("ord").to_numpy()
    message = place // 2
    transactions = np.repeat(np.array([number for number, _, _ in known], np.int64), counts)[message]
    lsns = np.repeat(np.array([ends[number][0] for number, _, _ in known], np.int64), counts)[message]
    times = np.repeat(np.array([ends[number][1] for number, _, _ in known], np.float64), counts)[message]
    orders = np.concatenate([np.arange(first, first + count, dtype=np.int64) for _, first, count in known])[message]
    for name, value in zip(STAMPS, (lsns, orders * 2 + place % 2, transactions, times), strict=True):
        rows = rows.append_column(name, pa.array(value))
    made = pa.array(_KINDS.get(kind) for kind in kinds[message].tolist())
    return rows.append_column(KIND, made.cast(pa.string()))
