"""One backfill, for as long as one window lasts: chunks that are not done are copied, and marked as done."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from typing import TypeVar

import psycopg2
import psycopg2.extensions
import structlog
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cdc_runner.backfill import extra
from cdc_runner.backfill.merge import ChunkMerge
from cdc_runner.backfill.pace import Pace
from cdc_runner.backfill.rows import RowSource, check_not_rewritten, estimated_rows, refused_filter
from cdc_runner.backfill.window import Interrupted, Side, Window, WindowVoid, Work
from cdc_runner.capture.inspect import read_tables
from cdc_runner.catalog import backfills
from cdc_runner.catalog.backfills import ChunkRow, Task
from cdc_runner.catalog.database import session_scope
from cdc_runner.connections import classify, connect
from cdc_runner.destinations.base import LoadChunk, TableState
from cdc_runner.destinations.chunks import TableRewrittenError, plan_chunks
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId
from cdc_runner.spec import ResolvedSync

log = structlog.get_logger()

_T = TypeVar("_T")

RETRY_SECONDS = 2.0
CHUNK_SECONDS = 5
"""Longest time that the limit of rate lets one chunk take."""
LOCK_NOT_AVAILABLE = "55P03"
MOST_PASSES = 5
"""How often rows are read once more that got another key just then; one that does so each time stays as it is."""


class TurnEnd(StrEnum):
    """How a turn ended."""

    DONE = "done"
    MORE = "more"
    INTERRUPTED = "interrupted"


class Turn:
    """A turn of one backfill."""

    def __init__(
        self,
        catalog: Engine,
        task: Task,
        sync: ResolvedSync,
        side: Side,
        work: Work,
        paused: Callable[[], str | None],
        instead_of: TableId | None = None,
    ) -> None:
        """Args:
        catalog: the config database.
        task: the backfill; its target has a key.
        sync: source, target and shape.
        side: where rows come from and go.
        work: to be told when the work must end.
        paused: why backfills of the source are to wait now; None when they may go on.
        instead_of: the target that the destination knows, where the task's is a table that is built to replace it.
        """
        self._catalog = catalog
        self._task = task
        self._sync = sync
        self._side = side
        self._work = work
        self._paused = paused
        self._remembered = instead_of or task.target
        self._failure: BaseException | None = None
        self._any_moved = False
        self._pace = Pace(side.settings.backfill_megabytes_per_second * 1_000_000, work)

    def run(self) -> tuple[TurnEnd, str | None]:
        """Copy until the window ends or nothing is left; also return what is waited for, if anything is.

        Raises:
            RosettaError: what stands in the way.
        """
        began = time.monotonic()
        try:
            return self._run()
        except Interrupted:
            return TurnEnd.INTERRUPTED, None
        except WindowVoid as error:
            return TurnEnd.MORE, f"read again: {error}"
        except TableRewrittenError as error:
            # It is another table now, and is cut into chunks anew.
            self._stored(lambda session: backfills.forget_chunks(session, self._task.id))
            return TurnEnd.MORE, error.message
        except psycopg2.Error as error:
            if self._work.ended.is_set():
                return TurnEnd.INTERRUPTED, None
            raise classify(error, "destination") from error
        except RosettaError:
            if self._work.ended.is_set():
                return TurnEnd.INTERRUPTED, None
            raise
        finally:
            seconds = time.monotonic() - began
            self._stored(lambda session: backfills.add_seconds(session, self._task.id, seconds))

    def _run(self) -> tuple[TurnEnd, str | None]:
        with self._source() as source:
            rows = self._rows(source)
            chunks = self._chunks(source, rows)
            # Before the snapshot: what is written anew in between shows by its other file.
            whole = self._cut(source, rows)
        pending = [one for one in chunks if not one.done]
        workers = max(1, min(self._side.settings.backfill_workers, len(pending)))
        window = Window(self._side, rows.shape, self._work, name=self._slot_name())
        window.open(workers + 1)
        try:
            last = window.take_reader()
            with window.reading(last):
                # From here on the watch tells of changes; those before it must not have been missed.
                if read_tables(last, tables=[self._task.source]) != [rows.present] or self._known() != rows.known:
                    raise WindowVoid("the table's schema has changed")
            if self._task.since_xid is None:
                xid = window.since_xid
                self._stored(lambda session: backfills.change(session, self._task.id, since_xid=xid))
            note = self._copy_all(window, rows, pending, workers)
            done = note is None and not self._left(pending)
            if done:
                with self._work.session(self._side.destination.connect_writer()) as writer:
                    done = self._finish(window, rows, last, writer, whole)
        finally:
            window.close()
        return (TurnEnd.DONE if done else TurnEnd.MORE), note

    def _finish(
        self,
        window: Window,
        rows: RowSource,
        reader: psycopg2.extensions.connection,
        writer: psycopg2.extensions.connection,
        chunks: Sequence[LoadChunk],
    ) -> bool:
        """Do what is left when every chunk is done; tell whether that was all."""
        since = self._task.since_xid
        if since is not None:
            # A row that moved between chunks while windows changed, or got another key, was not read; the stream has
            # written it, but not the values that did not change.
            merge = ChunkMerge(self._side, rows, window, self._work, self._pace, writer)
            merge.clear()
            count = 0
            for one in chunks:
                statement = rows.copy_late(one, since)
                count += self._read(window, rows, reader, one, partial(merge.stage, reader, statement))
            window.wait_reached()
            late = merge.merge(count)
            self._any_moved = self._any_moved or late.moved > 0
            counts = {"changed": late.changed, "refused": late.refused}
            self._stored(lambda session: backfills.count_late(session, self._task.id, **counts))
        if self._any_moved and self._task.passes < MOST_PASSES:
            values = {"since_xid": window.since_xid, "passes": self._task.passes + 1}
            self._stored(lambda session: backfills.change(session, self._task.id, **values))
            return False
        if self._task.mode == "RESYNC":
            self._sweep(window, rows, reader, writer, chunks)
        return True

    @contextmanager
    def _source(self) -> Iterator[psycopg2.extensions.connection]:
        """Give a session of the source that sees what is there now."""
        name = f"rosetta {self._side.pipeline} backfill"
        with self._work.session(connect(self._side.source.address, application_name=name)) as source:
            source.autocommit = True
            yield source

    def _slot_name(self) -> str:
        return f"{self._side.source.slot[:40]}_backfill_{self._task.id}"

    # -- the plan ----------------------------------------------------------------------------------------------

    def _rows(self, source: psycopg2.extensions.connection) -> RowSource:
        known = self._known()
        present = read_tables(source, tables=[self._task.source])
        if known is None or not known.ready or not present:
            raise RosettaError(
                ErrorKind.NOT_FOUND, f"table {self._task.source} has no loaded target {self._task.target} any more"
            )
        return RowSource.of(self._sync, known, present[0], self._side.destination.map_schema, self._task.filter_sql)

    def _known(self) -> TableState | None:
        """Return what the destination remembers of the target now."""
        states = self._side.destination.table_states()
        return next((one for one in states if one.sync.target == self._remembered), None)

    def _chunks(self, source: psycopg2.extensions.connection, rows: RowSource) -> list[ChunkRow]:
        chunks = self._stored(lambda session: backfills.chunks_of(session, self._task.id))
        if chunks:
            return chunks
        total = estimated_rows(source, rows)
        listed = [
            ChunkRow(0, one.number, one.relation, one.filenode, one.from_page, one.to_page, False, 0)
            for one in self._cut(source, rows)
        ]
        if not self._stored(lambda session: backfills.write_chunks(session, self._task, listed, total)):
            raise Interrupted
        return self._stored(lambda session: backfills.chunks_of(session, self._task.id))

    def _cut(self, source: psycopg2.extensions.connection, rows: RowSource) -> list[LoadChunk]:
        """Cut the table into chunks; none takes long, since who wants to alter the table waits for so long."""
        settings = self._side.settings
        slow = settings.backfill_megabytes_per_second * 1_000_000 * CHUNK_SECONDS
        size = min(settings.load_chunk_bytes, slow) if slow else settings.load_chunk_bytes
        return plan_chunks(source, rows.present, size)

    def _left(self, pending: Sequence[ChunkRow]) -> bool:
        done = {one.id for one in self._stored(lambda session: backfills.chunks_of(session, self._task.id)) if one.done}
        return any(one.id not in done for one in pending)

    # -- at work ----------------------------------------------------------------------------------------------

    def _copy_all(self, window: Window, rows: RowSource, pending: Sequence[ChunkRow], workers: int) -> str | None:
        """Copy chunks for as long as the window may last; return why no more are begun, if there is a reason."""
        work: queue.SimpleQueue[ChunkRow] = queue.SimpleQueue()
        for one in pending:
            work.put(one)
        notes: list[str] = []
        threads = [
            threading.Thread(
                target=self._worker, args=(window, rows, work, notes), name=f"backfill-{number}", daemon=True
            )
            for number in range(workers if pending else 0)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        return notes[0] if notes else None

    def _worker(self, window: Window, rows: RowSource, work: queue.SimpleQueue[ChunkRow], notes: list[str]) -> None:
        try:
            with ExitStack() as cleanup:
                reader = window.take_reader()
                writer = cleanup.enter_context(self._work.session(self._side.destination.connect_writer()))
                merge = ChunkMerge(self._side, rows, window, self._work, self._pace, writer)
                while self._failure is None:
                    note = self._paused()
                    if note is not None:
                        notes.append(note)
                    if note is not None or time.monotonic() - window.began > self._limit:
                        return
                    try:
                        chunk = work.get_nowait()
                    except queue.Empty:
                        return
                    self._copy(merge, window, reader, chunk)
        except BaseException as error:
            self._failure = self._failure or error

    @property
    def _limit(self) -> float:
        return float(self._side.settings.backfill_window_seconds)

    def _copy(self, merge: ChunkMerge, window: Window, reader: psycopg2.extensions.connection, chunk: ChunkRow) -> None:
        rows = merge.rows
        whole = LoadChunk(chunk.number, chunk.relation, chunk.filenode, chunk.from_page, chunk.to_page)
        merge.clear()
        count = self._read(window, rows, reader, whole, partial(merge.stage, reader, rows.copy_out(whole)))
        window.wait_reached()
        merged = merge.merge(count)
        if merged.moved:
            self._any_moved = True
        lsn = window.position.lsn
        self._stored(
            lambda session: backfills.finish_chunk(
                session,
                self._task.id,
                chunk.id,
                lsn=lsn,
                rows=merged.rows,
                changed=merged.changed,
                refused=merged.refused,
            )
        )

    def _read(
        self,
        window: Window,
        rows: RowSource,
        reader: psycopg2.extensions.connection,
        chunk: LoadChunk,
        copy: Callable[[], int],
    ) -> int:
        """Read a chunk; return what `copy` does, which copies it.

        Raises:
            WindowVoid, TableRewrittenError: the table was altered, or is about to be.
            RosettaError: the kinds of both sides.
        """
        try:
            with window.reading(reader):
                count = copy()
                check_not_rewritten(reader, [chunk])
                return count
        except RosettaError as error:
            sqlstate = str(error.detail.get("sqlstate"))
            if sqlstate == LOCK_NOT_AVAILABLE:
                raise WindowVoid("a schema change of the table is waiting") from error
            if sqlstate[:2] == "42" and not self._work.ended.is_set():
                with self._source() as source:
                    if read_tables(source, tables=[self._task.source]) != [rows.present]:
                        raise WindowVoid("the table's schema has changed") from error
            if self._task.filter_sql is not None:
                raise refused_filter(error, self._task.source) from error
            raise

    def _sweep(
        self,
        window: Window,
        rows: RowSource,
        reader: psycopg2.extensions.connection,
        writer: psycopg2.extensions.connection,
        chunks: Sequence[LoadChunk],
    ) -> None:
        """Remove the rows that the source does not have."""
        extra.clear(writer, window)
        for one in chunks:
            stage = partial(extra.stage_keys, reader, writer, rows, one, self._pace)
            self._read(window, rows, reader, one, stage)
        with self._source() as source:
            # The keys of a leaf that has come since would be missing.
            if {one.relation for one in self._cut(source, rows)} != {one.relation for one in chunks}:
                raise WindowVoid("the table's partitions have changed")
        window.wait_reached()
        removed = extra.remove_extra(writer, self._side, rows, window, self._work)
        self._stored(lambda session: backfills.change(session, self._task.id, deleted_record=removed))

    def _stored(self, call: Callable[[Session], _T]) -> _T:
        """Call the config database; while it is away, the work waits for it."""
        while True:
            try:
                with session_scope(self._catalog) as session:
                    return call(session)
            except RosettaError as error:
                if error.kind is not ErrorKind.CONFIG_DATABASE_UNAVAILABLE:
                    raise
                log.warning("backfill.not_stored", backfill=self._task.id, error=str(error))
                if self._work.ended.wait(RETRY_SECONDS):
                    raise Interrupted from error
