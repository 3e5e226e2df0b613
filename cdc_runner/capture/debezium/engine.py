"""The Debezium engine as a change stream: its batches cross from Java as a few byte strings, never record by record."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from cdc_runner.capture.assemble import BatchSettings, Decode, assemble
from cdc_runner.capture.base import ChangeBatch, TableVersion
from cdc_runner.capture.buffer import Part, PartBuffer, Payload
from cdc_runner.capture.debezium import (
    convert,
    jvm,
    large_values,
    lean,
    row_writer,
    source_block,
    text_converter,
)
from cdc_runner.capture.debezium.properties import engine_properties
from cdc_runner.capture.debezium.row_writer import RowWriter
from cdc_runner.capture.readable import unreadable_columns
from cdc_runner.capture.registry import SchemaRegistry, StreamColumn
from cdc_runner.capture.rows.columns import Layout, kinds_of, runs_of
from cdc_runner.capture.rows.plain import rows_of
from cdc_runner.capture.rows.stamps import ends_of, pack_end, stamp
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.failpoints import Failpoint, reach
from cdc_runner.position import ZERO, Position
from cdc_runner.schema import TableId
from cdc_runner.spec import SourceSpec

log = structlog.get_logger()

Ends = npt.NDArray[np.int64]
"""See `RowWriter.ends`."""

CLOSE_SECONDS = 20.0
"""How long a close waits for the engine to end."""

_TYPE_PARAMETER = "__debezium.source.column.type"
_SERIAL = {"SERIAL": "int4", "BIGSERIAL": "int8", "SMALLSERIAL": "int2"}


class DebeziumStream:
    """A change stream over the Debezium engine, which runs in a thread of this process.

    Acknowledgement is by whole transactions: only END events are marked as processed, and only those at or below the
    position given to `acknowledge`. The mark is set at the engine's next batch, which a heartbeat brings at the latest.
    """

    def __init__(
        self,
        source: SourceSpec,
        registry: SchemaRegistry,
        tables: Sequence[TableId],
        *,
        settings: BatchSettings,
        heap_megabytes: int,
        spill_directory: Path,
        barriers: Sequence[Position] = (),
    ) -> None:
        """Start the engine.

        Args:
            source: where to read; its slot and publication exist.
            registry: schemas known at the slot's position.
            tables: the tables to stream.
            settings: sizes of batches.
            heap_megabytes: the JVM's heap limit.
            spill_directory: where large open transactions go.
            barriers: positions that no batch may span.
        """
        self._registry = registry
        self._settings = settings
        self._barriers = sorted(barriers)
        self._buffer = PartBuffer(settings.memory_bytes, spill_directory)
        self._acknowledged = ZERO
        self._held: deque[tuple[Position, Any]] = deque()
        self._versions: dict[int, TableVersion] = {}
        self._layouts: dict[int, Layout] = {}
        self._stopping = False
        self._open = threading.Event()
        self._open.set()
        marker = convert.new_marker()
        jvm.start(heap_megabytes)
        lean.install()
        large_values.begin(spill_directory)
        text_converter.install()
        source_block.install()
        row_writer.install()
        self._writer = RowWriter(marker, stamped=settings.stamped)
        properties = engine_properties(source, tables, marker, heap_megabytes) | source_block.properties()
        self._engine = _build(properties, self._take_over, self._completed)
        self._failure: RosettaError | None = None
        self._outcome = "the engine ended without a reason"
        self._thread = threading.Thread(target=self._run, name="debezium", daemon=True)
        self._thread.start()

    # -- the engine's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._engine.run()
        except BaseException as error:
            self._outcome = _reason(error)
        if not self._stopping:
            # `run` returns normally even when the connector could not start: nobody asked for it, so it is a failure.
            full = large_values.CANNOT_SPILL in self._outcome
            kind = ErrorKind.SPILL_FAILED if full else ErrorKind.CAPTURE_FAILED
            stopped = RosettaError(kind, f"Debezium stopped: {self._outcome}")
            self._buffer.fail(self._failure or stopped)

    def _completed(self, success: bool, message: str | None, error: Any) -> None:
        if not success:
            self._outcome = _reason(error) if error is not None else (message or "no reason given")

    def _take_over(self, records: Any, committer: Any) -> None:
        """Take over one batch of the engine (its thread, inside Java's `handleBatch`)."""
        try:
            self._receive(records, committer)
        except RosettaError as error:
            # Java ends the engine with an exception of its own, which does not tell the reason.
            self._failure = error
            raise

    def _receive(self, records: Any, committer: Any) -> None:
        self._open.wait()
        if self._stopping:
            return
        self._commit(committer)
        ends = self._writer.ends(records)
        start = first = 0
        for last in self._cuts(ends):
            place = int(ends[last, 0])
            part = self._part(records, start, place + 1, ends[first : last + 1])
            assert part.end is not None, "it is cut behind the end of a transaction"
            self._held.append((part.end, records.get(place)))
            start, first = place + 1, last + 1
            if not self._buffer.put(part):
                return
        size = int(records.size())
        if start < size:
            rest = self._part(records, start, size, ends[first:])
            if rest.payloads:
                self._buffer.put(rest)
        self._commit(committer)

    def _cuts(self, ends: Ends) -> list[int]:
        """Return behind which transactions to cut: the last of the batch, and the last at or below each barrier."""
        count = len(ends)
        if not count:
            return []
        before = np.searchsorted(ends[:, 1], [barrier.lsn for barrier in self._barriers], side="right") - 1
        return sorted({count - 1, *(int(place) for place in before if place >= 0)})

    def _part(self, records: Any, start: int, stop: int, ends: Ends) -> Part:
        """Return the part of some records, in which these transactions end; the last record ends one, if there are."""
        part = Part(end=None, commit_time=0.0, transactions=len(ends))
        if len(ends):
            _, lsn, milliseconds, _ = ends[-1].tolist()
            part.end, part.commit_time = Position(lsn), milliseconds / 1000
            part.numbers = ends[:, 3].astype(">u4").tobytes()
        if self._settings.stamped:
            part.marks += [pack_end(number, lsn, moment / 1000) for _, lsn, moment, number in ends.tolist()]
        found = []
        # A table's next schema replaces the one before: known ones come first, new ones in the order of the stream.
        for piece in self._writer.pieces(records, start, stop):
            version = self._versions.get(piece.table)
            known = version is not None
            found.append((not known, version or self._learn(piece.table), piece))
        for _, version, piece in sorted(found, key=lambda one: (one[0], one[1].number)):
            part.payloads.append((version, Payload(piece.data, piece.messages)))
        return part

    def _learn(self, number: int) -> TableVersion:
        """Find out what a value schema stands for."""
        schema_name, table_name, schema = self._writer.schema(number)
        table, columns = TableId(schema_name, table_name), _columns(schema)
        version = self._registry.resolve(table, columns)
        refused = unreadable_columns(version.schema)
        if refused:
            raise RosettaError(
                ErrorKind.SOURCE_TABLE_UNSUPPORTED,
                f"table {table}: " + "; ".join(f"column {name}: {reason}" for name, reason in refused.items()),
            )
        self._layouts[number] = Layout.of(version.schema, [column.name for column in columns])
        self._versions[number] = version
        return version

    def _commit(self, committer: Any) -> None:
        record = None
        while self._held and self._held[0][0] <= self._acknowledged:
            record = self._held.popleft()[1]
        if record is not None:
            reach(Failpoint.BEFORE_BATCH_FINISHED)
            committer.markProcessed(record)
            committer.markBatchFinished()

    # -- the reader --------------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[ChangeBatch]:
        """See `ChangeStream.batches`."""
        while not self._buffer.closed:
            parts = self._buffer.take(self._settings.max_events, self._settings.max_bytes, lambda: self._barriers, 0.5)
            if parts:
                yield assemble(parts, self._settings.segment_bytes, self._decoding(parts))

    def _decoding(self, parts: Sequence[Part]) -> Decode:
        """Return what decodes the pieces of a batch."""
        if not self._settings.stamped:
            return self._rows
        ends = ends_of(mark for part in parts for mark in part.marks)

        def stamped(version: TableVersion, pieces: Sequence[bytes]) -> pa.Table:
            return stamp(self._rows(version, pieces), list(map(runs_of, pieces)), ends, kinds_of(pieces))

        return stamped

    def _rows(self, version: TableVersion, pieces: Sequence[bytes]) -> pa.Table:
        return rows_of(self._layouts, pieces)

    def acknowledge(self, position: Position) -> None:
        """See `ChangeStream.acknowledge`."""
        self._acknowledged = max(self._acknowledged, position)

    def hold(self) -> None:
        """See `ChangeStream.hold`. A batch that the engine has handed over already was committed before."""
        self._open.clear()

    def resume(self, barrier: Position | None = None) -> None:
        """See `ChangeStream.resume`."""
        if barrier is not None:
            # A new list: the engine's thread and the reader may be looking at the present one.
            self._barriers = sorted([*(one for one in self._barriers if one > self._acknowledged), barrier])
        self._open.set()

    def close(self) -> None:
        """See `ChangeStream.close`."""
        import jpype

        if self._stopping:
            # Another thread closes it; until it is closed the slot is read.
            self._thread.join(CLOSE_SECONDS)
            return
        self._stopping = True
        self._open.set()
        self._buffer.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._engine.close()
            except jpype.JException as error:
                # It refuses while its tasks are starting, and when it is being closed already.
                log.debug("debezium.not_closed_yet", reason=_reason(error))
                self._thread.join(0.1)
            else:
                self._thread.join(2.0)
        if self._thread.is_alive():
            log.warning("debezium.not_closed", seconds=CLOSE_SECONDS)


def _columns(schema: Any) -> list[StreamColumn]:
    """Return the columns of an envelope's row schema, in the order of the source."""
    columns = []
    for field in schema.field("after").schema().fields():
        parameters = field.schema().parameters()
        raw = parameters.get(_TYPE_PARAMETER) if parameters is not None else None
        type_name = None if raw is None else _SERIAL.get(str(raw), str(raw).lower())
        columns.append(StreamColumn(str(field.name()), type_name))
    return columns


def _reason(error: Any) -> str:
    """Return the innermost cause of a Java error in one line."""
    text = str(error)
    seen = 0
    while seen < 20:
        cause = error.getCause() if hasattr(error, "getCause") else None
        if cause is None:
            break
        error, seen = cause, seen + 1
        text = str(error.getMessage() or error)
    return text.splitlines()[0][:500] if text else "no reason given"


def _build(
    properties: dict[str, str],
    receive: Callable[[Any, Any], None],
    completed: Callable[[bool, str | None, Any], None],
) -> Any:
    """Return an engine with our own consumer and completion callback."""
    import jpype

    @jpype.JImplements("io/debezium/engine/DebeziumEngine$ChangeConsumer")
    class Consumer:
        @jpype.JOverride  # type: ignore[untyped-decorator]  # JPype ships no types
        def handleBatch(self, records: Any, committer: Any) -> None:
            receive(records, committer)

        @jpype.JOverride  # type: ignore[untyped-decorator]  # JPype ships no types
        def supportsTombstoneEvents(self) -> bool:
            return True

    @jpype.JImplements("io/debezium/engine/DebeziumEngine$CompletionCallback")
    class Completion:
        @jpype.JOverride  # type: ignore[untyped-decorator]  # JPype ships no types
        def handle(self, success: bool, message: Any, error: Any) -> None:
            completed(bool(success), None if message is None else str(message), error)

    java = jpype.JClass("java.util.Properties")()
    for name, value in properties.items():
        java.setProperty(name, value)
    return row_writer.builder().using(java).using(Completion()).notifying(Consumer()).build()
