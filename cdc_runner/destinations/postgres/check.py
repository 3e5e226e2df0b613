"""What about a target table would keep a source table's changes from going into it, found before the first write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg2.extensions

from cdc_runner.destinations.postgres.definition import holds_rows, identifier_list
from cdc_runner.destinations.postgres.target_table import TargetTable, read_target
from cdc_runner.destinations.postgres.type_names import SchemaMap, target_type
from cdc_runner.destinations.postgres.widening import accepts
from cdc_runner.schema import Column, TableId, TableSchema, quote_identifier

__all__ = ["Problem", "check_table", "holds_rows", "may_be_replica", "table_exists"]

_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")

_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}

# Triggers for ENABLE ALWAYS and ENABLE REPLICA fire in a session of role replica as well.
_TRIGGERS = """
SELECT tgname, tgenabled::text FROM pg_trigger WHERE tgrelid = %s AND NOT tgisinternal AND tgenabled <> 'D' ORDER BY 1
"""

_FOREIGN_KEYS = """
SELECT conname, conrelid = %(oid)s, confrelid::regclass::text, conrelid::regclass::text FROM pg_constraint
WHERE contype = 'f' AND (conrelid = %(oid)s OR confrelid = %(oid)s) ORDER BY conname
"""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a target table that does not fit.

    Attributes:
        table: the target table.
        column: the column, when it is about one.
        message: what is wrong, one line, with names.
        remedy: what to do, one sentence.
        is_error: writes would fail or lose values; else it is worth knowing only.
    """

    table: TableId
    column: str | None
    message: str
    remedy: str
    is_error: bool = True

    @property
    def text(self) -> str:
        """What is wrong and what to do, in one line."""
        return f"{self.message}: {self.remedy}"


def check_table(
    target: psycopg2.extensions.connection, table: TableId, schema: TableSchema, schema_map: SchemaMap
) -> list[Problem]:
    """Return what keeps a source table's changes from going into an existing target table; empty when all fits.

    A table that does not exist gives only the rights that are missing to create it. Changes nothing.
    """
    existing = read_target(target, table)
    if existing is None:
        return list(_creation(target, table))
    if existing.kind in _KINDS:
        message = f"table {table} is {_KINDS[existing.kind]} at the destination"
        return [Problem(table, None, message, "choose another target name or schema, or remove it there")]
    return [
        *_missing_rights(target, existing),
        *_columns(existing, schema, schema_map),
        *_extra_columns(existing, schema),
        *_key(existing, schema),
        *_enforcement(target, existing),
    ]


def table_exists(target: psycopg2.extensions.connection, table: TableId) -> bool:
    """Tell whether a table, view or foreign table of that name is there."""
    return read_target(target, table) is not None


def may_be_replica(target: psycopg2.extensions.connection) -> bool:
    """Tell whether the role may set `session_replication_role`, which turns triggers and foreign key checks off."""
    with target.cursor() as cursor:
        if target.server_version >= 150000:
            cursor.execute(
                "SELECT rolsuper OR has_parameter_privilege('session_replication_role', 'SET') FROM pg_roles "
                "WHERE rolname = current_user"
            )
        else:
            cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        row = cursor.fetchone()
    return bool(row and row[0])


def _creation(target: psycopg2.extensions.connection, table: TableId) -> Iterator[Problem]:
    schema = quote_identifier(table.schema)
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT current_user, has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = %s",
            (table.schema,),
        )
        row = cursor.fetchone()
        if row is not None and not row[1]:
            yield Problem(
                table,
                None,
                f"role {row[0]} may not create table {table}",
                f"run GRANT USAGE, CREATE ON SCHEMA {schema} TO {quote_identifier(row[0])} at the destination",
            )
        if row is None:
            cursor.execute(
                "SELECT current_user, current_database(), has_database_privilege(current_database(), 'CREATE')"
            )
            role, database, allowed = cursor.fetchone() or ("", "", True)
            if not allowed:
                yield Problem(
                    table,
                    None,
                    f"schema {table.schema} does not exist and role {role} may not create it",
                    f"run CREATE SCHEMA {schema} AUTHORIZATION {quote_identifier(role)} at the destination, or "
                    f"GRANT CREATE ON DATABASE {quote_identifier(database)} TO {quote_identifier(role)}",
                )


def _missing_rights(target: psycopg2.extensions.connection, existing: TargetTable) -> Iterator[Problem]:
    table = existing.table
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT current_user, has_schema_privilege(%s, 'USAGE'), "
            "ARRAY(SELECT r FROM unnest(%s::text[]) r WHERE NOT has_table_privilege(%s::oid, r))",
            (table.schema, list(_RIGHTS), existing.oid),
        )
        role, usage, missing = cursor.fetchone() or ("", True, [])
    grantee = quote_identifier(role)
    if not usage:
        remedy = f"run GRANT USAGE ON SCHEMA {quote_identifier(table.schema)} TO {grantee} at the destination"
        yield Problem(table, None, f"role {role} may not use schema {table.schema}", remedy)
    if missing:
        rights = ", ".join(missing)
        remedy = f"run GRANT {rights} ON {table.quoted} TO {grantee} at the destination"
        yield Problem(table, None, f"role {role} lacks {rights} on table {table}", remedy)
    if existing.row_security:
        message = f"row security of table {table} applies to role {role}, so rows could be hidden from it"
        yield Problem(table, None, message, "give the role BYPASSRLS, or make it the table's owner")


