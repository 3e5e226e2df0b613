"""What every capture engine yields: batches of whole transactions, in text form.

    ChangeStream.batches() -> ChangeBatch -> segments() -> TableChanges.rows (Arrow)

The rows of one table are an Arrow table with these columns, in stream order:

    ord  int64   order of the event among this table's events in the segment
    op   string  'u' the row now has these values (insert or update), 'd' the row with this key is gone,
                 'm' the row's key changed and some values stayed as they are (see below), 't' the table was emptied;
                 for a table without a key 'i' and 'd' of whole rows
    x    string  NULL, or one character a column, '1' where the value did not change and is not in the WAL (TOAST)
    c0 … string  the values of `TableSchema.stream_columns` in PostgreSQL's text form; of a 'd' only the key's (all, for
                 a table without a key)
    k0 … string  only of an 'm': the old key

A stream that was opened with `stamped` adds where each event belongs (`STAMPS`):

    lsn  int64   end LSN of its transaction's commit
    seq  int64   rises within the transaction and table; the same at each replay, whatever other tables are captured
    xid  int64   number of the transaction at the source
    at   double  commit time, seconds since the epoch
    made string  what the source did: 'c' insert, 'u' update, 'd' delete, 't' truncate; an update may be two rows

A segment is a part of a batch that fits in memory; the segments of a batch, applied in order in one destination
transaction, are whole source transactions.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from cdc_runner.position import Position
from cdc_runner.schema import TableSchema

STAMPS = ("lsn", "seq", "xid", "at")
"""Columns that say where an event belongs in the stream."""

KIND = "made"
"""Column of a stamped stream that tells an insert from an update."""

_NUMBER = struct.Struct(">I")

UPDATES = b"updates"
"""In the metadata of rows of which each comes from an update that left the key as it is."""


@dataclass(frozen=True, slots=True)
class TableVersion:
    """A table's schema from some point of the stream on; `number` rises with each change of the table.

    `key_guessed` says that the stream does not tell what identifies rows, and the catalog shows something else than
    before: events up to then have the old rows of another key, or none, and cannot be applied by the new one.
    """

    schema: TableSchema
    number: int
    key_guessed: bool = False


@dataclass(frozen=True, slots=True)
class TableChanges:
    """The changes of one table version in one segment."""

    version: TableVersion
    rows: pa.Table

    @property
    def only_updates(self) -> bool:
        """Whether the engine says that every event changes a row that was there, and leaves its key as it is."""
        return UPDATES in (self.rows.schema.metadata or {})


@dataclass(frozen=True, slots=True)
class Segment:
    """Changes of several tables, applied before the next segment of the batch.

    Tables are independent of each other within a segment: their common transaction commits them together.
    """

    tables: Sequence[TableChanges]


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Whole source transactions, one after the other in commit order.

    Attributes:
        last: position of the last transaction; a destination that stores it holds all of the batch.
        last_commit_time: commit time of the last transaction at the source, seconds since the epoch.
        transactions: how many there are, heartbeats included.
        events: row events, truncates included.
        raw_bytes: size in the form that capture keeps.
        segments: yields the decoded segments; may be called again, and reads spilled parts back from disk.
        release: gives memory and spill files back; call it when every destination is done.
        numbers: of its transactions at the source, four bytes each (see `transaction_numbers`): who reads present rows
            must know which transactions they have to show, and mostly nobody reads any.
    """

    last: Position
    last_commit_time: float
    transactions: int
    events: int
    raw_bytes: int
    segments: Callable[[], Iterator[Segment]]
    release: Callable[[], None]
    numbers: bytes = b""


def transaction_numbers(numbers: bytes) -> frozenset[int]:
    """Return the numbers of transactions, without epoch, of a batch's bytes."""
    return frozenset(number for (number,) in _NUMBER.iter_unpack(numbers))


class ChangeStream(Protocol):
    """A running capture engine. One thread reads batches, any thread acknowledges."""

    def batches(self) -> Iterator[ChangeBatch]:
        """Yield batches until the stream is closed.

        A batch never spans a barrier given when the stream was opened. While nothing happens at the source, the
        iterator waits; heartbeats make it yield batches without events.

        Raises:
            RosettaError: CAPTURE_FAILED and the source's kinds, when the engine ended without being asked.
        """
        ...

    def acknowledge(self, position: Position) -> None:
        """Tell the source that everything up to a position is durable at every destination.

        The source's slot advances to it soon, never beyond it. Idempotent; lower positions are ignored.
        """
        ...

    def hold(self) -> None:
        """Take nothing more from the source until `resume`; what was taken before still goes to the reader.

        Every transaction that was taken committed before this call returned. So the consistent point of a slot that is
        created meanwhile lies behind all of them, and can be made a barrier before anything beyond it is taken. Keep it
        short: the source's server waits.
        """
        ...

    def resume(self, barrier: Position | None = None) -> None:
        """Go on after `hold`; no batch spans the barrier."""
        ...

    def close(self) -> None:
        """End the engine and free the slot; idempotent. Ends a `hold`."""
        ...
