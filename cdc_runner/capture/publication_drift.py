"""Whether an existing publication sends everything of the tables that are replicated; what it leaves out is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import psycopg2.extensions

from cdc_runner.capture.publication import OPERATIONS
from cdc_runner.schema import TableId, TableSchema, quote_identifier


def publication_drift(
    connection: psycopg2.extensions.connection, publication: str, tables: Iterable[TableSchema]
) -> dict[TableId, str]:
    """Return, by table, what a publication leaves out of it and what to do; tables that it does not send are no drift.

    Operations, rows (a row filter), columns (a column list), changes of partitions under their root's name; or what it
    sends beyond them (values of generated columns, which the engines take for columns of their own).
    """
    schemas = {schema.table: schema for schema in tables}
    name = quote_identifier(publication)
    with connection.cursor() as cursor:
        root = "pubviaroot" if connection.server_version >= 130000 else "true"
        cursor.execute(
            f"SELECT pubinsert, pubupdate, pubdelete, pubtruncate, {root} FROM pg_publication WHERE pubname = %s",
            (publication,),
        )
        row = cursor.fetchone()
        if row is None:
            return {}
        details = "attnames::text[], rowfilter" if connection.server_version >= 150000 else "NULL, NULL"
        cursor.execute(
            f"SELECT schemaname, tablename, {details} FROM pg_publication_tables WHERE pubname = %s", (publication,)
        )
        sent = {TableId(one[0], one[1]): (one[2], one[3]) for one in cursor.fetchall()}
    missing = [operation for operation, has in zip(OPERATIONS, row[:4], strict=True) if not has]
    if missing:
        reason = (
            f"publication {publication} does not publish {', '.join(missing)}: "
            f"run ALTER PUBLICATION {name} SET (publish = '{', '.join(OPERATIONS)}')"
        )
        return dict.fromkeys(schemas, reason)
    found = {table: _table_drift(schema, publication, sent) for table, schema in schemas.items()}
    if connection.server_version >= 180000:
        found |= {
            table: f"publication {publication} sends generated columns of {table}: publish it without "
            f"a list of columns, and run ALTER PUBLICATION {name} SET (publish_generated_columns = none)"
            for table, schema in schemas.items()
            # An older server cannot send them, but its view names them.
            if any(column.generated and column.name in (sent.get(table, (None,))[0] or ()) for column in schema.columns)
        }
    for table, schema in schemas.items():
        if schema.partitioned and not row[4]:
            found[table] = (
                f"publication {publication} sends changes of {table} under the names of its partitions: "
                f"run ALTER PUBLICATION {name} SET (publish_via_partition_root = true)"
            )
    return {table: reason for table, reason in found.items() if reason}


def has_column_list(connection: psycopg2.extensions.connection, oid: int) -> bool:
    """Tell whether any publication has a list of columns for a table."""
    if connection.server_version < 150000:
        return False
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_publication_rel WHERE prrelid = %s AND prattrs IS NOT NULL", (oid,))
        return cursor.fetchone() is not None


def _table_drift(
    schema: TableSchema, publication: str, sent: Mapping[TableId, tuple[Sequence[str] | None, str | None]]
) -> str | None:
    columns, row_filter = sent.get(schema.table, (None, None))
    if row_filter is not None:
        return f"publication {publication} sends only some rows of {schema.table}: publish it without WHERE"
    if columns is None:
        return None
    left_out = [column.name for column in schema.stream_columns if column.name not in columns]
    if left_out:
        listed = ", ".join(left_out)
        return f"publication {publication} leaves out {listed} of {schema.table}: publish it without a list of columns"
    return None