def _columns(existing: TargetTable, schema: TableSchema, schema_map: SchemaMap) -> Iterator[Problem]:
    table = existing.table
    for column in schema.columns:
        there = existing.columns.get(column.name)
        wanted = target_type(column, schema_map)
        name = quote_identifier(column.name)
        if there is None:
            if not column.generated:
                remedy = f"run ALTER TABLE {table.quoted} ADD COLUMN {name} {wanted} at the destination"
                yield Problem(table, column.name, f"table {table} lacks column {column.name}", remedy)
            continue
        if not accepts(column, there.column, schema_map):
            yield Problem(
                table,
                column.name,
                f"column {column.name} of table {table} is {there.column.type_text} at the destination, which cannot "
                f"hold every {column.type_text} of the source",
                f"run ALTER TABLE {table.quoted} ALTER COLUMN {name} TYPE {wanted} at the destination",
            )
        yield from _generation(table, column, there.column, there.identity)
        if there.column.not_null and not column.not_null and not column.generated:
            yield Problem(
                table,
                column.name,
                f"column {column.name} of table {table} is NOT NULL at the destination and may be NULL at the source",
                f"run ALTER TABLE {table.quoted} ALTER COLUMN {name} DROP NOT NULL at the destination",
            )


def _generation(table: TableId, source: Column, there: Column, identity: str) -> Iterator[Problem]:
    name = quote_identifier(source.name)
    if there.generated and not source.generated:
        yield Problem(
            table,
            source.name,
            f"column {source.name} of table {table} is generated at the destination and plain at the source",
            f"run ALTER TABLE {table.quoted} ALTER COLUMN {name} DROP EXPRESSION at the destination",
        )
    if source.generated and not there.generated:
        yield Problem(
            table,
            source.name,
            f"column {source.name} of table {table} is generated at the source, whose change stream leaves it out, and "
            "plain at the destination",
            f"drop the column at the destination, or generate it there as ({source.expression or '...'})",
        )
    if identity == "a" and not source.generated:
        yield Problem(
            table,
            source.name,
            f"column {source.name} of table {table} is GENERATED ALWAYS AS IDENTITY at the destination",
            f"run ALTER TABLE {table.quoted} ALTER COLUMN {name} SET GENERATED BY DEFAULT at the destination",
        )


def _extra_columns(existing: TargetTable, schema: TableSchema) -> Iterator[Problem]:
    known = set(schema.column_names)
    for name, there in existing.columns.items():
        column = there.column
        if name in known or not column.not_null or column.default is not None or column.generated or there.identity:
            continue
        yield Problem(
            existing.table,
            name,
            f"column {name} of table {existing.table} is NOT NULL without a default, and the source does not have it",
            f"run ALTER TABLE {existing.table.quoted} ALTER COLUMN {quote_identifier(name)} DROP NOT NULL, or give it "
            "a default",
        )


def _key(existing: TargetTable, schema: TableSchema) -> Iterator[Problem]:
    table, key = existing.table, schema.key
    columns = ", ".join(key)
    if key and existing.unique_on(key) is None:
        primary = existing.primary_key
        has = f"has the primary key ({', '.join(primary.columns)})" if primary else "has no primary key"
        yield Problem(
            table,
            None,
            f"table {table} {has} at the destination and no unique index on the source's key ({columns})",
            f"run CREATE UNIQUE INDEX ON {table.quoted} ({identifier_list(key)}) at the destination",
        )
    # Rows that differ at the source must not be one row here.
    for index in existing.unique:
        if any(set(index.columns) >= set(own) for own in (schema.primary_key, key) if own):
            continue
        what = "primary key" if index.primary else f"unique index {index.name}"
        yield Problem(
            table,
            None,
            f"table {table} has the {what} on ({', '.join(index.columns) or 'an expression'}) at the destination, "
            f"{'which the source does not have' if index.primary else 'which rows must keep after every statement'}",
            f"drop the {what} at the destination unless the source keeps it too",
            is_error=index.primary,
        )


def _enforcement(target: psycopg2.extensions.connection, existing: TargetTable) -> Iterator[Problem]:
    table = existing.table
    replica = may_be_replica(target)
    with target.cursor() as cursor:
        cursor.execute(_TRIGGERS, (existing.oid,))
        firing = [name for name, enabled in cursor.fetchall() if not replica or enabled in "AR"]
        cursor.execute(_FOREIGN_KEYS, {"oid": existing.oid})
        foreign = [] if replica else cursor.fetchall()
    for name in firing:
        remedy = "disable it there" if replica else "disable it there, or let the role set session_replication_role"
        message = f"trigger {name} of table {table} fires for replicated rows and may change or refuse them"
        yield Problem(table, None, message, remedy, is_error=False)
    for name, own, parent, child in foreign:
        what = f"to {parent}" if own else f"from {child}"
        yield Problem(
            table,
            None,
            f"foreign key {name} {what} of table {table} is checked for replicated rows, because the destination's "
            "role may not set session_replication_role",
            "run GRANT SET ON PARAMETER session_replication_role to the role (PostgreSQL 15), or drop the foreign key, "
            "or make it DEFERRABLE INITIALLY DEFERRED",
            is_error=False,
        )
