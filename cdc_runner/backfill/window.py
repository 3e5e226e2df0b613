"""One snapshot of a source table, and the watch of its target: all that is read is written before it closes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import psycopg2
import psycopg2.extensions
import structlog

from cdc_runner.capture.publication import SnapshotSlot
from cdc_runner.connections import classify, connect
from cdc_runner.destinations.letters import LetterSink
from cdc_runner.destinations.postgres import state
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.postgres.journal import Watch
from cdc_runner.destinations.postgres.statements import TargetShape
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position, format_lsn, parse_lsn
from cdc_runner.spec import PipelineSettings, SourceSpec

log = structlog.get_logger()

LOCK_SECONDS = 5
"""Longest wait of a read for a table that a schema change holds; the window is given up then."""
SLOT_SECONDS = 15.0
"""Wait for transactions that are open at the source, before somebody is told of them."""
REACH_SECONDS = 300.0
"""Longest wait for the destination to reach the snapshot's position."""
_LOOK_SECONDS = 0.02


class Interrupted(Exception):
    """The work on a backfill was asked to end: cancelled, or the stream stops."""


class WindowVoid(Exception):
    """What was read is not to be written; another window is to be opened. The text says why."""


@dataclass(frozen=True, slots=True)
class Side:
    """What a backfill works with; one destination of a running pipeline.

    Attributes:
        pipeline: its identity.
        source: where rows are read.
        destination: where they are written, in sessions of the backfill's own.
        settings: bounds.
        letters: takes rows that the target refuses; None where there is no queue.
        position: up to where the destination has applied the stream.
        nudge: makes an idle source write something, so that the position moves on.
    """

    pipeline: str
    source: SourceSpec
    destination: PostgresDestination
    settings: PipelineSettings
    letters: LetterSink | None
    position: Callable[[], Position]
    nudge: Callable[[], None]


