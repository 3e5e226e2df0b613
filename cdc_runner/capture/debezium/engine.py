"""The Debezium engine as a change stream: its batches cross from Java as a few byte strings, never record by record."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from cdc_runner.capture.assemble import BatchSettings, assemble
from cdc_runner.capture.base import ChangeBatch, TableVersion
from cdc_runner.capture.buffer import Part, PartBuffer, Payload
from cdc_runner.capture.debezium import convert, event_meters, jvm, source_block, text_converter
from cdc_runner.capture.debezium.decode import Decoder, parse_end
from cdc_runner.capture.debezium.properties import TRANSACTION_TOPIC, engine_properties
from cdc_runner.capture.debezium.stamps import stamped, transaction_ends
from cdc_runner.capture.readable import unreadable_columns
from cdc_runner.capture.registry import SchemaRegistry, StreamColumn
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import ZERO, Position
from cdc_runner.schema import TableId
from cdc_runner.spec import SourceSpec

log = structlog.get_logger()

_TYPE_PARAMETER = "__debezium.source.column.type"
_SERIAL = {"SERIAL": "int4", "BIGSERIAL": "int8", "SMALLSERIAL": "int2"}


@dataclass(frozen=True, slots=True)
class _Known:
    """What a value schema of the JVM means: a table version, or None for transaction and message events."""

    schema: Any
    version: TableVersion | None
    transaction: bool


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
        self._known: dict[int, _Known] = {}
        self._last_end = ZERO
        self._stopping = False
        self._open = threading.Event()
        self._open.set()
        self._marker = convert.new_marker()
        self._decoder = Decoder(self._marker)
        jvm.start(heap_megabytes)
        text_converter.install()
        source_block.install()
        event_meters.remove()
        self._bridge = jvm.bridge()
        self._is_transaction = self._bridge.on_topic(TRANSACTION_TOPIC)
        properties = engine_properties(source, tables, self._marker, heap_megabytes) | source_block.properties()
        self._engine = _build(properties, self._receive, self._completed)
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
            self._buffer.fail(RosettaError(ErrorKind.CAPTURE_FAILED, f"Debezium stopped: {self._outcome}"))

    def _completed(self, success: bool, message: str | None, error: Any) -> None:
        if not success:
            self._outcome = _reason(error) if error is not None else (message or "no reason given")

    def _receive(self, events: Any, committer: Any) -> None:
        """Take over one batch of the engine (its thread, inside Java's `handleBatch`)."""
        self._open.wait()
        if self._stopping:
            return
        self._commit(committer)
        start = 0
        for end, commit_time, record in self._ends(events):
            stop = events.lastIndexOf(record) + 1
            part = self._part(events.subList(start, stop), end, commit_time)
            self._held.append((end, record))
            self._last_end = end
            start = stop
            if not self._buffer.put(part):
                return
        size = events.size()
        if start < size:
            rest = self._part(events.subList(start, size), None, 0.0)
            if rest.payloads:
                self._buffer.put(rest)
        self._commit(committer)

    def _ends(self, events: Any) -> list[tuple[Position, float, Any]]:
        """Return the END events to cut at: the last of the batch, and the last at or below each barrier in it."""
        transactions = self._bridge.select(events, self._is_transaction)
        cuts: list[tuple[Position, float, Any]] = []
        pending = [barrier for barrier in self._barriers if barrier > self._last_end]
        for place in range(transactions.size() - 1, -1, -1):
            record = transactions.get(place)
            value = str(record.value())
            if '"status":"END"' not in value:
                continue
            lsn, commit_time = parse_end(value)
            end = Position(lsn)
            if not cuts or any(end <= barrier < cuts[-1][0] for barrier in pending):
                cuts.append((end, commit_time, record))
            if not any(barrier < end for barrier in pending):
                break
        cuts.reverse()
        return cuts

    def _part(self, events: Any, end: Position | None, commit_time: float) -> Part:
        part = Part(end=end, commit_time=commit_time, transactions=0)
        unknown: list[tuple[int, Any, bytes]] = []
        found: list[tuple[int, TableVersion, bytes]] = []
        for schema, data in self._bridge.group(events):
            known = self._known.get(self._bridge.identity(schema))
            if known is None:
                unknown.append((self._bridge.first_index(events, schema), schema, data))
            elif known.transaction:
                self._note(part, data)
            elif known.version is not None:
                found.append((0, known.version, data))
        # A table's next schema replaces the one before: known ones come first, new ones in the order of the stream.
        for _, schema, data in sorted(unknown, key=lambda one: one[0]):
            known = self._learn(schema, data)
            if known.transaction:
                self._note(part, data)
            elif known.version is not None:
                found.append((1, known.version, data))
        for _, version, data in sorted(found, key=lambda one: (one[0], one[1].number)):
            part.payloads.append((version, Payload(data, data.count(b"\n") + 1)))
        return part

    def _note(self, part: Part, data: bytes) -> None:
        """Count the transactions that end in a part, and keep their END events when rows are to be stamped."""
        part.transactions += data.count(b'"status":"END"')
        if self._settings.stamped:
            part.marks.append(data)

    def _learn(self, schema: Any, data: bytes) -> _Known:
        """Find out what a value schema stands for, from the first event that has it."""
        event = json.loads(data[: data.find(b"\n")] if b"\n" in data else data)
        known = _Known(schema, None, "status" in event)
        if not known.transaction and event.get("op") != "m" and event.get("source", {}).get("table"):
            table = TableId(event["source"]["schema"], event["source"]["table"])
            version = self._registry.resolve(table, _columns(schema))
            refused = unreadable_columns(version.schema)
            if refused:
                raise RosettaError(
                    ErrorKind.SOURCE_TABLE_UNSUPPORTED,
                    f"table {table}: " + "; ".join(f"column {name}: {reason}" for name, reason in refused.items()),
                )
            known = _Known(schema, version, False)
        # The reference in `_Known` keeps the schema alive, so that its identity is not given to another one.
        self._known[self._bridge.identity(schema)] = known
        return known

    def _commit(self, committer: Any) -> None:
        record = None
        while self._held and self._held[0][0] <= self._acknowledged:
            record = self._held.popleft()[1]
        if record is not None:
            committer.markProcessed(record)
            committer.markBatchFinished()

    # -- the reader --------------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[ChangeBatch]:
        """See `ChangeStream.batches`."""
        while not self._buffer.closed:
            parts = self._buffer.take(self._settings.max_events, self._settings.max_bytes, self._barriers, 0.5)
            if parts:
                yield assemble(parts, self._settings.segment_bytes, self._decoding(parts))

    def _decoding(self, parts: Sequence[Part]) -> Callable[[TableVersion, Sequence[bytes]], Any]:
        """Return what decodes the events of a batch."""
        if not self._settings.stamped:
            return lambda version, pieces: self._decoder.rows(version, b"\n".join(pieces))
        ends = transaction_ends(mark for part in parts for mark in part.marks)

        def decode(version: TableVersion, pieces: Sequence[bytes]) -> Any:
            data = b"\n".join(pieces)
            return stamped(self._decoder.rows(version, data), data, ends)

        return decode

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
        if self._stopping:
            return
        self._stopping = True
        self._open.set()
        self._buffer.close()
        deadline = time.monotonic() + 20
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._engine.close()
            self._thread.join(2.0)


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
    from pydbzengine import BasePythonChangeHandler, DebeziumEngine

    @jpype.JImplements("io/debezium/engine/DebeziumEngine$ChangeConsumer")
    class Consumer:
        @jpype.JOverride  # type: ignore[untyped-decorator]  # JPype ships no types
        def handleBatch(self, events: Any, committer: Any) -> None:
            receive(events, committer)

        @jpype.JOverride  # type: ignore[untyped-decorator]  # JPype ships no types
        def supportsTombstoneEvents(self) -> bool:
            return True

    @jpype.JImplements("io/debezium/engine/DebeziumEngine$CompletionCallback")
    class Completion:
        @jpype.JOverride  # type: ignore[untyped-decorator]  # JPype ships no types
        def handle(self, success: bool, message: Any, error: Any) -> None:
            completed(bool(success), None if message is None else str(message), error)

    class Handler(BasePythonChangeHandler):
        def handleJsonBatch(self, records: Any) -> None:
            raise AssertionError("the own consumer takes the events")

    class Engine(DebeziumEngine):
        # The library's consumer marks every record as processed and takes no completion callback.
        def _build_engine(self) -> Any:
            from pydbzengine.engine._jvm import JDebeziumEngine, JProperties

            java = JProperties()
            for name, value in self.properties.items():
                java.setProperty(name, value)
            builder = JDebeziumEngine.create(self._resolve_format()).using(java)
            return builder.using(Completion()).notifying(Consumer()).build()

    return Engine(properties, Handler()).engine
