"""The source as a pipeline sees it: its tables, what is left out and why, its positions, and rows by key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psycopg2
import psycopg2.extensions

from cdc_runner.capture.fetch import fetch_rows
from cdc_runner.capture.inspect import is_pattern, matches, read_tables, unsafe_identity
from cdc_runner.capture.publication import (
    SlotState,
    check_slot,
    drop_slot,
    ensure_publication,
    published_tables,
    read_slot,
)
from cdc_runner.capture.publication_drift import publication_drift
from cdc_runner.capture.readable import unreadable_columns
from cdc_runner.connections import classify, connect
from cdc_runner.destinations.base import target_of
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import parse_lsn
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.spec import DestinationSpec, ResolvedSync, SourceSpec

HEARTBEAT_PREFIX = "rosetta"

_SIZES = """
SELECT (SELECT coalesce(sum(pg_table_size(to_regclass(one))), 0)::bigint FROM json_array_elements_text(names) AS one)
FROM json_array_elements(%s::json) WITH ORDINALITY AS given(names, place) ORDER BY place
"""


@dataclass(frozen=True, slots=True)
class SourceTables:
    """Tables of a source that can be replicated, and those that cannot with the reason."""

    usable: Mapping[TableId, TableSchema]
    excluded: Mapping[TableId, str]


class SourceSession:
    """A connection to the source for catalog queries and heartbeats; opened again after an error. Not thread-safe."""

    def __init__(self, spec: SourceSpec, purpose: str) -> None:
        """Args:
        spec: the source.
        purpose: shown in `pg_stat_activity`.
        """
        self.spec = spec
        self._purpose = purpose
        self._connection: psycopg2.extensions.connection | None = None

    def connection(self) -> psycopg2.extensions.connection:
        """Return the connection, opened if need be, in autocommit."""
        if self._connection is None or self._connection.closed:
            self._connection = connect(self.spec.address, application_name=f"rosetta {self._purpose}")
            self._connection.autocommit = True
        return self._connection

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def tables(self, patterns: Sequence[str]) -> SourceTables:
        """Return the tables that match and whether they can be replicated.

        Raises:
            RosettaError: a source kind.
        """
        usable: dict[TableId, TableSchema] = {}
        excluded: dict[TableId, str] = {}
        try:
            for schema in read_tables(self.connection(), patterns):
                reason = unsafe_identity(schema) or self._uncapturable(schema)
                if reason:
                    excluded[schema.table] = reason
                else:
                    usable[schema.table] = schema
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error
        return SourceTables(usable, excluded)

    def _uncapturable(self, schema: TableSchema) -> str | None:
        if not schema.stream_columns:
            return "it has no columns that the change stream carries"
        if self.spec.capture_engine == "debezium":
            if '"' in schema.table.schema + schema.table.name:
                return "its name has a double quote, which Debezium refuses"
            folded: dict[str, str] = {}
            for name in schema.stream_names:
                if name.lower() in folded:
                    return f"columns {folded[name.lower()]} and {name} differ only in case, which Debezium refuses"
                folded[name.lower()] = name
        refused = unreadable_columns(schema)
        return "; ".join(f"column {name}: {reason}" for name, reason in refused.items()) or None

    def table(self, table: TableId) -> TableSchema | None:
        """Return a table's present schema, None when it is gone."""
        return self.present([table]).get(table)

    def present(self, tables: Sequence[TableId]) -> dict[TableId, TableSchema]:
        """Return the present schemas of tables; those that are gone are absent."""
        try:
            return {one.table: one for one in read_tables(self.connection(), tables=tables)}
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error

    def sizes(self, groups: Sequence[Iterable[TableId]]) -> list[int]:
        """Return the bytes of each group of relations, values that lie outside of the rows included; 0 for one gone."""
        listed = json.dumps([[one.quoted for one in group] for group in groups])
        try:
            with self.connection().cursor() as cursor:
                cursor.execute(_SIZES, (listed,))
                return [int(size) for (size,) in cursor.fetchall()]
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error

    def unpublished(self, tables: Iterable[TableId]) -> set[TableId]:
        """Return which of the tables the publication does not send."""
        try:
            present = published_tables(self.connection(), self.spec.publication)
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error
        return set(tables) - (present or set())

    def drift(self, tables: Sequence[TableSchema]) -> dict[TableId, str]:
        """Return what the publication leaves out of the tables that it sends (see `publication_drift`)."""
        try:
            return publication_drift(self.connection(), self.spec.publication, tables)
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error

    def publish(self, tables: Sequence[TableSchema]) -> None:
        """Make the publication hold the tables."""
        try:
            connection = self.connection()
            connection.autocommit = False
            ensure_publication(connection, self.spec.publication, tables)
            connection.autocommit = True
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error
        except RosettaError:
            self.close()
            raise

    def slot(self) -> SlotState | None:
        """Return the state of the slot, None when there is none."""
        try:
            return read_slot(self.connection(), self.spec.slot)
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error

    def usable_slot(self) -> SlotState:
        """Return the slot, checked.

        Raises:
            RosettaError: see `check_slot`.
        """
        return check_slot(self.slot(), self.spec)

    def drop_slot(self) -> bool:
        """Drop the slot; tell whether there was one."""
        self.close()
        connection = connect(self.spec.address, application_name=f"rosetta {self._purpose}")
        try:
            return drop_slot(connection, self.spec.slot)
        except psycopg2.Error as error:
            raise classify(error, "source") from error
        finally:
            connection.close()

    def wal_position(self, *, heartbeat: bool = False) -> int:
        """Return the LSN at which the source writes now; with `heartbeat`, after a message of ours.

        The message is transactional: it comes out of the slot as a transaction of its own, which moves the slot of a
        database where nothing else happens. Needs PostgreSQL 14; an older server gets no heartbeat.
        """
        try:
            connection = self.connection()
            with connection.cursor() as cursor:
                if heartbeat and connection.server_version >= 140000:
                    cursor.execute("SELECT pg_logical_emit_message(true, %s, '')", (HEARTBEAT_PREFIX,))
                cursor.execute("SELECT pg_current_wal_lsn()::text")
                row = cursor.fetchone()
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error
        assert row is not None, "the server knows its position"
        return parse_lsn(row[0])

    def fetch(
        self, schema: TableSchema, keys: Sequence[tuple[str, ...]], told: bytes = b"", /
    ) -> dict[tuple[str, ...], tuple[str | None, ...]]:
        """Return present rows by key, as text (see `RowFetcher`)."""
        try:
            return fetch_rows(self.connection(), schema, keys, told)
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error


