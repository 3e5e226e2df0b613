"""Messages of the logical replication protocol, other than those of rows (see `columns`).

Numbers are in network order, times in microseconds since 2000. Within a streamed transaction the messages of rows,
relations, types and truncates have the transaction's number after their first byte.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from cdc_runner.schema import TableId

BEGIN, COMMIT, ORIGIN, RELATION, TYPE, TRUNCATE, MESSAGE = b"BCORYTM"
STREAM_START, STREAM_STOP, STREAM_COMMIT, STREAM_ABORT = b"SEcA"
KEEPALIVE = b"k"[0]

_EPOCH = 946_684_800
_BEGIN = struct.Struct(">QqI").unpack_from
_COMMIT = struct.Struct(">QQq").unpack_from
_KEEPALIVE = struct.Struct(">QqB").unpack_from
_STATUS = struct.Struct(">cQQQqB")
_COLUMN = struct.Struct(">Ii").unpack_from


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as the stream describes it.

    Attributes:
        number: by which messages of rows name it, as bytes.
        table: schema and name; of a leaf partition the root's when the publication says so.
        columns: name and type number of each column of its tuples.
        identity: what identifies its rows now (`pg_class.relreplident`).
        key: the columns that do; all of them where whole rows do.
    """

    number: bytes
    table: TableId
    columns: tuple[tuple[str, int], ...]
    identity: str
    key: tuple[str, ...]


BEGIN_NUMBER = slice(17, 21)
"""Where the number of a transaction stands in the message that begins it."""


def parse_begin(message: bytes) -> tuple[int, int]:
    """Return the LSN of the commit record of the transaction that begins, and the transaction's number."""
    lsn, _, number = _BEGIN(message, 1)
    return lsn, number


def parse_commit(message: bytes, place: int = 2) -> tuple[int, float]:
    """Return the end LSN of a commit and its time in seconds since the epoch.

    Args:
        message: a commit, or one of a streamed transaction.
        place: where its flags have ended: 2, of a streamed one 6.
    """
    _, end, moment = _COMMIT(message, place)
    return end, moment / 1e6 + _EPOCH


def parse_relation(message: bytes, place: int) -> Relation:
    """Return the description of a table.

    Args:
        message: the message.
        place: where the relation's number stands: 1, within a streamed transaction 5.
    """
    number = message[place : place + 4]
    schema, place = _string(message, place + 4)
    name, place = _string(message, place)
    identity = chr(message[place])
    (count,) = struct.unpack_from(">h", message, place + 1)
    place += 3
    columns, key = [], []
    for _ in range(count):
        part_of_key = message[place] & 1
        column, place = _string(message, place + 1)
        type_number, _ = _COLUMN(message, place)
        place += 8
        columns.append((column, type_number))
        if part_of_key:
            key.append(column)
    return Relation(number, TableId(schema or "pg_catalog", name), tuple(columns), identity, tuple(key))


def parse_type(message: bytes, place: int) -> tuple[int, str]:
    """Return number and name of a type; of a domain the name of its base type."""
    (number,) = struct.unpack_from(">I", message, place)
    _, place = _string(message, place + 4)
    name, _ = _string(message, place)
    return number, name


def parse_truncate(message: bytes, place: int) -> list[bytes]:
    """Return the numbers of the relations that a truncate empties."""
    (count,) = struct.unpack_from(">I", message, place)
    return [message[place + 5 + 4 * one : place + 9 + 4 * one] for one in range(count)]


def parse_keepalive(message: bytes) -> tuple[int, bool]:
    """Return the LSN up to which the server has decoded, and whether it waits for a status."""
    end, _, reply = _KEEPALIVE(message, 1)
    return end, bool(reply)


def status(received: int, durable: int, *, ask: bool) -> bytes:
    """Return the message that tells the server how far we are.

    Args:
        received: LSN that was read; the server only shows it.
        durable: LSN up to which the server need not send again; 0 says nothing.
        ask: whether the server shall answer at once.
    """
    now = int((time.time() - _EPOCH) * 1e6)
    return _STATUS.pack(b"r", max(received, durable), durable, durable, now, ask)


def _string(message: bytes, place: int) -> tuple[str, int]:
    end = message.index(0, place)
    return message[place:end].decode(), end + 1
