"""The publication and the replication slot of a source: made, checked and dropped by Rosetta, never by an engine."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import psycopg2.extras

from cdc_runner.connections import classify, connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import format_lsn, parse_lsn
from cdc_runner.schema import TableId, TableSchema, quote_identifier, quote_literal
from cdc_runner.spec import PostgresAddress, SourceSpec

OPERATIONS = ("insert", "update", "delete", "truncate")


@dataclass(frozen=True, slots=True)
class SlotState:
    """What the server says of a logical slot.

    `confirmed_lsn` is the position up to which the server will not send again; `retained_bytes` the WAL kept for it;
    `wal_status` is `reserved`, `extended`, `unreserved` or `lost` (PostgreSQL 13 and later).
    """

    name: str
    active: bool
    active_pid: int | None
    confirmed_lsn: int | None
    restart_lsn: int | None
    wal_status: str | None
    retained_bytes: int | None
    plugin: str
    database: str


def read_slot(connection: psycopg2.extensions.connection, name: str) -> SlotState | None:
    """Return the state of a slot of this server, None when there is none."""
    status = "wal_status" if connection.server_version >= 130000 else "NULL"
    with connection.cursor() as cursor:
        cursor.execute(
            f"""SELECT slot_name, active, active_pid, confirmed_flush_lsn::text, restart_lsn::text, {status},
                       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()
                                            ELSE pg_current_wal_lsn() END, restart_lsn)::bigint,
                       plugin, database
                FROM pg_replication_slots WHERE slot_name = %s AND slot_type = 'logical'""",
            (name,),
        )
        row = cursor.fetchone()
    if row is None:
        return None
    return SlotState(
        name=row[0],
        active=row[1],
        active_pid=row[2],
        confirmed_lsn=None if row[3] is None else parse_lsn(row[3]),
        restart_lsn=None if row[4] is None else parse_lsn(row[4]),
        wal_status=row[5],
        retained_bytes=row[6],
        plugin=row[7],
        database=row[8],
    )


def check_slot(state: SlotState | None, source: SourceSpec) -> SlotState:
    """Return the state of a slot that can be streamed from.

    Raises:
        RosettaError: SLOT_MISSING, SLOT_INVALIDATED, SLOT_IN_USE, or CONFLICT when the slot is of another database.
    """
    if state is None:
        raise RosettaError(ErrorKind.SLOT_MISSING, f"replication slot {source.slot} of source {source.name} is gone")
    if state.plugin != "pgoutput" or state.database != source.address.database:
        raise RosettaError(
            ErrorKind.CONFLICT,
            f"replication slot {source.slot} belongs to database {state.database} and plugin {state.plugin}, "
            f"not to database {source.address.database} and pgoutput",
        )
    if state.wal_status == "lost" or state.restart_lsn is None or state.confirmed_lsn is None:
        raise RosettaError(
            ErrorKind.SLOT_INVALIDATED, f"replication slot {source.slot} was invalidated: the server removed its WAL"
        )
    if state.active:
        raise RosettaError(
            ErrorKind.SLOT_IN_USE, f"replication slot {source.slot} is read by server process {state.active_pid}"
        )
    return state


def published_tables(connection: psycopg2.extensions.connection, publication: str) -> set[TableId] | None:
    """Return the tables that a publication sends, roots for leaves if set so; None when there is no publication."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", (publication,))
        if cursor.fetchone() is None:
            return None
        cursor.execute("SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s", (publication,))
        return {TableId(schema, name) for schema, name in cursor.fetchall()}


def ensure_publication(
    connection: psycopg2.extensions.connection, publication: str, tables: Iterable[TableSchema]
) -> set[TableId]:
    """Make the publication hold the given tables, and return those that were added now.

    An existing publication keeps the tables that it has beyond these, and what it leaves out of them
    (`publication_drift` tells). FOR ALL TABLES publications are left as they are.
    """
    wanted = {schema.table for schema in tables}
    with connection, connection.cursor() as cursor:
        root = ", publish_via_partition_root = true" if connection.server_version >= 130000 else ""
        # Two first starts of pipelines on one server must not race for the publication.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"rosetta publication {publication}",))
        name = quote_identifier(publication)
        cursor.execute("SELECT puballtables FROM pg_publication WHERE pubname = %s", (publication,))
        row = cursor.fetchone()
        if row is None:
            members = f" FOR TABLE {_members(wanted)}" if wanted else ""
            cursor.execute(f"CREATE PUBLICATION {name}{members} WITH (publish = '{', '.join(OPERATIONS)}'{root})")
            return wanted
        present = published_tables(connection, publication) or set()
        missing = wanted - present
        if missing and not row[0]:
            cursor.execute(f"ALTER PUBLICATION {name} ADD TABLE {_members(missing)}")
        return missing


