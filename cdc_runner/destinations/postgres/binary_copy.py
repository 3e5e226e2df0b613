"""When rows may go from one server to another in COPY's binary form, which neither has to write or read as text."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg2.extensions

from cdc_runner.schema import TableId

BINARY = " (FORMAT binary)"

# Their binary form is the same in every version that is supported, and says no number that another server may have
# given to something else, as those of arrays, enums, domains and extensions do. Text is converted to the client's
# encoding, which both sessions have as UTF-8.
_PORTABLE = (
    "bool", "int2", "int4", "int8", "float4", "float8", "numeric", "text", "varchar", "bpchar", "bytea",
    "date", "time", "timetz", "timestamp", "timestamptz", "interval", "uuid", "jsonb",
)  # fmt: skip

_TYPES = """
SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
  AND t.typnamespace = 'pg_catalog'::regnamespace AND t.typname = ANY(%s)
"""


def is_portable(
    reader: psycopg2.extensions.connection,
    relation: TableId,
    writer: psycopg2.extensions.connection,
    target: TableId,
    columns: Sequence[str],
) -> bool:
    """Tell whether all of these columns have the same plain built-in type on both sides.

    Args:
        reader: session of the source.
        relation: what is read.
        writer: of the destination.
        target: what is written.
        columns: names, the same on both sides.

    Raises:
        psycopg2.Error: a side cannot be asked.
    """
    here, there = _types(reader, relation), _types(writer, target)
    return all(name in here and here[name] == there.get(name) for name in columns)


def _types(connection: psycopg2.extensions.connection, table: TableId) -> dict[str, str]:
    with connection.cursor() as cursor:
        cursor.execute(_TYPES, (table.quoted, list(_PORTABLE)))
        return dict(cursor.fetchall())
