"""Initial load: chunks of source tables straight into their targets by COPY, under one exported snapshot."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pyarrow as pa
import structlog

from cdc_runner.capture.publication import SnapshotSlot
from cdc_runner.connections import classify, connect
from cdc_runner.destinations.base import Computed, LoadChunk, TableLoad
from cdc_runner.destinations.chunks import TableRewrittenError, page_range
from cdc_runner.destinations.letters import LetterSink
from cdc_runner.destinations.postgres import ddl, state, statements, types
from cdc_runner.destinations.postgres.binary_copy import BINARY, is_portable
from cdc_runner.destinations.postgres.isolate import is_row_error
from cdc_runner.destinations.postgres.load_refused import RefusedLoad
from cdc_runner.destinations.postgres.lookups import PostgresLookups
from cdc_runner.destinations.postgres.membership import PostgresMembership
from cdc_runner.destinations.postgres.pipe import copy_across
from cdc_runner.destinations.postgres.statements import TargetShape
from cdc_runner.failpoints import Failpoint, reach
from cdc_runner.schema import TableId
from cdc_runner.shaping.custom_source import CustomSource
from cdc_runner.shaping.mask import copy_field
from cdc_runner.shaping.net import NetKind
from cdc_runner.spec import PipelineSettings, PostgresAddress, ResolvedSync

if TYPE_CHECKING:
    from cdc_runner.destinations.postgres.destination import PostgresDestination

log = structlog.get_logger()


class InitialLoad:
    """Copies tables of one destination in parallel. Each chunk is one destination transaction with its own mark."""

    def __init__(
        self,
        source: PostgresAddress,
        destination: PostgresDestination,
        pipeline: str,
        settings: PipelineSettings,
        snapshot: SnapshotSlot,
        *,
        stopping: threading.Event,
        progress: Callable[[ResolvedSync, int], None],
    ) -> None:
        """Args:
        source: where to read.
        destination: opened; its session is used between chunks only.
        pipeline: identity under which the plan is kept.
        settings: number of workers.
        snapshot: held open by the caller.
        stopping: set to end early, between two chunks.
        progress: told of rows copied into a table.
        """
        self._source = source
        self._destination = destination
        self._pipeline = pipeline
        self._settings = settings
        self._snapshot = snapshot
        self._stopping = stopping
        self._progress = progress
        self._failure: BaseException | None = None
        self._binary: dict[TableId, bool] = {}

    def run(self, loads: Sequence[TableLoad]) -> None:
        """Copy every chunk that is not done, then make the tables ready.

        Raises:
            RosettaError: the first failure; done chunks stay done.
        """
        work: queue.SimpleQueue[tuple[TableLoad, LoadChunk]] = queue.SimpleQueue()
        left: dict[TableId, int] = {}
        for load in loads:
            pending = [chunk for chunk in load.chunks if chunk.row_count is None]
            left[load.state.sync.target] = len(pending)
            for chunk in pending:
                work.put((load, chunk))
            if load.computed is not None:
                self._compute(load, load.computed)
            elif not pending:
                self._finish(load)
        lock = threading.Lock()
        workers = 1 if self._destination.ordered else max(1, min(self._settings.load_workers, work.qsize()))
        threads = [
            threading.Thread(target=self._work, args=(work, left, lock), name=f"load-{number}", daemon=True)
            for number in range(workers if work.qsize() else 0)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(
        self, work: queue.SimpleQueue[tuple[TableLoad, LoadChunk]], left: dict[TableId, int], lock: threading.Lock
    ) -> None:
        reader = writer = None
        try:
            reader = self._reader()
            writer = self._destination.connect_writer()
            while not self._stopping.is_set() and self._failure is None:
                try:
                    load, chunk = work.get_nowait()
                except queue.Empty:
                    return
                try:
                    rows = self._copy(reader, writer, load, chunk)
                except psycopg2.Error as error:
                    sink = self._destination.load_sink
                    if sink is None or not is_row_error(error.pgcode):
                        raise
                    # The copy out was cut off, and with it the session that reads.
                    reader.close()
                    reader = self._reader()
                    rows = self._copy_without_refused(reader, writer, load, chunk, sink)
                self._progress(load.state.sync, rows)
                with lock:
                    left[load.state.sync.target] -= 1
                    done = left[load.state.sync.target] == 0
                if done:
                    self._finish(load)
        except BaseException as error:
            self._failure = self._failure or classify(error, "destination")
        finally:
            for connection in (reader, writer):
                if connection is not None:
                    connection.close()

    def _compute(self, load: TableLoad, computed: Computed) -> None:
        """Fill a target whose rows are computed, in one transaction."""
        target, shape = load.state.sync.target, self._shape(load)
        source = CustomSource(self._source, self._pipeline, self._snapshot.import_statement())
        connection = self._destination.connect_writer()
        written = 0
        try:
            with connection, connection.cursor() as cursor:
                state.lock_position(cursor, self._pipeline, self._destination.epoch)
                members = PostgresMembership(cursor, self._pipeline, target)
                members.clear()
                cursor.execute(f"TRUNCATE {target.quoted}")

                def write(rows: pa.Table) -> None:
                    nonlocal written
                    fields = [[copy_field(text) for text in column.to_pylist()] for column in rows.columns]
                    lines = [b"\t".join(row) for row in zip(*fields, strict=True)]
                    if lines:
                        data = io.BytesIO(b"\n".join(lines) + b"\n")
                        cursor.copy_expert(f"COPY {target.quoted} ({shape.names()}) FROM STDIN", data, size=1 << 18)
                    written += len(lines)
                    self._progress(load.state.sync, len(lines))

                computed.load(source, members, PostgresLookups(cursor), write)
        except psycopg2.Error as error:
            raise classify(error, "destination") from error
        finally:
            source.close()
            connection.close()
        log.info("load.computed", table=str(target), rows=written)
        self._finish(load)

    def _reader(self) -> psycopg2.extensions.connection:
        """Return a session of the source that sees the snapshot."""
        reader = connect(self._source, application_name=f"rosetta {self._pipeline} load")
        reader.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with reader.cursor() as cursor:
            cursor.execute(self._snapshot.import_statement())
        return reader

    def _shape(self, load: TableLoad) -> TargetShape:
        schema = load.state.schema
        column_types = [types.target_type(one, self._destination.map_schema) for one in schema.stream_columns]
        return TargetShape.of(load.state.sync.target, schema, column_types)

    def _copy(
        self,
        reader: psycopg2.extensions.connection,
        writer: psycopg2.extensions.connection,
        load: TableLoad,
        chunk: LoadChunk,
    ) -> int:
        target, shape = load.state.sync.target, self._shape(load)
        copy_out, mask = _copy_out(load, chunk, shape), None if load.plan is None else load.plan.copy_masker()
        with writer, writer.cursor() as cursor:
            if load.resumed and shape.key:
                staging = "pg_temp.rosetta_load"
                cursor.execute(f"DROP TABLE IF EXISTS {staging}")
                cursor.execute(statements.create_staging(NetKind.MERGE, shape, staging))
                cursor.execute(f"ALTER TABLE {staging} ALTER d SET DEFAULT false")
                places = ", ".join(f"c{place}" for place in shape.written)
                copy_across(reader, copy_out, cursor, f"COPY {staging} ({places}) FROM STDIN", mask)
                rows = cursor.rowcount
                cursor.execute(statements.upsert(shape, staging, partial=False))
            else:
                form = self._form(reader, writer, load, chunk, shape)
                copy_in = f"COPY {target.quoted} ({shape.names()}) FROM STDIN{form}"
                copy_across(reader, copy_out + form, cursor, copy_in, mask)
                rows = cursor.rowcount
            reach(Failpoint.AFTER_COPY)
            self._check_not_rewritten(reader, chunk)
            state.finish_chunk(cursor, self._pipeline, self._destination.epoch, target, chunk, rows)
        return rows

    def _form(
        self,
        reader: psycopg2.extensions.connection,
        writer: psycopg2.extensions.connection,
        load: TableLoad,
        chunk: LoadChunk,
        shape: TargetShape,
    ) -> str:
        """Return the option of COPY for the form in which rows go across."""
        target = load.state.sync.target
        if load.plan is not None:
            # Masks are put into the text; renamed columns have other names here and there.
            return ""
        if target not in self._binary:
            names = [shape.columns[place] for place in shape.written]
            self._binary[target] = is_portable(reader, chunk.relation, writer, target, names)
        return BINARY if self._binary[target] else ""

    def _copy_without_refused(
        self,
        reader: psycopg2.extensions.connection,
        writer: psycopg2.extensions.connection,
        load: TableLoad,
        chunk: LoadChunk,
        sink: LetterSink,
    ) -> int:
        """Copy a chunk of which rows are refused: those go to the dead letters."""
        target, shape = load.state.sync.target, self._shape(load)
        mask = None if load.plan is None else load.plan.copy_masker()
        refused = RefusedLoad(self._pipeline, sink, self._settings.dead_letter_max_entries)
        try:
            with writer, writer.cursor() as cursor:
                rows = refused.write(
                    cursor,
                    load,
                    shape,
                    lambda copy_in: copy_across(reader, _copy_out(load, chunk, shape), cursor, copy_in, mask),
                    lambda: state.lock_position(cursor, self._pipeline, self._destination.epoch),
                )
                self._check_not_rewritten(reader, chunk)
                state.finish_chunk(cursor, self._pipeline, self._destination.epoch, target, chunk, rows)
        except BaseException:
            refused.withdraw()
            raise
        log.warning("load.rows_refused", table=str(target), chunk=chunk.number, rows=len(refused.stored))
        return rows

    def _check_not_rewritten(self, reader: psycopg2.extensions.connection, chunk: LoadChunk) -> None:
        """A relation that was rewritten or truncated after the snapshot looks empty to it: such a copy is void."""
        with reader.cursor() as cursor:
            cursor.execute("SELECT pg_relation_filenode(%s::regclass)", (chunk.relation.quoted,))
            row = cursor.fetchone()
        if row is None or row[0] != chunk.filenode:
            raise TableRewrittenError(chunk.relation)

    def _finish(self, load: TableLoad) -> None:
        """Add the key, and mark the table as ready."""
        if self._stopping.is_set():
            return
        target = load.state.sync.target
        connection = self._destination.connect_writer()
        try:
            with connection, connection.cursor() as cursor:
                ddl.add_key(connection, target, load.state.schema)
                state.mark_ready(cursor, self._pipeline, target)
                state.forget_chunks(cursor, self._pipeline, target)
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"ANALYZE {target.quoted}")
        except psycopg2.Error as error:
            raise classify(error, "destination") from error
        finally:
            connection.close()
        log.info("load.table_ready", table=str(target), binary=self._binary.get(target, False))


def _copy_out(load: TableLoad, chunk: LoadChunk, shape: TargetShape) -> str:
    """Return the statement that reads a chunk's rows at the source."""
    plan = load.plan
    listed, condition = (shape.names(), None) if plan is None else (plan.select_list(load.state.snapshot), plan.filter)
    return f"COPY (SELECT {listed} FROM ONLY {chunk.relation.quoted}{page_range(chunk, condition)}) TO STDOUT"
