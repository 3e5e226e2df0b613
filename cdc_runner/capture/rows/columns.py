"""Row messages of `pgoutput` to rows in text form, cut with numpy: no Python code runs for a row or a value.

A piece holds the row messages of one table as they came, and where each begins:

    layout  uint32   number of the `Layout` that describes the tuples
    prefix  uint32   bytes before a message's first tuple mark: 5, or 9 within a streamed transaction; of Debezium 1
    count   uint32   how many messages
    runs    uint32   how many runs of `stamps` follow; 0 in a stream that is not stamped
    …
    lengths uint32 * count
    messages, one behind the other
    four bytes that say nothing: a length may be read where a value could begin

    I relation N tuple                 insert
    U relation [K|O tuple] N tuple     update; K the old key if it changed, O the whole old row (REPLICA IDENTITY FULL)
    D relation K|O tuple               delete
    T relation                         the table was emptied (the engines take a truncate apart)

    tuple: int16 number of columns, each: n (NULL) | u (large, not changed, not sent) | t int32 length, text

Values are not copied one by one: an Arrow array over the messages themselves has every value as an element, and a
column is what Arrow takes from it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_runner.capture.base import UPDATES
from cdc_runner.schema import TableSchema

HEADER = struct.Struct("<IIII")
RUN_BYTES = 12
PAD = b"\0\0\0\0"
"""The end of a piece."""

INSERT, UPDATE, DELETE, TRUNCATE = b"IUDT"
NEW, KEY, OLD = b"NKO"
TEXT, UNCHANGED = b"tu"

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

_OPS = pa.array(["t", "d", "u", "m", "i"], pa.string())
_T, _D, _U, _M, _I = range(5)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the tuples of a table are laid out at some point of the stream.

    Attributes:
        width: columns of a tuple.
        places: for each column of the schema's `stream_columns`, its place in the tuple.
        key: places of the schema's key among its `stream_columns`; empty for a table without a key.
    """

    width: int
    places: tuple[int, ...]
    key: tuple[int, ...]

    @classmethod
    def of(cls, schema: TableSchema, names: Sequence[str]) -> Layout:
        """Return the layout of tuples whose columns have these names.

        Raises:
            ValueError: the tuples lack a column of the schema.
        """
        places = tuple(names.index(name) for name in schema.stream_names)
        return cls(len(names), places, tuple(schema.stream_names.index(name) for name in schema.key))


Layouts = Sequence[Layout] | Mapping[int, Layout]
"""Layouts by number."""


def runs_of(piece: bytes) -> bytes:
    """Return the runs of a piece."""
    return piece[HEADER.size : HEADER.size + RUN_BYTES * HEADER.unpack_from(piece)[3]]


def kinds_of(pieces: Sequence[bytes]) -> Bytes:
    """Return the first byte of each message of pieces, which says what it is."""
    found = []
    for piece in pieces:
        _, _, count, runs = HEADER.unpack_from(piece)
        place = HEADER.size + RUN_BYTES * runs
        lengths = np.frombuffer(piece, dtype=np.uint32, count=count, offset=place)
        starts = np.zeros(count, dtype=np.int64)
        np.cumsum(lengths[:-1], out=starts[1:])
        found.append(np.frombuffer(piece, dtype=np.uint8)[place + 4 * count + starts])
    return np.concatenate(found)


def pack(messages: Sequence[bytes], head: bytes = b"") -> bytes:
    """Return a piece of its header with the runs, and messages; without a head what follows it."""
    lengths = np.fromiter(map(len, messages), dtype=np.uint32, count=len(messages))
    return b"".join((head, lengths.tobytes(), *messages, PAD))


@dataclass(frozen=True, slots=True)
class _Tuples:
    """Tuples cut into values. The first three have a row for each column and a column for each tuple."""

    kinds: Bytes
    starts: Places
    ends: Places
    end: Places
    """Where each tuple ends."""


