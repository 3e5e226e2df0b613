"""Checks of a source's tables: keys, rights, columns, and what the publication holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdc_runner.capture.inspect import matches, read_tables, unsafe_identity
from cdc_runner.capture.publication import OPERATIONS
from cdc_runner.capture.readable import unreadable_columns
from cdc_runner.doctor.finding import Findings, names
from cdc_runner.doctor.source import Connection, scalar
from cdc_runner.schema import ReplicaIdentity, TableId, TableSchema, quote_identifier
from cdc_runner.spec import SourceSpec


@dataclass(frozen=True, slots=True)
class TableRight:
    """What the role may do with a table, and whether row security hides rows from it."""

    oid: int
    schema_usage: bool
    select: bool
    owner: bool
    row_security: bool


def check_tables(connection: Connection, spec: SourceSpec, found: Findings) -> list[TableSchema]:
    """Check the tables that the source's patterns take, and return those that can be replicated."""
    schemas = read_tables(connection, spec.tables)
    for pattern in spec.tables:
        if not any(matches(schema.table, [pattern]) for schema in schemas):
            found.warning("tables", f"pattern {pattern} matches no table", "Correct the pattern, or create the table.")
    if not schemas:
        found.error("tables", "no table matches the source's patterns", "Correct `tables` of the source.")
        return []
    found.ok("tables", f"{len(schemas)} tables match")
    rights = _rights(connection, [schema.table for schema in schemas])
    usable = [schema for schema in schemas if _check_table(schema, rights[schema.table], spec, found)]
    _check_unlogged(connection, spec, found)
    _check_publication(connection, spec, usable, rights, found)
    _note_sequences(schemas, found)
    return usable