def resolve_syncs(destination: DestinationSpec, tables: SourceTables) -> list[ResolvedSync]:
    """Return which source table feeds which target table of a destination.

    Raises:
        RosettaError: CONFIG_INVALID when two tables would feed one target, or a named table does not exist.
    """
    resolved: list[ResolvedSync] = []
    if not destination.syncs:
        resolved = [ResolvedSync(None, table, target_of(table, destination.schema)) for table in sorted(tables.usable)]
    # A table that is named has its own sync, whatever pattern takes it too: a mask must not be passed by.
    for sync in sorted(destination.syncs, key=lambda one: is_pattern(one.table)):
        found = [table for table in sorted(tables.usable) if matches(table, [sync.table])]
        if found or any(matches(table, [sync.table]) for table in tables.excluded):
            pass
        elif not is_pattern(sync.table):
            raise RosettaError(
                ErrorKind.CONFIG_INVALID,
                f"destination {destination.name}: table {sync.table} is not among the source's tables",
            )
        resolved += [
            ResolvedSync(sync.id, table, target_of(table, destination.schema, sync.target), sync.shape, sync.mask_key)
            for table in found
        ]
    seen: dict[TableId, ResolvedSync] = {}
    for one in resolved:
        other = seen.setdefault(one.target, one)
        if other.source != one.source:
            raise RosettaError(
                ErrorKind.CONFIG_INVALID,
                f"destination {destination.name}: tables {other.source} and {one.source} would both feed {one.target}",
            )
    return list(seen.values())