@dataclass(slots=True)
class Work:
    """The sessions that are at work, so that they can be told to end."""

    ended: threading.Event = field(default_factory=threading.Event)
    _sessions: set[psycopg2.extensions.connection] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Raises: Interrupted."""
        if self.ended.is_set():
            raise Interrupted

    @contextmanager
    def session(self, opened: psycopg2.extensions.connection) -> Iterator[psycopg2.extensions.connection]:
        """Give a session that `stop` interrupts, and close it at the end."""
        with self._lock:
            self._sessions.add(opened)
        try:
            self.check()
            yield opened
        finally:
            with self._lock:
                self._sessions.discard(opened)
            opened.close()

    def stop(self) -> None:
        """End the work; statements that run are cancelled."""
        self.ended.set()
        with self._lock:
            for one in self._sessions:
                with suppress(psycopg2.Error):
                    one.cancel()


class Window:
    """A snapshot with its position, sessions that read it, and the watch of the target.

    The batch of changes in which the snapshot's position lies is noted as a whole as if it came after it. A row that
    got its key in there, and kept values that the stream does not tell, is read again by the number of its transaction:
    `since_xid` is not above that of any transaction of that batch or after it.
    """

    def __init__(self, side: Side, shape: TargetShape, work: Work, *, name: str) -> None:
        """Args:
        side: source and destination.
        shape: the target.
        work: asked whether to go on.
        name: of the temporary slot.
        """
        self._side = side
        self._shape = shape
        self._work = work
        self._name = name
        self._cleanup = ExitStack()
        self.position = Position(0)
        self.since_xid = 0
        self.watch: Watch
        self.began = time.monotonic()
        self._readers: list[psycopg2.extensions.connection] = []

    def open(self, readers: int) -> None:
        """Watch the target, take a snapshot after that, and open sessions that see it.

        Raises:
            Interrupted: the work was asked to end.
            RosettaError: the kinds of both sides.
        """
        try:
            self.watch = self._begin_watch()
            self._cleanup.callback(self._end_watch)
            self._let_pass()
            slot = self._slot()
            try:
                self.position = Position(slot.lsn)
                name = f"rosetta {self._side.pipeline} backfill"
                for _ in range(readers):
                    reader = connect(self._side.source.address, application_name=name)
                    self._readers.append(reader)
                    self._cleanup.enter_context(self._work.session(reader))
                    reader.set_session(isolation_level="REPEATABLE READ", readonly=True)
                    with reader.cursor() as cursor:
                        cursor.execute(slot.import_statement())
                        cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
            finally:
                # The sessions hold the snapshot from here on; WAL is kept for nobody any more.
                slot.close()
            self.began = time.monotonic()
            self._side.nudge()
        except BaseException:
            self.close()
            raise
        log.info("backfill.window", target=str(self._shape.table), lsn=format_lsn(self.position.lsn))

    def take_reader(self) -> psycopg2.extensions.connection:
        """Return a session that sees the snapshot, for one thread."""
        return self._readers.pop()

    @contextmanager
    def reading(self, reader: psycopg2.extensions.connection) -> Iterator[None]:
        """Let go of the tables that are read in the block at its end: whoever wants to alter one waits no longer."""
        with reader.cursor() as cursor:
            cursor.execute("SAVEPOINT reading")
            yield
            # Locks that were taken since go; the snapshot is the transaction's and stays.
            cursor.execute("ROLLBACK TO SAVEPOINT reading; RELEASE SAVEPOINT reading")

    def wait_reached(self) -> None:
        """Wait until the destination has applied all that the snapshot holds.

        Raises:
            Interrupted: the work was asked to end.
            WindowVoid: it does not get there.
        """
        wait_reached(self._side, self._work, self.position)

    def lock(self, cursor: psycopg2.extensions.cursor) -> None:
        """Lock the position for the cursor's transaction: nothing is applied beside it.

        Raises:
            WindowVoid: what was read is of no use any more.
            RosettaError: FENCED, another runner writes to the destination.
        """
        destination = self._side.destination
        epoch = destination.epoch
        try:
            state.lock_position(cursor, self._side.pipeline, epoch)
        except RosettaError as error:
            if error.kind is ErrorKind.FENCED and destination.epoch != epoch:
                raise WindowVoid("the destination's session was opened anew") from error
            raise
        if self.watch.void is not None:
            raise WindowVoid(self.watch.void)

    def close(self) -> None:
        """Let the snapshot go and watch the target no more."""
        self._cleanup.close()

    def _begin_watch(self) -> Watch:
        destination = self._side.destination
        watch: Watch | None = None
        with self._work.session(destination.connect_writer()) as writer:
            try:
                with writer, writer.cursor() as cursor:
                    state.lock_position(cursor, self._side.pipeline, destination.epoch)
                    destination.journal.drop_left(cursor)
                    watch = destination.journal.watch(cursor, self._shape)
            except BaseException as error:
                if watch is not None:
                    destination.journal.end(watch)
                if isinstance(error, psycopg2.Error):
                    raise classify(error, "destination") from error
                raise
        return watch

    def _let_pass(self) -> None:
        """Wait until all that is committed by now is applied: the batch with the snapshot begins later than that."""
        source = connect(self._side.source.address, application_name=f"rosetta {self._side.pipeline} backfill")
        with self._work.session(source):
            source.autocommit = True
            try:
                with source.cursor() as cursor:
                    cursor.execute("SELECT txid_snapshot_xmin(txid_current_snapshot())")
                    ((xid,),) = cursor.fetchall()
                    # Read after it: whoever commits beyond this position runs now, or begins later.
                    cursor.execute("SELECT pg_current_wal_lsn()::text")
                    ((lsn,),) = cursor.fetchall()
            except psycopg2.Error as error:
                raise classify(error, "source") from error
        self.since_xid = int(xid)
        self._side.nudge()
        wait_reached(self._side, self._work, Position(parse_lsn(lsn)))

    def _end_watch(self) -> None:
        destination = self._side.destination
        destination.journal.end(self.watch)
        try:
            writer = destination.connect_writer()
        except RosettaError:
            # The next window drops what is left.
            return
        try:
            with writer, writer.cursor() as cursor:
                state.lock_position(cursor, self._side.pipeline, destination.epoch)
                destination.journal.drop_left(cursor)
        except (psycopg2.Error, RosettaError) as error:
            log.warning("backfill.journal_left", target=str(self._shape.table), error=type(error).__name__)
        finally:
            writer.close()

    def _slot(self) -> SnapshotSlot:
        while True:
            self._work.check()
            try:
                address = self._side.source.address
                return SnapshotSlot(address, self._name, temporary=True, timeout_seconds=SLOT_SECONDS)
            except RosettaError as error:
                if error.kind is not ErrorKind.CONFLICT:
                    raise
                # That of a process that was killed a moment ago goes with its session.
                self._work.ended.wait(0.5)


def wait_reached(side: Side, work: Work, position: Position) -> None:
    """Wait until the destination has applied all up to a position of the source.

    Raises:
        Interrupted: the work was asked to end.
        WindowVoid: it does not get there.
    """
    deadline = time.monotonic() + REACH_SECONDS
    nudged = time.monotonic()
    while side.position() < position:
        if work.ended.wait(_LOOK_SECONDS):
            raise Interrupted
        if time.monotonic() > deadline:
            raise WindowVoid(f"the destination did not reach the snapshot's position within {REACH_SECONDS:g} s")
        if time.monotonic() - nudged > 2.0:
            nudged = time.monotonic()
            side.nudge()
    work.check()


def copied_columns(places: Sequence[int]) -> str:
    """Return the columns of a staging table for these places."""
    return ", ".join(f"c{place}" for place in places)