def _rights(connection: Connection, tables: Sequence[TableId]) -> dict[TableId, TableRight]:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT n.nspname, c.relname, c.oid, has_schema_privilege(n.oid, 'USAGE'),
                   has_table_privilege(c.oid, 'SELECT'), pg_has_role(c.relowner, 'USAGE'), row_security_active(c.oid)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND n.nspname = ANY (%s)
            """,
            (sorted({table.schema for table in tables}),),
        )
        rows = {TableId(row[0], row[1]): TableRight(*row[2:]) for row in cursor.fetchall()}
    return {table: rows[table] for table in tables}


def _check_table(schema: TableSchema, right: TableRight, spec: SourceSpec, found: Findings) -> bool:
    subject = f"table {schema.table}"
    role = quote_identifier(spec.address.username)
    usable = True
    reason = unsafe_identity(schema)
    if reason:
        found.error(
            "replica_identity",
            f"left out: {reason}",
            f"ALTER TABLE {schema.table.quoted} ADD PRIMARY KEY (...); or"
            f" ALTER TABLE {schema.table.quoted} REPLICA IDENTITY FULL; or leave it out of the source's `tables`",
            subject,
        )
        usable = False
    elif schema.replica_identity is ReplicaIdentity.FULL and not schema.primary_key:
        found.warning(
            "replica_identity",
            "it has no primary key; its rows are told apart by their whole content, which is slow for updates",
            f"ALTER TABLE {schema.table.quoted} ADD PRIMARY KEY (...);",
            subject,
        )
    if not right.schema_usage:
        schema_name = quote_identifier(schema.table.schema)
        found.error(
            "select_right",
            "the role may not use its schema",
            f"GRANT USAGE ON SCHEMA {schema_name} TO {role};",
            subject,
        )
    if not right.select:
        found.error(
            "select_right",
            "the role may not read it",
            f"GRANT SELECT ON TABLE {schema.table.quoted} TO {role};",
            subject,
        )
    elif right.row_security:
        found.error(
            "row_security",
            "row security hides rows of it from the role, so that the initial load would miss them",
            f"ALTER ROLE {role} BYPASSRLS;",
            subject,
        )
    return _check_columns(schema, found, subject) and usable


def _check_columns(schema: TableSchema, found: Findings, subject: str) -> bool:
    refused = unreadable_columns(schema)
    for column, reason in refused.items():
        found.error(
            "column_type",
            f"column {column} cannot be carried: {reason}",
            "Leave the table out of the source's `tables`, or keep the value in a column of another type.",
            subject,
        )
    return not refused


def _check_unlogged(connection: Connection, spec: SourceSpec, found: Findings) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind = 'r' AND c.relpersistence = 'u' ORDER BY 1, 2"
        )
        unlogged = [table for table in (TableId(*row) for row in cursor.fetchall()) if matches(table, spec.tables)]
    if unlogged:
        found.warning(
            "unlogged",
            f"unlogged tables write no WAL and are left out: {names(unlogged)}",
            f"ALTER TABLE {unlogged[0].quoted} SET LOGGED;",
        )


def _note_sequences(schemas: Sequence[TableSchema], found: Findings) -> None:
    with_sequence = [
        one.table for one in schemas if any("nextval(" in (column.default or "") for column in one.columns)
    ]
    if with_sequence:
        found.ok(
            "sequences",
            f"sequences are not replicated; before writing to the copies, set those of {names(with_sequence, 5)}",
        )


def _check_publication(
    connection: Connection,
    spec: SourceSpec,
    schemas: Sequence[TableSchema],
    rights: dict[TableId, TableRight],
    found: Findings,
) -> None:
    root = "pubviaroot" if connection.server_version >= 130000 else "false"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, {root}, pg_has_role(pubowner, 'USAGE')"
            " FROM pg_publication WHERE pubname = %s",
            (spec.publication,),
        )
        row = cursor.fetchone()
    not_owned = [schema.table for schema in schemas if not rights[schema.table].owner]
    if row is None:
        _check_creation(connection, spec, schemas, not_owned, found)
        return
    name = quote_identifier(spec.publication)
    missing_operations = [operation for operation, has in zip(OPERATIONS, row[1:5], strict=True) if not has]
    if missing_operations:
        found.error(
            "publication",
            f"publication {spec.publication} does not publish {', '.join(missing_operations)}",
            f"ALTER PUBLICATION {name} SET (publish = '{', '.join(OPERATIONS)}');",
        )
    if any(schema.partitioned for schema in schemas) and not row[5]:
        found.error(
            "publication",
            f"publication {spec.publication} sends partitions under their own names, not under their root's",
            f"ALTER PUBLICATION {name} SET (publish_via_partition_root = true);",
        )
    published = _published(connection, spec, schemas, found)
    missing = [schema.table for schema in schemas if schema.table not in published]
    statement = f"ALTER PUBLICATION {name} ADD TABLE {', '.join(table.quoted for table in missing)};"
    if not missing:
        found.ok("publication", f"publication {spec.publication} holds all {len(schemas)} tables")
    elif row[6] and not set(missing) & set(not_owned):
        found.ok("publication", f"{len(missing)} tables will be added to publication {spec.publication}")
    else:
        found.error(
            "publication",
            f"tables are not in publication {spec.publication}, and the role does not own both: {names(missing)}",
            f"As the owner: {statement}",
        )


def _check_creation(
    connection: Connection,
    spec: SourceSpec,
    schemas: Sequence[TableSchema],
    not_owned: Sequence[TableId],
    found: Findings,
) -> None:
    tables = ", ".join(schema.table.quoted for schema in schemas)
    root = ", publish_via_partition_root = true" if connection.server_version >= 130000 else ""
    statement = (
        f"CREATE PUBLICATION {quote_identifier(spec.publication)} FOR TABLE {tables}"
        f" WITH (publish = '{', '.join(OPERATIONS)}'{root});"
    )
    may_create = scalar(connection, "SELECT has_database_privilege(current_database(), 'CREATE')")
    if may_create and not not_owned:
        found.ok("publication", f"publication {spec.publication} will be made for {len(schemas)} tables")
    elif not may_create:
        found.error(
            "publication",
            f"publication {spec.publication} does not exist, and the role may not create one",
            f"As the owner of the tables: {statement}",
        )
    else:
        found.error(
            "publication",
            f"publication {spec.publication} does not exist, and the role does not own {names(not_owned)}",
            f"As the owner of the tables: {statement}",
        )


def _published(
    connection: Connection, spec: SourceSpec, schemas: Sequence[TableSchema], found: Findings
) -> set[TableId]:
    detailed = connection.server_version >= 150000
    columns = "attnames::text[], rowfilter" if detailed else "NULL, NULL"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT schemaname, tablename, {columns} FROM pg_publication_tables WHERE pubname = %s",
            (spec.publication,),
        )
        rows = {TableId(row[0], row[1]): (row[2], row[3]) for row in cursor.fetchall()}
    for schema in schemas:
        listed, row_filter = rows.get(schema.table, (None, None))
        if row_filter is not None:
            found.error(
                "publication",
                f"publication {spec.publication} sends only some rows of it (a row filter)",
                "Publish the table without WHERE.",
                f"table {schema.table}",
            )
        left_out = [
            column.name
            for column in schema.columns
            if listed is not None and column.name not in listed and not column.generated
        ]
        if left_out:
            found.error(
                "publication",
                f"publication {spec.publication} leaves out its columns {names(left_out)}",
                "Publish the table without a column list; `columns` of a table's sync chooses what the target holds.",
                f"table {schema.table}",
            )
        if connection.server_version >= 180000 and any(
            column.generated and column.name in (listed or ()) for column in schema.columns
        ):
            found.error(
                "publication",
                f"publication {spec.publication} sends its generated columns",
                "Publish the table without a column list, with publish_generated_columns = none.",
                f"table {schema.table}",
            )
    return set(rows)
