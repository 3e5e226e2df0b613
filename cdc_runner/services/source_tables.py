"""Tables, publication and schema of a source as they are at the server now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import psycopg2.extensions
from sqlalchemy.orm import Session

from cdc_runner.capture.inspect import matches, read_tables, unsafe_identity
from cdc_runner.capture.publication import drop_publication, ensure_publication, published_tables
from cdc_runner.capture.publication_drift import publication_drift
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.file_format import covers
from cdc_runner.catalog.models import Source
from cdc_runner.catalog.pipelines import destination_address, snowflake_address, source_address
from cdc_runner.catalog.repositories import get_destination, get_source, lock_configuration
from cdc_runner.catalog.table_entry import split_table
from cdc_runner.connections import Side, classify, connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.spec import PostgresAddress, SnowflakeAddress

_SIZES = """
SELECT n.nspname, c.relname, greatest(c.reltuples, 0)::bigint, pg_total_relation_size(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')
"""


@contextmanager
def _session(address: PostgresAddress, purpose: str, side: Side) -> Iterator[psycopg2.extensions.connection]:
    settings = {"statement_timeout": "30000"}
    with closing(connect(address, application_name=f"rosetta {purpose}", side=side, settings=settings)) as connection:
        try:
            yield connection
        except psycopg2.Error as error:
            raise classify(error, side) from None


def list_tables(session: Session, name: str, keyring: Keyring | None = None) -> list[dict[str, Any]]:
    """Return every table of a source: whether its patterns take it, whether it is published, size, and what hinders it.

    Raises:
        RosettaError: NOT_FOUND, CREDENTIAL_*, or the source's connection errors.
    """
    source = get_source(session, name)
    address = source_address(source, keyring or Keyring.from_environment())
    with _session(address, "tables", "source") as connection:
        schemas = read_tables(connection)
        published = published_tables(connection, source.publication_name) or set()
        with connection.cursor() as cursor:
            cursor.execute(_SIZES)
            sizes = {TableId(schema, table): (rows, size) for schema, table, rows, size in cursor.fetchall()}
    return [_table(source, schema, schema.table in published, sizes.get(schema.table)) for schema in schemas]


def _table(source: Source, schema: TableSchema, published: bool, size: tuple[int, int] | None) -> dict[str, Any]:
    rows, size_bytes = size or (None, None)
    return {
        "table": str(schema.table),
        "registered": matches(schema.table, source.table_patterns),
        "published": published,
        "columns": len(schema.columns),
        "key": list(schema.key),
        "estimated_rows": rows,
        "size_bytes": size_bytes,
        "hindrance": unsafe_identity(schema),
    }


def browse_source(session: Session, name: str, table: str, keyring: Keyring | None = None) -> list[dict[str, Any]]:
    """Return the columns of a source's tables; `table` is a pattern such as `public.orders` or `sales.*`.

    Raises:
        RosettaError: NOT_FOUND, CREDENTIAL_*, CONFIG_INVALID, or connection errors.
    """
    source = get_source(session, name)
    return _columns(source_address(source, keyring or Keyring.from_environment()), table, "source")


def browse_destination(session: Session, name: str, table: str, keyring: Keyring | None = None) -> list[dict[str, Any]]:
    """Return the columns of a destination's tables; `table` is a pattern.

    Of Snowflake it is not told what a key is made of: `in_key` is None.

    Raises:
        RosettaError: NOT_FOUND, CREDENTIAL_*, CONFIG_INVALID, or connection errors.
    """
    destination, keys = get_destination(session, name), keyring or Keyring.from_environment()
    if destination.type == "snowflake":
        return _snowflake_columns(snowflake_address(destination, keys), table)
    return _columns(destination_address(destination, keys), table, "destination")


def _snowflake_columns(address: SnowflakeAddress, pattern: str) -> list[dict[str, Any]]:
    from cdc_runner.destinations.snowflake.administration import read_columns

    return [
        {
            "table": str(column.table),
            "column": column.name,
            "type": column.type,
            "nullable": column.nullable,
            "in_key": None,
            "default": column.default,
        }
        for column in read_columns(address, pattern)
    ]


def _columns(address: PostgresAddress, pattern: str, side: Side) -> list[dict[str, Any]]:
    with _session(address, "browse", side) as connection:
        schemas = read_tables(connection, [pattern])
    return [
        {
            "table": str(schema.table),
            "column": column.name,
            "type": column.type_text,
            "nullable": not column.not_null,
            "in_key": column.name in schema.key,
            "default": column.default,
        }
        for schema in schemas
        for column in schema.columns
    ]


def register_tables(session: Session, name: str, tables: Sequence[str], keyring: Keyring | None = None) -> list[str]:
    """Let a source take more tables (or patterns); its pipeline publishes and loads them when it starts anew by itself.

    Returns:
        The patterns that were added; one that is covered already is not.

    Raises:
        RosettaError: NOT_FOUND, also for a table that is not at the source; CREDENTIAL_*; connection errors.
    """
    lock_configuration(session)
    source = get_source(session, name)
    exact = [one for one in tables if not any(character in one for character in "*?[")]
    if exact:
        address = source_address(source, keyring or Keyring.from_environment())
        with _session(address, "register", "source") as connection:
            wanted = {TableId(*split_table(one)) for one in exact}
            missing = wanted - {schema.table for schema in read_tables(connection, tables=sorted(wanted))}
        if missing:
            raise RosettaError(
                ErrorKind.NOT_FOUND, f"source {name} has no table {', '.join(map(str, sorted(missing)))}"
            )
    patterns = list(source.table_patterns)
    added = [
        one for one in dict.fromkeys(tables) if one not in patterns and not (one in exact and covers(patterns, one))
    ]
    if added:
        source.table_patterns = [*patterns, *added]
        session.flush()
    return added


def unregister_tables(session: Session, name: str, tables: Sequence[str]) -> list[str]:
    """Let a source take tables (or patterns) no more; what was copied stays at the targets.

    Raises:
        RosettaError: NOT_FOUND for one that is not in the list; CONFLICT when none would be left, or when a wider
            pattern takes the table still.
    """
    lock_configuration(session)
    source = get_source(session, name)
    patterns = list(source.table_patterns)
    for one in tables:
        if one not in patterns:
            wider = [pattern for pattern in patterns if covers([pattern], one)]
            if wider:
                raise RosettaError(
                    ErrorKind.CONFLICT, f"{one} is taken by the pattern {wider[0]}: replace that by the tables wanted"
                )
            raise RosettaError(ErrorKind.NOT_FOUND, f"{one} is not registered; registered: {', '.join(patterns)}")
    kept = [one for one in patterns if one not in tables]
    if not kept:
        raise RosettaError(ErrorKind.CONFLICT, "a source needs at least one table or pattern")
    source.table_patterns = kept
    session.flush()
    return [one for one in patterns if one not in kept]


def create_publication(
    session: Session, name: str, tables: Sequence[str], keyring: Keyring | None = None
) -> dict[str, Any]:
    """Make the publication of a source now, or add tables to it. A pipeline does this by itself when it starts.

    Raises:
        RosettaError: NOT_FOUND for a table; SOURCE_TABLE_UNSUPPORTED for one whose updates would fail once published;
            PUBLICATION_DRIFT; SOURCE_PERMISSION; connection errors.
    """
    source = get_source(session, name)
    patterns = list(tables) or list(source.table_patterns)
    address = source_address(source, keyring or Keyring.from_environment())
    with _session(address, "publication", "source") as connection:
        schemas = read_tables(connection, patterns)
        connection.rollback()
        if not schemas:
            raise RosettaError(ErrorKind.NOT_FOUND, f"source {name} has no table that matches {', '.join(patterns)}")
        unsafe = {str(one.table): why for one in schemas if (why := unsafe_identity(one)) is not None}
        exact = unsafe if tables else {}
        if exact:
            table, why = next(iter(exact.items()))
            raise RosettaError(ErrorKind.SOURCE_TABLE_UNSUPPORTED, f"{table}: {why}")
        usable = [one for one in schemas if str(one.table) not in unsafe]
        drift = publication_drift(connection, source.publication_name, usable)
        connection.rollback()
        if drift:
            raise RosettaError(ErrorKind.PUBLICATION_DRIFT, next(iter(drift.values())))
        added = ensure_publication(connection, source.publication_name, usable)
    return {
        "publication": source.publication_name,
        "added": sorted(map(str, added)),
        "already_there": sorted(str(one.table) for one in usable if one.table not in added),
        "left_out": unsafe,
    }


def remove_publication(session: Session, name: str, keyring: Keyring | None = None) -> bool:
    """Drop the publication of a source; tell whether there was one.

    Raises:
        RosettaError: CONFLICT while a pipeline of the source is to run: its changes would be lost; connection errors.
    """
    source = get_source(session, name)
    for pipeline in source.pipelines:
        if pipeline.status != "PAUSE":
            raise RosettaError(
                ErrorKind.CONFLICT, f"pipeline {pipeline.name} is set to {pipeline.status}: pause it first"
            )
    address = source_address(source, keyring or Keyring.from_environment())
    with _session(address, "publication", "source") as connection:
        return drop_publication(connection, source.publication_name)
