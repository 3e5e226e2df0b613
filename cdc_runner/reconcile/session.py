"""Sessions of one side that all see one snapshot, without holding a lock on a table for longer than its comparison."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from cdc_runner.connections import Side, classify, connect
from cdc_runner.schema import TableId, quote_literal
from cdc_runner.spec import PostgresAddress

_PAGE_BYTES = 8192
LOCK_SECONDS = 5

# The catalog is read under the snapshot, functions show the present: they differ when a relation was rewritten or
# truncated, or a partition came or went, in between.
_RELATIONS = """
WITH RECURSIVE tree AS (
    SELECT %(table)s::regclass::oid AS oid
    UNION ALL
    SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid WHERE %(partitioned)s)
SELECT c.oid, n.nspname, c.relname, c.relkind::text,
       c.relfilenode = coalesce(pg_relation_filenode(c.oid), 0)
       AND (NOT %(partitioned)s OR c.oid IN (SELECT relid FROM pg_partition_tree(%(table)s::regclass))),
       pg_relation_size(c.oid), c.reltuples
FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY 2, 3
"""
_WAITED_FOR = """
SELECT EXISTS (
    SELECT FROM pg_locks WHERE NOT granted AND relation = ANY (%s)
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


class Unreadable(Exception):
    """A table cannot be read at the fence, though it could be at a later one; the text says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of pages of a relation, as SQL, and its size in bytes."""

    relation: str
    pages: str
    size: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of a comparison.

    Attributes:
        workers: statements at once on each side.
        part_bytes: bytes of table that one statement reads.
        statement_seconds: longest time of one statement.
        bytes_per_second: most bytes read on each side in a second; 0 for no limit.
    """

    workers: int = 2
    part_bytes: int = 64 * 1024 * 1024
    statement_seconds: int = 300
    bytes_per_second: int = 0


class Pace:
    """Keeps the reading of one side below a rate."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._next = time.monotonic()
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def wait(self, size: int) -> None:
        """Wait until a part of this size may be read."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + size / self._rate
        self._stopping.wait(start - now)


class SnapshotSessions:
    """A pool of read-only sessions under one snapshot.

    The first session imports the snapshot and exports it again, so that whoever exported it may go. It touches no
    table. Other sessions are in a transaction only while a table is read.
    """

    def __init__(self, address: PostgresAddress, side: Side, snapshot: str | None, settings: Settings) -> None:
        """Open the first session.

        Args:
            address: where to connect.
            side: which side errors are charged to.
            snapshot: to import; None takes a new one.
            settings: bounds.

        Raises:
            RosettaError: not reachable, or the snapshot is gone.
        """
        self.side: Side = side
        self.settings = settings
        self._address = address
        self._pace = Pace(settings.bytes_per_second)
        self._idle: queue.SimpleQueue[psycopg2.extensions.connection] = queue.SimpleQueue()
        self._all: list[psycopg2.extensions.connection] = []
        self._snapshot = snapshot
        self.keeper = self._connect()
        try:
            self._begin(self.keeper)
            with self.keeper.cursor() as cursor:
                cursor.execute("SELECT pg_export_snapshot()")
                row = cursor.fetchone()
                assert row is not None, "a function returns a row"
                self._snapshot = row[0]
        except psycopg2.Error as error:
            self.close()
            raise classify(error, side) from error

    def _connect(self) -> psycopg2.extensions.connection:
        connection = connect(
            self._address,
            application_name="rosetta verify",
            side=self.side,
            settings={
                "statement_timeout": f"{self.settings.statement_seconds}s",
                "lock_timeout": f"{LOCK_SECONDS}s",
                "idle_in_transaction_session_timeout": "0",
                "row_security": "off",
                "max_parallel_workers_per_gather": "0",
                "jit": "off",
                "synchronize_seqscans": "off",
            },
        )
        connection.autocommit = True
        self._all.append(connection)
        return connection

    def _begin(self, connection: psycopg2.extensions.connection) -> None:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if self._snapshot is not None:
                cursor.execute(f"SET TRANSACTION SNAPSHOT {quote_literal(self._snapshot)}")

    @contextmanager
    def reading(self, table: TableId, *, partitioned: bool) -> Iterator[TableReading]:
        """Lock a table against being rewritten and give what reads it; the lock goes at the end.

        Raises:
            Unreadable: the table was rewritten since the fence, or somebody else holds it.
        """
        first = self.borrow()
        try:
            yield TableReading(self, first, table, partitioned=partitioned)
        except (psycopg2.errors.LockNotAvailable, psycopg2.errors.UndefinedTable) as error:
            raise Unreadable(f"{self.side}: {classify(error, self.side).message}") from error
        finally:
            self.give_back(first)
            self._end_transactions()

    def borrow(self) -> psycopg2.extensions.connection:
        """Return a session of the pool that is in a transaction under the snapshot."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connect()
        try:
            if connection.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE:
                self._begin(connection)
        except psycopg2.Error as error:
            raise classify(error, self.side) from error
        return connection

    def give_back(self, connection: psycopg2.extensions.connection) -> None:
        """Put a session back into the pool; a broken one is left out."""
        if not connection.closed:
            self._idle.put(connection)

    def _end_transactions(self) -> None:
        for connection in self._all:
            if connection is not self.keeper and not connection.closed:
                with connection.cursor() as cursor:
                    cursor.execute("ROLLBACK")

    def pace(self, size: int) -> None:
        """Wait until a part of this size may be read."""
        self._pace.wait(size)

    def close(self) -> None:
        """Close all sessions; the snapshot goes with them."""
        for connection in self._all:
            connection.close()

    def __enter__(self) -> SnapshotSessions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TableReading:
    """A table that is locked and known to be the one that the snapshot saw."""

    def __init__(
        self,
        sessions: SnapshotSessions,
        connection: psycopg2.extensions.connection,
        table: TableId,
        *,
        partitioned: bool,
    ) -> None:
        self._sessions = sessions
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table.quoted} IN ACCESS SHARE MODE")
            cursor.execute(_RELATIONS, {"table": table.quoted, "partitioned": partitioned})
            relations = cursor.fetchall()
            version = connection.server_version
        # TRUNCATE and a rewriting ALTER TABLE leave nothing for older snapshots to see.
        if not all(row[4] for row in relations):
            raise Unreadable(f"{sessions.side}: table {table} was truncated or rewritten after the fence")
        self._oids = [row[0] for row in relations]
        leaves = [row for row in relations if row[3] != "p"]
        self.rows_estimate: float = sum(max(0.0, row[6]) or row[5] / 100 for row in leaves)
        step = sessions.settings.part_bytes if version >= 140000 else None
        self.parts = [part for row in leaves for part in _cut(row, step)]

    def run(self, statement: str, size: int) -> list[Any]:
        """Run a statement in a session of the pool and return its rows. Thread-safe.

        Raises:
            Unreadable: somebody waits for a lock that this reading stands in the way of.
            RosettaError: what the server says.
        """
        sessions = self._sessions
        sessions.pace(size)
        connection = sessions.borrow()
        try:
            with connection.cursor() as cursor:
                cursor.execute(_WAITED_FOR, (self._oids,))
                row = cursor.fetchone()
                if row is not None and row[0]:
                    raise Unreadable(f"{sessions.side}: a schema change or TRUNCATE was waiting and went first")
                cursor.execute(statement)
                return cursor.fetchall()
        except psycopg2.Error as error:
            # Its transaction is of no use any more; the table stays locked by the first session.
            if not connection.closed:
                connection.rollback()
            if isinstance(error, psycopg2.errors.LockNotAvailable):
                raise Unreadable(f"{sessions.side}: {classify(error, sessions.side).message}") from error
            raise classify(error, sessions.side) from error
        finally:
            sessions.give_back(connection)


def _cut(relation: Sequence[Any], part_bytes: int | None) -> Iterator[Part]:
    """Cut a relation into ranges of pages; not before PostgreSQL 14, which finds a range by reading everything."""
    _, schema, name, kind, _, size, _ = relation
    quoted = f"ONLY {TableId(schema, name).quoted}"
    if part_bytes is None or kind != "r":
        yield Part(quoted, "true", size)
        return
    step = max(1, part_bytes // _PAGE_BYTES)
    starts = list(range(0, max(1, size // _PAGE_BYTES), step))
    for start in starts:
        # The last range is open: pages that came since hold nothing that the snapshot sees, or very little.
        upper = "" if start == starts[-1] else f" AND t.ctid < '({start + step},0)'"
        yield Part(quoted, f"t.ctid >= '({start},0)'{upper}", min(part_bytes, max(size, _PAGE_BYTES)))
