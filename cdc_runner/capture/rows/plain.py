"""A few row messages to rows in a plain loop: numpy's and Arrow's calls cost more than the loop when there are few."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pyarrow as pa

from cdc_runner.capture.rows.columns import (
    DELETE,
    HEADER,
    NEW,
    RUN_BYTES,
    TEXT,
    TRUNCATE,
    UNCHANGED,
    Layout,
    Layouts,
    decode,
)

PLAIN_MESSAGES = 30
"""Up to so many messages the plain loop is the faster way."""

PLAIN_BYTES = 1 << 20
"""Up to so many bytes of messages: it copies each value a few times."""

_Cell = tuple[int, str | None]
_LENGTH = struct.Struct(">i").unpack_from


def messages_of(piece: bytes) -> list[bytes]:
    """Return the messages of a piece."""
    _, _, count, runs = HEADER.unpack_from(piece)
    place = HEADER.size + RUN_BYTES * runs
    lengths = struct.unpack_from(f"<{count}I", piece, place)
    place += 4 * count
    found = []
    for length in lengths:
        found.append(piece[place : place + length])
        place += length
    return found


def cut(message: bytes, place: int, width: int) -> tuple[list[_Cell], int]:
    """Return kind and text of each value of the tuple at a place, and where the tuple ends."""
    place += 2
    cells: list[_Cell] = []
    for _ in range(width):
        kind = message[place]
        place += 1
        if kind == TEXT:
            (length,) = _LENGTH(message, place)
            place += 4 + length
            cells.append((kind, message[place - length : place].decode()))
        else:
            cells.append((kind, None))
    return cells, place


class PlainRows:
    """Collects the rows of messages; see `columns.decode`, which gives the same for many."""

    def __init__(self, columns: int, keys: int) -> None:
        """Args:
        columns: stream columns of the table.
        keys: columns of its key.
        """
        self._ords: list[int] = []
        self._ops: list[str] = []
        self._marks: list[str | None] = []
        self._columns: list[list[str | None]] = [[] for _ in range(columns)]
        self._keys: list[list[str | None]] = [[] for _ in range(keys)]
        self._number = 0

    def add(self, layout: Layout, prefix: int, message: bytes) -> None:
        """Add the rows of one message."""
        number = 2 * self._number
        self._number += 1
        kind = message[0]
        nothing: list[str | None] = [None] * len(layout.places)
        if kind == TRUNCATE:
            self._row(number, "t", None, nothing)
            return
        old: list[_Cell] | None = None
        place = prefix
        if message[place] != NEW:
            old, place = cut(message, place + 1, layout.width)
            old = [old[one] for one in layout.places]
        if kind == DELETE:
            self._delete(number, layout, old)
            return
        new, _ = cut(message, place + 1, layout.width)
        new = [new[one] for one in layout.places]
        if old is not None:
            new = [then if now[0] == UNCHANGED and then[0] == TEXT else now for now, then in zip(new, old, strict=True)]
        self._write(number, layout, old, new)

    def _write(self, number: int, layout: Layout, old: list[_Cell] | None, new: list[_Cell]) -> None:
        values = [text for _, text in new]
        partial = any(kind == UNCHANGED for kind, _ in new)
        mark = "".join("1" if kind == UNCHANGED else "0" for kind, _ in new) if partial else None
        if not layout.key:
            if old is not None:
                self._delete(number, layout, old)
            self._row(number + 1, "i", mark, values)
            return
        if old is not None and any(old[one][0] == TEXT and old[one] != new[one] for one in layout.key):
            if partial:
                self._row(number + 1, "m", mark, values, [old[one][1] for one in layout.key])
                return
            self._delete(number, layout, old)
        self._row(number + 1, "u", mark, values)

    def _delete(self, number: int, layout: Layout, old: list[_Cell] | None) -> None:
        values = [text for _, text in old or ()]
        kept = [text if not layout.key or place in layout.key else None for place, text in enumerate(values)]
        self._row(number, "d", None, kept)

    def _row(
        self, ord_: int, op: str, mark: str | None, values: Sequence[str | None], key: Sequence[str | None] = ()
    ) -> None:
        self._ords.append(ord_)
        self._ops.append(op)
        self._marks.append(mark)
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        for place, column in enumerate(self._keys):
            column.append(key[place] if key else None)

    def table(self) -> pa.Table:
        """Return what was added."""
        strings = [self._ops, self._marks, *self._columns]
        names = ["op", "x", *(f"c{number}" for number in range(len(self._columns)))]
        if "m" in self._ops:
            strings += self._keys
            names += [f"k{place}" for place in range(len(self._keys))]
        arrays = [pa.array(self._ords, pa.int64()), *(pa.array(column, pa.string()) for column in strings)]
        return pa.table(arrays, names=["ord", *names])


def rows_of(layouts: Layouts, pieces: Sequence[bytes]) -> pa.Table:
    """Return the rows of pieces of one table version, in the layout of `cdc_runner.capture.base`.

    Args:
        layouts: by the number in the headers of the pieces.
        pieces: in stream order.
    """
    few = sum(HEADER.unpack_from(piece)[2] for piece in pieces) <= PLAIN_MESSAGES
    few = few and sum(map(len, pieces)) <= PLAIN_BYTES
    return (decode_plainly if few else decode)(layouts, pieces)


def decode_plainly(layouts: Layouts, pieces: Sequence[bytes]) -> pa.Table:
    """Return the rows of pieces of one table version; see `columns.decode`."""
    headers = [HEADER.unpack_from(piece) for piece in pieces]
    first = layouts[headers[0][0]]
    rows = PlainRows(len(first.places), len(first.key))
    for piece, (layout, prefix, _, _) in zip(pieces, headers, strict=True):
        for message in messages_of(piece):
            rows.add(layouts[layout], prefix, message)
    return rows.table()
