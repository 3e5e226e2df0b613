"""Target tables: made as the source has them, and changed with it."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from cdc_runner.destinations.base import ReloadNeeded
from cdc_runner.destinations.postgres.definition import (
    column_definition,
    expression_path,
    identifier_list,
    key_refused,
    reason,
)
from cdc_runner.destinations.postgres.evolving import Evolving
from cdc_runner.destinations.postgres.target_table import read_target
from cdc_runner.destinations.postgres.type_catalog import search_path
from cdc_runner.destinations.postgres.type_names import SchemaMap
from cdc_runner.destinations.postgres.types import ensure_schema
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId, TableSchema, quote_identifier
from cdc_runner.shaping.evolution import SchemaChange

__all__ = ["ReloadNeeded", "add_key", "create_table", "evolve"]


def create_table(
    target: psycopg2.extensions.connection,
    table: TableId,
    schema: TableSchema,
    schema_map: SchemaMap,
    *,
    with_key: bool = True,
) -> None:
    """Create a target table, and its schema, with the source's columns, types, NOT NULL and key.

    Defaults, identities, foreign keys, other indexes and checks are left out: every value comes from the source.
    Generated columns are generated here too, because no change stream carries them. Types must be there
    (`types.ensure_types`).

    Args:
        target: a connection in the caller's transaction.
        table: the table to create.
        schema: the source's table.
        schema_map: source schema to target schema.
        with_key: False leaves the key to `add_key`, which is faster after a large load.

    Raises:
        RosettaError: DESTINATION_SCHEMA, the table exists, a type is missing or a generated column's expression cannot
            be computed here; DESTINATION_PERMISSION.
    """
    ensure_schema(target, table.schema)
    columns = [column_definition(target, column, schema_map) for column in schema.columns]
    statement = f"CREATE TABLE {table.quoted} ({', '.join(columns)})"
    try:
        with search_path(target, expression_path(schema, schema_map)), target.cursor() as cursor:
            cursor.execute(statement)
    except (psycopg2.ProgrammingError, psycopg2.NotSupportedError) as error:
        raise _not_created(table, schema, error) from None
    if with_key:
        add_key(target, table, schema)


def add_key(target: psycopg2.extensions.connection, table: TableId, schema: TableSchema) -> None:
    """Add the source's primary key, and a unique index on its replica identity where that is another; idempotent.

    Raises:
        RosettaError: DESTINATION_CONFLICT or DESTINATION_SCHEMA, the target's rows do not allow it.
    """
    existing = read_target(target, table)
    if existing is None:
        raise RosettaError(ErrorKind.DESTINATION_SCHEMA, f"table {table} does not exist at the destination")
    try:
        with target.cursor() as cursor:
            if schema.primary_key and existing.primary_key is None:
                cursor.execute(f"ALTER TABLE {table.quoted} ADD PRIMARY KEY ({identifier_list(schema.primary_key)})")
            if schema.key and set(schema.key) != set(schema.primary_key) and existing.unique_on(schema.key) is None:
                cursor.execute(f"CREATE UNIQUE INDEX ON {table.quoted} ({identifier_list(schema.key)})")
    except psycopg2.IntegrityError as error:
        raise key_refused(table, schema, error) from None


def evolve(
    target: psycopg2.extensions.connection,
    table: TableId,
    changes: Sequence[SchemaChange],
    new: TableSchema,
    schema_map: SchemaMap,
    *,
    drop_columns: bool,
) -> list[str]:
    """Change a target table as its source was changed, in the caller's transaction; return the statements that ran.

    A change that the target already shows is passed over. Types must be there (`types.ensure_types`).

    Args:
        target: a connection in the caller's transaction.
        table: the target table.
        changes: what `shaping.evolution.diff` found.
        new: the source's table after the changes.
        schema_map: source schema to target schema.
        drop_columns: drop at the target what is dropped at the source; else keep it, nullable and marked by a comment.

    Raises:
        ReloadNeeded: old rows have new values that only the source knows; roll back and load the table again.
        RosettaError: SCHEMA_CHANGE_HELD, the change would lose values or the target's objects refuse it; nothing may be
            committed then.
    """
    existing = read_target(target, table)
    if existing is None:
        raise RosettaError(
            ErrorKind.SCHEMA_CHANGE_HELD, f"table {table} is gone from the destination, its source changed"
        )
    evolving = Evolving(target, existing, new, schema_map, drop_columns=drop_columns)
    with search_path(target, expression_path(new, schema_map)):
        evolving.run(changes)
    return evolving.statements


def _not_created(table: TableId, schema: TableSchema, error: psycopg2.Error) -> RosettaError:
    if error.pgcode == "42501":
        message = (
            f"the destination's role may not create table {table}: run GRANT CREATE ON SCHEMA "
            f"{quote_identifier(table.schema)} there"
        )
        return RosettaError(ErrorKind.DESTINATION_PERMISSION, message, {"table": str(table)})
    generated = [column.name for column in schema.columns if column.generated]
    hint = f"; its generated columns are {', '.join(generated)}" if generated else ""
    message = (
        f"table {table} could not be created at the destination ({reason(error)}){hint}: create there what is "
        "missing, or create the table by hand"
    )
    return RosettaError(ErrorKind.DESTINATION_SCHEMA, message, {"table": str(table), "sqlstate": error.pgcode})
