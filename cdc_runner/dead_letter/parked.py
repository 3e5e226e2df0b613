"""What is parked: batches, their changes, and the form of both in Redis.

An entry has the fields kind (change, more, end) and head (JSON of `Head`). A change has its description (JSON) and its
rows (Arrow stream, zstd), of which further entries (more) may hold the rest. The end has the number of entries and
their bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.net import NetChange
from cdc_runner.spec import ResolvedSync

Segments = Iterable[Sequence[tuple[ResolvedSync, NetChange]]]
Fields = Mapping[bytes, bytes]
Entry = tuple[bytes, Fields]
"""An entry of the stream: its id, and what it holds."""


@dataclass(frozen=True, slots=True)
class Span:
    """What is parked.

    Attributes:
        after: position after which the first batch begins.
        through: position of the last transaction.
        batches: how many.
        size: bytes in Redis.
    """

    after: Position
    through: Position
    batches: int
    size: int

    def follows(self, position: Position) -> bool:
        """Tell whether a destination at this position can go on with what is parked."""
        return self.after <= position <= self.through


@dataclass(frozen=True, slots=True)
class ParkedChange:
    """A net change with the names of its tables; `origin` is the source's schema where a shape was applied."""

    source: TableId
    target: TableId
    change: NetChange
    origin: TableSchema | None


@dataclass(frozen=True, slots=True)
class ParkedBatch:
    """A batch that was parked.

    Attributes:
        number: counted within the stream.
        last: position of its last transaction.
        commit_time: its commit time at the source, seconds since the epoch.
        segments: yields its changes, read from Redis piece by piece; may be called again.
    """

    number: int
    last: Position
    commit_time: float
    segments: Callable[[], Iterator[list[ParkedChange]]]


@dataclass(frozen=True, slots=True)
class Head:
    """What every entry says of its batch."""

    number: int
    after: int
    through: int
    commit_at: float
    before: int
    """Bytes of all batches before it, since the stream was empty."""


def read_head(fields: Fields) -> Head:
    """Return what an entry says of its batch."""
    return Head(**json.loads(fields[b"head"]))


def write_head(head: Head) -> bytes:
    """Return it as an entry holds it."""
    return json.dumps(asdict(head)).encode()


def pack(rows: pa.Table) -> bytes:
    """Return rows as a compressed Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def unpack(data: bytes) -> pa.Table:
    """Return the rows of `pack`."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
