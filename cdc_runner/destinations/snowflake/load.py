"""Initial load: rows as NDJSON from the source server straight into landing tables, under one exported snapshot."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

import psycopg2
import psycopg2.extensions
import structlog

from cdc_runner.capture.publication import SnapshotSlot
from cdc_runner.connections import classify, connect
from cdc_runner.destinations.base import LoadChunk, TableLoad, TableState
from cdc_runner.destinations.chunks import TableRewrittenError, page_range
from cdc_runner.destinations.snowflake import naming
from cdc_runner.destinations.snowflake.channel import Channel, Patience, RowsRejected
from cdc_runner.destinations.snowflake.divert import Aside
from cdc_runner.destinations.snowflake.pack import Misfit, Packer, masked
from cdc_runner.destinations.snowflake.refusals import sent_change
from cdc_runner.destinations.snowflake.rows import Shape
from cdc_runner.destinations.snowflake.session import Session
from cdc_runner.destinations.snowflake.source_json import LOAD_ORDINAL, chunk_ordinal, select_rows
from cdc_runner.destinations.snowflake.sql import literal
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId, quote_identifier
from cdc_runner.spec import PipelineSettings, PostgresAddress, ResolvedSync

log = structlog.get_logger()


class SnowflakeLoad:
    """Loads tables of one destination in parallel.

    A loaded row's position is the snapshot's, above every event at or below it; a truncate just before the rows makes
    everything that landed earlier void. Nothing is merged before the table is complete. A load that was interrupted
    starts again, after its rows are removed.
    """

    def __init__(
        self,
        session: Session,
        source: PostgresAddress,
        pipeline: str,
        settings: PipelineSettings,
        snapshot: SnapshotSlot,
        patience: Patience,
        stopping: threading.Event,
        progress: Callable[[ResolvedSync, int], None],
        keep: Callable[[Sequence[Aside], tuple[Position, float]], None] | None = None,
    ) -> None:
        """Args:
        session: of the destination.
        source: where to read.
        pipeline: shown in `pg_stat_activity`.
        settings: number of workers.
        snapshot: held open by the caller.
        patience: how long channels wait.
        stopping: set to end early, between two chunks.
        progress: told of rows copied into a table.
        keep: stores rows that cannot be carried, durably; without it one ends the load.
        """
        self._keep = keep
        self._session = session
        self._source = source
        self._pipeline = pipeline
        self._settings = settings
        self._snapshot = snapshot
        self._patience = patience
        self._stopping = stopping
        self._progress = progress
        self._failure: BaseException | None = None
        self._left: dict[TableId, int] = {}
        self._lock = threading.Lock()

    @staticmethod
    def remove_left_rows(session: Session, known: TableState) -> None:
        """Remove what an interrupted load has landed, once all of it is durable."""
        names = session.naming.table(known.sync.target)
        for worker in range(MAX_WORKERS):
            channel = Channel(session.streaming, names.pipe, f"{names.channel}_LOAD{worker}")
            # Opening waits for rows on their way, which would land after the removal.
            channel.open()
            channel.drop()
        lsn = known.snapshot.lsn
        between = f"{literal(str(Position(lsn, LOAD_ORDINAL)))} AND {literal(str(Position(lsn, (1 << 64) - 1)))}"
        session.sql.run(
            f"DELETE FROM {names.landing.quoted} WHERE {quote_identifier(naming.POSITION)} BETWEEN {between}",
            "remove the rows of an interrupted load",
        )

    def run(self, loads: Sequence[TableLoad]) -> None:
        """Load every table and mark it as ready.

        Raises:
            RosettaError: the first failure; tables that are ready stay so.
        """
        work: queue.SimpleQueue[tuple[TableLoad, LoadChunk]] = queue.SimpleQueue()
        for load in loads:
            self._left[load.state.sync.target] = len(load.chunks)
            self._begin(load)
            for chunk in load.chunks:
                work.put((load, chunk))
        count = max(1, min(self._settings.load_workers, MAX_WORKERS, work.qsize()))
        threads = [
            threading.Thread(target=self._work, args=(work, number), name=f"load-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _begin(self, load: TableLoad) -> None:
        """Land the truncate that makes everything before the load void."""
        shape = self._session.objects.shape(load.state.schema, load.state.sync)
        position = str(Position(load.state.snapshot.lsn, LOAD_ORDINAL))
        channel = self._channel(load, 0)
        packer = Packer(self._session.address.compression)
        values = {naming.POSITION: position, naming.OPERATION: "t", naming.COMMITTED_AT: _now()}
        channel.send(packer.single({**values, **dict.fromkeys(_absent(shape))}, position))
        channel.settle()

    def _channel(self, load: TableLoad, worker: int) -> Channel:
        session, names = self._session, self._session.naming.table(load.state.sync.target)
        name = f"{names.channel}_LOAD{worker}"
        channel = Channel(
            session.streaming, names.pipe, name, fence=session.store.check_holder, patience=self._patience
        )
        channel.open()
        return channel

    def _work(self, work: queue.SimpleQueue[tuple[TableLoad, LoadChunk]], number: int) -> None:
        reader = None
        channels: dict[TableId, Channel] = {}
        try:
            reader = connect(self._source, application_name=f"rosetta {self._pipeline} load")
            reader.set_session(isolation_level="REPEATABLE READ", readonly=True)
            with reader.cursor() as cursor:
                cursor.execute(self._snapshot.import_statement())
            while not self._stopping.is_set() and self._failure is None:
                try:
                    load, chunk = work.get_nowait()
                except queue.Empty:
                    return
                target = load.state.sync.target
                channel = channels.get(target) or self._channel(load, number)
                channels[target] = channel
                rows = self._copy(reader, channel, load, chunk)
                self._progress(load.state.sync, rows)
                with self._lock:
                    self._left[target] -= 1
                    done = self._left[target] == 0
                if done:
                    self._finish(load)
        except RowsRejected as error:
            self._failure = self._failure or RosettaError(
                ErrorKind.DESTINATION_ROW_REJECTED,
                f"Snowflake dropped {error.missing} rows of a load up to {error.through}; it starts again",
            )
        except BaseException as error:
            self._failure = self._failure or classify(error, "source")
        finally:
            if reader is not None:
                reader.close()

    def _copy(self, reader: psycopg2.extensions.connection, channel: Channel, load: TableLoad, chunk: LoadChunk) -> int:
        schema, lsn = load.state.schema, load.state.snapshot.lsn
        shape = self._session.objects.shape(schema, load.state.sync)
        plan = load.plan
        rows = f"ONLY {chunk.relation.quoted}{page_range(chunk, None if plan is None else plan.filter)}"
        select = select_rows(shape, lsn, chunk.number, _now(), rows, plan)
        first = chunk_ordinal(chunk.number)
        misfits: list[Misfit] = []
        packer = Packer(
            self._session.address.compression,
            channel.send,
            lambda row: str(Position(lsn, first + row)),
            schema.table,
            None if self._keep is None else misfits.append,
        )
        with reader.cursor() as cursor:
            # The lines hold neither quotes nor delimiters of this format, so they come out as they are.
            options = "FORMAT csv, QUOTE E'\\x01', DELIMITER E'\\x02'"
            cursor.copy_expert(f"COPY ({select}) TO STDOUT ({options})", masked(packer, shape, plan), size=1 << 18)
            packer.flush()
            cursor.execute("SELECT pg_relation_filenode(%s::regclass)", (chunk.relation.quoted,))
            row = cursor.fetchone()
        if row is None or row[0] != chunk.filenode:
            raise TableRewrittenError(chunk.relation)
        channel.settle()
        if misfits and self._keep is not None:
            sync = load.state.sync
            self._keep([_aside(sync, shape, one) for one in misfits], (load.state.snapshot, time.time()))
        return packer.rows - len(misfits)

    def _finish(self, load: TableLoad) -> None:
        if self._stopping.is_set():
            return
        session = self._session
        names = session.naming.table(load.state.sync.target)
        session.store.mark_ready(names.target, True)
        for worker in range(MAX_WORKERS):
            session.streaming.drop_channel(names.pipe, f"{names.channel}_LOAD{worker}")
        log.info("load.table_ready", table=str(load.state.sync.target))


MAX_WORKERS = 8


def _aside(sync: ResolvedSync, shape: Shape, misfit: Misfit) -> Aside:
    return Aside(sent_change(sync, shape, misfit.row, misfit.reason), misfit.position)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())


def _absent(shape: Shape) -> list[str]:
    return [naming.TRANSACTION, naming.UNCHANGED, *shape.columns.values()]