def _members(tables: Iterable[TableId]) -> str:
    return ", ".join(table.quoted for table in sorted(tables))


def drop_publication(connection: psycopg2.extensions.connection, publication: str) -> bool:
    """Drop a publication; tell whether there was one."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", (publication,))
        found = cursor.fetchone() is not None
        cursor.execute(f"DROP PUBLICATION IF EXISTS {quote_identifier(publication)}")
    return found


def drop_slot(connection: psycopg2.extensions.connection, slot: str) -> bool:
    """Drop a slot that nobody reads; tell whether there was one.

    Raises:
        RosettaError: SLOT_IN_USE while a process reads it.
    """
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", (slot,))
        row = cursor.fetchone()
        if row is None:
            return False
        try:
            cursor.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        except psycopg2.errors.ObjectInUse as error:
            raise RosettaError(
                ErrorKind.SLOT_IN_USE, f"replication slot {slot} is read by server process {row[0]}"
            ) from error
    return True


@contextmanager
def _cancelled_after(connection: psycopg2.extensions.connection, seconds: float | None) -> Iterator[None]:
    """Cancel the command within after so many seconds: statement_timeout does not apply to replication commands."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, connection.cancel)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


class SnapshotSlot:
    """A slot just created, with the snapshot that it exported.

    The snapshot's content is exactly what was committed before `lsn`; it can be imported by other sessions while this
    object is open. A temporary slot goes away with it, a permanent one stays.
    """

    def __init__(
        self, address: PostgresAddress, slot: str, *, temporary: bool = False, timeout_seconds: float | None = None
    ) -> None:
        """Create the slot.

        Args:
            address: of the source.
            slot: name of the slot.
            temporary: it goes away with this object.
            timeout_seconds: longest wait for transactions that are open at the source; None waits for as long as it
                takes.

        Raises:
            RosettaError: CONFLICT when the slot exists, SOURCE_UNAVAILABLE when time is up, and the source's
                connection errors.
        """
        self.slot = slot
        self._connection = connect(
            address,
            application_name="rosetta snapshot",
            connection_factory=psycopg2.extras.LogicalReplicationConnection,
        )
        try:
            self.lsn, self.snapshot = self._create(temporary, timeout_seconds)
        except BaseException:
            self._connection.close()
            raise

    def _create(self, temporary: bool, timeout_seconds: float | None) -> tuple[int, str]:
        kind = "TEMPORARY " if temporary else ""
        statement = f"CREATE_REPLICATION_SLOT {quote_identifier(self.slot)} {kind}LOGICAL pgoutput EXPORT_SNAPSHOT"
        try:
            with _cancelled_after(self._connection, timeout_seconds), self._connection.cursor() as cursor:
                cursor.execute(statement)
                row = cursor.fetchone()
        except psycopg2.errors.DuplicateObject as error:
            raise RosettaError(ErrorKind.CONFLICT, f"replication slot {self.slot} exists already") from error
        except psycopg2.Error as error:
            if timeout_seconds is None or not isinstance(error, psycopg2.errors.QueryCanceled):
                raise classify(error, "source") from error
            raise RosettaError(
                ErrorKind.SOURCE_UNAVAILABLE,
                f"no consistent snapshot of the source within {timeout_seconds:g} s: a transaction is open there",
            ) from error
        assert row is not None
        return parse_lsn(row[1]), row[2]

    def import_statement(self) -> str:
        """The statement that makes a REPEATABLE READ transaction see this snapshot."""
        return f"SET TRANSACTION SNAPSHOT {quote_literal(self.snapshot)}"

    def close(self) -> None:
        """End the session that holds the snapshot."""
        self._connection.close()

    def __enter__(self) -> SnapshotSlot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SnapshotSlot({self.slot!r}, {format_lsn(self.lsn)})"