class Messages:
    """Messages of one layout and the arrays that read them."""

    def __init__(self, prefix: int, lengths: Sequence[npt.NDArray[np.uint32]], bodies: Sequence[memoryview]):
        """Args:
        prefix: bytes before a message's first tuple mark.
        lengths: of the messages, body by body.
        bodies: messages one behind the other, each body with the end of its piece.
        """
        self.prefix = prefix
        sizes = np.concatenate(lengths)
        self.starts: Places = np.zeros(len(sizes), dtype=np.int64)
        np.cumsum(sizes[:-1], out=self.starts[1:])
        # One body is read where it is: it may be a value of many megabytes.
        inner = [body[: -len(PAD)] for body in bodies[:-1]]
        self.data = b"".join((*inner, bodies[-1])) if inner else bodies[0]
        self.bytes: Bytes = np.frombuffer(self.data, dtype=np.uint8)
        # A big-endian number at each byte: numpy reads them where they are, aligned or not.
        self.numbers = np.ndarray((len(self.data) - 3,), dtype=">i4", buffer=self.data, strides=(1,))

    def cut(self, at: Places, width: int) -> _Tuples:
        """Cut the tuples that begin at the given places."""
        shape = (width, len(at))
        kinds, starts, ends = np.empty(shape, np.uint8), np.empty(shape, np.int64), np.empty(shape, np.int64)
        place = at + 2
        for column in range(width):
            kind = kinds[column] = self.bytes[place]
            place += 1
            text = kind == TEXT
            if text.all():
                lengths = self.numbers[place]
                place += 4
            else:
                lengths = np.where(text, self.numbers[place], 0)
                place += 4 * text
            starts[column] = place
            place += lengths
            ends[column] = place
        return _Tuples(kinds, starts, ends, place)

    def values(self, tuples: _Tuples) -> pa.Array:
        """Return an Arrow array over the messages: each value, and after it what stands before the next one.

        Value `c` of tuple `r` is the element `(r * width + c) * 2`.
        """
        width, count = tuples.starts.shape
        wide = len(self.data) >= 1 << 31
        offsets = np.empty(2 * width * count + 1, dtype=np.int64 if wide else np.int32)
        pairs = offsets[:-1].reshape(count, 2 * width)
        pairs[:, 0::2] = tuples.starts.T
        pairs[:, 1::2] = tuples.ends.T
        offsets[-1] = offsets[-2] if len(offsets) > 1 else 0
        type_ = pa.large_string() if wide else pa.string()
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self.data)]
        return pa.Array.from_buffers(type_, len(offsets) - 1, buffers)


def decode(layouts: Layouts, pieces: Sequence[bytes]) -> pa.Table:
    """Return the rows of pieces of one table version, in the layout of `cdc_runner.capture.base`.

    Args:
        layouts: by number.
        pieces: in stream order.
    """
    tables: list[pa.Table] = []
    first = 0
    only_updates = True
    for layout, messages in _joined(layouts, pieces):
        table, updates = _rows(layout, messages, first)
        tables.append(table)
        only_updates = only_updates and updates
        first += len(messages.starts)
    table = tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default")
    return table.replace_schema_metadata({UPDATES: b""}) if only_updates else table


def _joined(layouts: Layouts, pieces: Sequence[bytes]) -> list[tuple[Layout, Messages]]:
    """Join neighbours of one layout."""
    found: list[tuple[Layout, Messages]] = []
    headers = [HEADER.unpack_from(piece) for piece in pieces]
    begin = 0
    for place in range(1, len(pieces) + 1):
        if place < len(pieces) and headers[place][:2] == headers[begin][:2]:
            continue
        layout, prefix, _, _ = headers[begin]
        run = [
            (piece, count, HEADER.size + RUN_BYTES * runs)
            for piece, (_, _, count, runs) in zip(pieces[begin:place], headers[begin:place], strict=True)
        ]
        lengths = [np.frombuffer(piece, dtype=np.uint32, count=count, offset=at) for piece, count, at in run]
        bodies = [memoryview(piece)[at + 4 * count :] for piece, count, at in run]
        found.append((layouts[layout], Messages(prefix, lengths, bodies)))
        begin = place
    return found


def _rows(layout: Layout, messages: Messages, first: int) -> tuple[pa.Table, bool]:
    """Return the rows of messages, the first of which has a number, and whether all are updates of the same key."""
    marks = messages.bytes[messages.starts + messages.prefix]
    count = len(marks)
    if (marks == NEW).all():
        new = messages.cut(messages.starts + (messages.prefix + 1), layout.width)
        values = messages.values(new)
        ords = np.arange(2 * first + 1, 2 * (first + count), 2, dtype=np.int64)
        ops = pa.repeat(_OPS[_U if layout.key else _I], count)
        columns = [_column(values, new, place) for place in layout.places]
        marked = new.kinds == UNCHANGED
        updates = bool(layout.key) and bool((messages.bytes[messages.starts] == UPDATE).all())
        return _table(ords, ops, _marks(marked, layout), columns, []), updates
    return _Special(layout, messages, marks).table(first), False


def _column(values: pa.Array, tuples: _Tuples, column: int) -> pa.Array:
    """Return one column of some tuples, NULL where there is no text."""
    width, count = tuples.kinds.shape
    if count == 1 and tuples.kinds[column, 0] == TEXT:
        return values.slice(column * 2, 1)
    places = np.arange(column * 2, count * width * 2, width * 2, dtype=np.int64)
    missing = tuples.kinds[column] != TEXT
    return values.take(pa.array(places, mask=missing) if missing.any() else pa.array(places))


def _marks(unchanged: Flags, layout: Layout) -> pa.Array:
    """Return the marks `x` of tuples."""
    count = unchanged.shape[1]
    some = unchanged.any(axis=0)
    if not some.any():
        return pa.nulls(count, pa.string())
    width = len(layout.places)
    letters = np.where(unchanged[list(layout.places)], np.uint8(49), np.uint8(48)).T.copy()
    offsets = np.arange(0, width * count + 1, width, dtype=np.int32)
    marks = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(letters))
    return pc.if_else(pa.array(some), marks, pa.scalar(None, pa.string()))


