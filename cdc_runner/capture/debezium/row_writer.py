"""Debezium's records to row messages inside the JVM, without a JSON text in between.

A batch of the engine becomes one byte string: for each table the messages that `capture.rows.columns` cuts, in the form
of the protocol `pgoutput`. So both engines share all that follows. Debezium's engine is told to hand over its records
as they are, all of a batch at once.

The byte string, little-endian, of n tables:

    n       uint32
    tables  n times: number of the table, messages, bytes of its piece (uint32 each)
    pieces  one behind the other; `layout` in their headers is the number of the table

An update of the key comes from Debezium as two records, a delete and a create, told by their headers from those of two
statements. They become the one message that the server sent, also when a batch ends between them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cdc_runner.capture.debezium import java_classes, large_values
from cdc_runner.capture.debezium import row_writer_source as java
from cdc_runner.capture.debezium.java_classes import ChangedClass, NewClass

_NEIGHBOUR = "io.debezium.connector.postgresql.SourceInfo"
_WHOLE_BATCHES = ChangedClass(
    "io.debezium.embedded.async.ParallelSmtBatchProcessor",
    "io.debezium.embedded.async.RecordProcessor",
    (("processRecords", "(Ljava/util/List;)V", "{ this.processor.process($1); }"),),
)
_BUILDER = "io.debezium.embedded.async.AsyncEmbeddedEngine$AsyncEngineBuilder"

_HEAD = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class Piece:
    """Messages of the records of one value schema: its number, how many messages, and the piece."""

    table: int
    messages: int
    data: bytes


class RowWriter:
    """Makes pieces of the records of a stream. Used by the engine's thread."""

    def __init__(self, unchanged: str, *, stamped: bool) -> None:
        """Args:
        unchanged: what the converter writes in place of an unchanged large value.
        stamped: whether pieces say where their messages belong.
        """
        import jpype

        self._java = jpype.JClass(java.WRITER)(unchanged, stamped)

    def ends(self, records: Any) -> npt.NDArray[np.int64]:
        """Return a row for each transaction that ends in a list of records.

        Its columns: place of its END record, end LSN, time of its commit in milliseconds since the epoch, and its
        number at the source.
        """
        return np.array(self._java.ends(records), dtype=np.int64).reshape(-1, 4)

    def pieces(self, records: Any, start: int, stop: int) -> list[Piece]:
        """Return the row messages of some records of a list, table by table in order of first appearance."""
        data = self._java.write(records, start, stop)
        places, texts = self._java.holePlaces, self._java.holeTexts
        large = [(int(places.get(number)), str(texts.get(number))) for number in range(places.size())]
        return list(_cut(data, large))

    def schema(self, table: int) -> tuple[str, str, Any]:
        """Return what a number stands for: schema and name of the table, and the value schema of its events."""
        found = self._java.described(table)
        return str(found.schemaName), str(found.tableName), found.schema


def _cut(array: Any, large: Sequence[tuple[int, str]] = ()) -> Iterator[Piece]:
    data = memoryview(array)
    count = int.from_bytes(data[:4].tobytes(), "little")
    place = 4 + _HEAD.size * count
    for number in range(count):
        table, messages, size = _HEAD.unpack_from(data, 4 + _HEAD.size * number)
        if messages:
            inside = [one for one in large if place < one[0] <= place + size]
            piece = _filled(data, place, place + size, inside) if inside else data[place : place + size].tobytes()
            yield Piece(table, messages, piece)
        place += size


def _filled(data: memoryview, start: int, stop: int, large: Sequence[tuple[int, str]]) -> bytes:
    """Return what is between two places, with the large values where they belong."""
    parts: list[bytes | memoryview] = []
    for place, text in large:
        parts += [data[start:place], large_values.read(text)]
        start = place
    return b"".join((*parts, data[start:stop]))


def builder() -> Any:
    """Return a builder of an engine that hands over its records as they are; `install` must have run."""
    import jpype

    # Every public way to a builder asks for a format, and with it for a converter.
    constructor = jpype.JClass(_BUILDER).class_.getDeclaredConstructor()
    constructor.setAccessible(True)
    return constructor.newInstance()


@cache
def install() -> None:
    """Define the classes in the running JVM, and let the engine hand over whole batches. Call it before one is built.

    Debezium gives each record to another thread for its transformations, of which there are none here, and waits.

    Raises:
        RuntimeError: no JVM runs in this process, or Debezium's classes are not the expected ones.
    """
    java_classes.load(
        NewClass(java.TABLE, _NEIGHBOUR, java.TABLE_FIELDS, java.TABLE_METHODS),
        NewClass(java.WRITER, _NEIGHBOUR, java.WRITER_FIELDS, java.WRITER_METHODS, java.WRITER_CONSTRUCTOR),
        _WHOLE_BATCHES,
        otherwise="hands over its records in another way",
    )
