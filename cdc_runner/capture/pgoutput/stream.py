"""The engine `pgoutput` as a change stream: no JVM, one thread that reads, one that reports."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import psycopg2
import pyarrow as pa
import structlog

from cdc_runner.capture.assemble import BatchSettings, Decode, assemble
from cdc_runner.capture.base import ChangeBatch, TableVersion
from cdc_runner.capture.buffer import Part, PartBuffer
from cdc_runner.capture.identity import ServerIdentity
from cdc_runner.capture.pgoutput.link import Link
from cdc_runner.capture.pgoutput.relations import Relations
from cdc_runner.capture.pgoutput.transactions import TransactionReader
from cdc_runner.capture.registry import SchemaRegistry
from cdc_runner.capture.rows.columns import kinds_of, runs_of
from cdc_runner.capture.rows.plain import rows_of
from cdc_runner.capture.rows.stamps import ends_of, stamp
from cdc_runner.connections import classify, connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.failpoints import Failpoint, reach
from cdc_runner.position import Position
from cdc_runner.schema import TableId
from cdc_runner.spec import SourceSpec

log = structlog.get_logger()

RECONNECT_SECONDS = 30.0
"""So long without a message a lost connection is opened again; then the pipeline starts anew, with all its checks."""
_PAUSES_SECONDS = (0.1, 0.5, 1.0, 2.0)
_WAIT_SECONDS = 0.5
_HEALED_BY_TIME = (ErrorKind.SOURCE_UNAVAILABLE, ErrorKind.SLOT_IN_USE)


class PgoutputStream:
    """A change stream over PostgreSQL's own protocol.

    Acknowledgement is by whole transactions: the server is told the end of the last one that was acknowledged, never a
    position in between and never what was merely received. A connection that is lost is opened again; what was handed
    over already is passed over when it comes again.
    """

    def __init__(
        self,
        source: SourceSpec,
        registry: SchemaRegistry,
        tables: Sequence[TableId],
        *,
        settings: BatchSettings,
        spill_directory: Path,
        barriers: Sequence[Position] = (),
        origin: str = "any",
        idle_seconds: float = 10.0,
    ) -> None:
        """Start the engine.

        Args:
            source: where to read; its slot and publication exist.
            registry: schemas known at the slot's position.
            tables: the tables to stream.
            settings: sizes of batches.
            spill_directory: where large open transactions go.
            barriers: positions that no batch may span.
            origin: `any`, or `none` to leave out what the source itself received by replication.
            idle_seconds: after so long without a transaction an empty batch tells how far the server has come.
        """
        self._source = source
        self._settings = settings
        self._barriers = sorted(barriers)
        self._origin = origin
        self._idle_seconds = idle_seconds
        self._buffer = PartBuffer(settings.memory_bytes, spill_directory)
        self._relations = Relations(registry, tables, self._type_names)
        self._reader = TransactionReader(
            self._relations, self._buffer.put, spill_directory, barriers, stamped=settings.stamped
        )
        self._link: Link | None = None
        self._identity: ServerIdentity | None = None
        self._durable = 0
        self._stopping = threading.Event()
        self._lost_at: float | None = None
        self._attempts = 0
        self._open = threading.Event()
        self._open.set()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    # -- the capture thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._follow()
                except RosettaError as error:
                    if not self._worth_another_try(error):
                        raise
                    log.warning("capture.reconnect", source=self._source.name, error=str(error))
                    self._reader.restart()
                    self._buffer.drop_open()
                    self._stopping.wait(_PAUSES_SECONDS[min(self._attempts, len(_PAUSES_SECONDS) - 1)])
                    self._attempts += 1
        except RosettaError as error:
            self._fail(error)
        except BaseException as error:
            # The kind of the error and the place are told, never its text, which could hold a value of a row.
            place = "".join(traceback.format_tb(error.__traceback__)[-2:])
            log.error("capture.failed", source=self._source.name, error=type(error).__name__, place=place)
            self._fail(RosettaError(ErrorKind.CAPTURE_FAILED, f"capture failed: {type(error).__name__}"))
        finally:
            self._reader.restart()

    def _fail(self, error: RosettaError) -> None:
        if not self._stopping.is_set():
            self._buffer.fail(error)

    def _worth_another_try(self, error: RosettaError) -> bool:
        """Tell whether a lost connection may be opened again without the checks of a new start."""
        if self._identity is None or error.kind not in _HEALED_BY_TIME or self._stopping.is_set():
            return False
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        return now - self._lost_at < RECONNECT_SECONDS

    def _follow(self) -> None:
        link = Link(self._source, self._origin, self._durable)
        try:
            if self._identity is not None and link.identity != self._identity:
                raise RosettaError(ErrorKind.CAPTURE_FAILED, "source: the address leads to another server by now")
            self._identity = link.identity
            self._durable = max(self._durable, link.durable)
            self._link = link
            # What was acknowledged while the link was made is told by the next status.
            link.confirm(self._durable)
            quiet_since = time.monotonic()
            while not self._stopping.is_set():
                messages, size = link.read(_WAIT_SECONDS)
                # What is read while the stream is held may lie behind the barrier that is to come.
                self._open.wait()
                now = time.monotonic()
                delivered = self._reader.delivered
                if messages:
                    self._lost_at, self._attempts = None, 0
                    self._reader.feed(messages, size)
                    link.received = max(self._reader.delivered, self._reader.idle_end)
                if self._reader.reply_wanted:
                    self._reader.reply_wanted = False
                    link.report()
                if self._reader.delivered > delivered:
                    quiet_since = now
                elif now - quiet_since > self._idle_seconds:
                    self._reader.put_idle(time.time())
                    quiet_since = now
        finally:
            self._link = None
            link.close()

    def _type_names(self, numbers: Iterable[int]) -> dict[int, str]:
        try:
            with (
                closing(connect(self._source.address, application_name="rosetta capture types")) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute("SELECT oid::bigint, typname FROM pg_type WHERE oid = ANY (%s::oid[])", (list(numbers),))
                return dict(cursor.fetchall())
        except psycopg2.Error as error:
            raise classify(error, "source") from error

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
            return self._decode
        ends = ends_of(mark for part in parts for mark in part.marks)

        def stamped(version: TableVersion, pieces: Sequence[bytes]) -> pa.Table:
            return stamp(self._decode(version, pieces), list(map(runs_of, pieces)), ends, kinds_of(pieces))

        return stamped

    def _decode(self, version: TableVersion, pieces: Sequence[bytes]) -> pa.Table:
        return rows_of(self._relations.layouts, pieces)

    def acknowledge(self, position: Position) -> None:
        """See `ChangeStream.acknowledge`."""
        self._durable = max(self._durable, position.lsn)
        link = self._link
        if link is not None:
            reach(Failpoint.BEFORE_BATCH_FINISHED)
            link.confirm(self._durable)

    def hold(self) -> None:
        """See `ChangeStream.hold`. What was read from the connection already was committed before."""
        self._open.clear()

    def resume(self, barrier: Position | None = None) -> None:
        """See `ChangeStream.resume`."""
        if barrier is not None:
            # A new list: the reader of batches may be looking at the present one.
            self._barriers = sorted([*(one for one in self._barriers if one.lsn > self._durable), barrier])
            self._reader.add_barrier(barrier)
        self._open.set()

    def close(self) -> None:
        """See `ChangeStream.close`."""
        self._stopping.set()
        self._open.set()
        self._buffer.close()
        link = self._link
        if link is not None:
            link.wake()
        self._thread.join(20)