def _table(ords: Places, ops: pa.Array, marks: pa.Array, columns: list[pa.Array], keys: list[pa.Array]) -> pa.Table:
    names = [*(f"c{number}" for number in range(len(columns))), *(f"k{place}" for place in range(len(keys)))]
    return pa.table([pa.array(ords), ops, marks, *columns, *keys], names=["ord", "op", "x", *names])


class _Special:
    """Messages of which some have an old tuple, or none at all."""

    def __init__(self, layout: Layout, messages: Messages, marks: Bytes) -> None:
        self._layout = layout
        kinds = messages.bytes[messages.starts]
        self._truncates = kinds == TRUNCATE
        self._deletes = kinds == DELETE
        self._olds = ((marks == KEY) | (marks == OLD)) & ~self._truncates
        self._news = (kinds == INSERT) | (kinds == UPDATE)
        at = messages.starts + (messages.prefix + 1)
        old = messages.cut(at[self._olds], layout.width)
        # The new tuple of an update follows the old one and its own mark.
        at[self._olds] = old.end + 1
        new = messages.cut(at[self._news], layout.width)
        self._old_of = np.cumsum(self._olds) - 1
        self._new_of = np.cumsum(self._news) - 1
        old_values, new_values = messages.values(old), messages.values(new)
        self._old_columns = [_column(old_values, old, place) for place in layout.places]
        self._new_columns = [_column(new_values, new, place) for place in layout.places]
        self._unchanged = self._fill(old, new)

    def _fill(self, old: _Tuples, new: _Tuples) -> Flags:
        """Take values that a new tuple leaves out from the old one, where that has them; return what is still out."""
        unchanged: Flags = new.kinds == UNCHANGED
        if not unchanged.any() or not len(old.end):
            return unchanged
        has_old = self._olds[self._news]
        partner = np.where(has_old, self._old_of[self._news], 0)
        for number, place in enumerate(self._layout.places):
            known = unchanged[place] & has_old & (old.kinds[place][partner] == TEXT)
            if known.any():
                taken = self._old_columns[number].take(pa.array(partner))
                self._new_columns[number] = pc.if_else(pa.array(known), taken, self._new_columns[number])
                unchanged[place] &= ~known
        return unchanged

    def _moved(self) -> Flags:
        """Tell of each message whether it is an update that changed the key."""
        moved = np.zeros(len(self._olds), dtype=bool)
        both = self._olds & self._news
        if both.any():
            before, after = pa.array(self._old_of[both]), pa.array(self._new_of[both])
            differ = np.zeros(int(both.sum()), dtype=bool)
            for number in self._layout.key:
                old = self._old_columns[number].take(before)
                unlike = pc.not_equal(old, self._new_columns[number].take(after))
                # A key column that the old tuple does not have did not change.
                differ |= pc.and_(pc.is_valid(old), pc.fill_null(unlike, True)).to_numpy(zero_copy_only=False)
            moved[both] = differ
        return moved

    def table(self, first: int) -> pa.Table:
        """Return the rows, in stream order."""
        layout = self._layout
        marks = _marks(self._unchanged, layout)
        if not layout.key:
            gone, moves = self._olds, np.zeros_like(self._olds)
        else:
            moved = self._moved()
            partial = np.zeros_like(moved)
            partial[self._news] = self._unchanged.any(axis=0)
            moves = moved & partial
            gone = (self._deletes & self._olds) | (moved & ~partial)
        number = np.arange(first, first + len(moves), dtype=np.int64) * 2
        written = np.where(moves[self._news], _M, _U if layout.key else _I)
        codes = np.concatenate([np.full(self._truncates.sum(), _T), np.full(gone.sum(), _D), written])
        ords = np.concatenate([number[self._truncates], number[gone], number[self._news] + 1])
        order = np.argsort(ords, kind="stable")
        blank = int(self._truncates.sum())
        places = pa.array(order)
        left = pa.array(self._old_of[gone])
        columns = []
        for place, (old, new) in enumerate(zip(self._old_columns, self._new_columns, strict=True)):
            # Of a delete only the key counts; the other values are NULL or of no use.
            kept = old.take(left) if not layout.key or place in layout.key else pa.nulls(len(left), old.type)
            columns.append(pa.concat_arrays([pa.nulls(blank, old.type), kept, new]).take(places))
        before = blank + len(left)
        all_marks = pa.concat_arrays([pa.nulls(before, pa.string()), marks]).take(places)
        keys = self._old_keys(moves, before, places) if moves.any() else []
        return _table(ords[order], _OPS.take(pa.array(codes[order])), all_marks, columns, keys)

    def _old_keys(self, moves: Flags, before: int, places: pa.Array) -> list[pa.Array]:
        """Return the old keys of the moves, NULL in all other rows."""
        chosen = pa.array(np.where(moves, self._old_of, 0)[self._news], mask=~moves[self._news])
        keys = []
        for place in self._layout.key:
            old = self._old_columns[place]
            keys.append(pa.concat_arrays([pa.nulls(before, old.type), old.take(chosen)]).take(places))
        return keys
