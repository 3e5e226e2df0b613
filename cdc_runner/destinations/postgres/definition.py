"""Pieces of DDL that creating and changing a table share."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg2
import psycopg2.extensions

from cdc_runner.connections import safe_message
from cdc_runner.destinations.postgres.type_names import SchemaMap, target_type
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import Column, TableId, TableSchema, quote_identifier


def column_definition(
    target: psycopg2.extensions.connection, column: Column, schema_map: SchemaMap, *, not_null: bool = True
) -> str:
    """Return a column's name, type, NOT NULL and generation expression for CREATE TABLE and ADD COLUMN."""
    definition = f"{quote_identifier(column.name)} {target_type(column, schema_map)}"
    if column.generated and column.expression is not None:
        virtual = column.virtual and target.server_version >= 180000
        definition += f" GENERATED ALWAYS AS ({column.expression}) {'VIRTUAL' if virtual else 'STORED'}"
    return definition + (" NOT NULL" if column.not_null and not_null else "")


def expression_path(schema: TableSchema, schema_map: SchemaMap) -> list[str]:
    """Return the `search_path` under which the source's expressions mean at the target what they mean there."""
    return [schema_map(schema.table.schema), schema_map("public"), "public"]


def identifier_list(names: Sequence[str]) -> str:
    """Return names as a list of SQL identifiers."""
    return ", ".join(map(quote_identifier, names))


def holds_rows(target: psycopg2.extensions.connection, table: TableId) -> bool:
    """Tell whether a table holds any row."""
    with target.cursor() as cursor:
        cursor.execute(f"SELECT FROM {table.quoted} LIMIT 1")
        return bool(cursor.rowcount)


def key_refused(table: TableId, schema: TableSchema, error: psycopg2.Error) -> RosettaError:
    """Return the error for rows that do not allow the source's key."""
    return RosettaError(
        ErrorKind.DESTINATION_SCHEMA,
        f"table {table} cannot have the key ({', '.join(schema.key or schema.primary_key)}) of the source: its rows at "
        "the destination hold it twice or without a value; empty the table there, or load it again",
        {"table": str(table), "sqlstate": error.pgcode},
    )


def reason(error: psycopg2.Error) -> str:
    """Return why the server refused a statement, without a value of a row."""
    return safe_message(error.pgcode or "", error.diag.message_primary or "")
