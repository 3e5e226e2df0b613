"""Compare tables of two databases, value by value, as text.

    compare_databases(source, target, {source_table: target_table})   the differences, empty when all are equal

Both sides are read under the same session settings, each in one snapshot. A table is read once on each side and brought
down to a row count and one digest; only where these differ are the keys looked for, bucket by bucket.
A difference names tables, columns and keys, never another value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2.extensions

from cdc_runner.connections import SESSION_SETTINGS
from cdc_runner.schema import TableId, quote_identifier, quote_literal

KEYS_SHOWN = 5
BUCKETS_READ = 8
"""Buckets (of 4096) whose rows are fetched to name keys: enough for KEYS_SHOWN, bounded when a whole table differs."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What one table has differently on the two sides.

    Attributes:
        table: the source table.
        target: the target table.
        reason: `table_missing`, `columns_missing` or `rows`.
        source_rows: rows at the source; None when it was not counted.
        target_rows: rows at the target; None when it was not counted.
        keys: some of the keys whose rows differ, as PostgreSQL writes a row of texts; for a table without a key the
            digests of such rows.
        columns: names of the columns that the target lacks.
    """

    table: str
    target: str
    reason: str
    source_rows: int | None = None
    target_rows: int | None = None
    keys: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the difference for a JSON document."""
        return {
            "table": self.table,
            "target": self.target,
            "reason": self.reason,
            "source_rows": self.source_rows,
            "target_rows": self.target_rows,
            "keys": list(self.keys),
            "columns": list(self.columns),
        }


def compare_databases(
    source: psycopg2.extensions.connection,
    target: psycopg2.extensions.connection,
    tables: Mapping[TableId, TableId],
) -> list[Difference]:
    """Compare the rows of each source table with those of its target table.

    Columns are the source's; the target may have more. Row order plays no role, the number of equal rows does. Both
    connections must be idle; they are left so, with their settings unchanged. Nobody may write during the call if the
    answer is to mean anything.

    Raises:
        ValueError: a connection is inside a transaction, or a source table does not exist.
    """
    with _snapshot(source) as source_cursor, _snapshot(target) as target_cursor:
        found = (
            _compare_table(source_cursor, target_cursor, name, target_name)
            for name, target_name in sorted(tables.items())
        )
        return [difference for difference in found if difference is not None]


def user_tables(connection: psycopg2.extensions.connection, *, schema: str | None = None) -> list[TableId]:
    """Return the tables of users: ordinary ones and partition roots, without leaves and tables of extensions."""
    with _snapshot(connection) as cursor:
        cursor.execute(
            """
            SELECT n.nspname, c.relname
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
              AND n.nspname NOT IN ('pg_catalog', 'information_schema', '_rosetta') AND n.nspname NOT LIKE 'pg\\_%%'
              AND (%(schema)s::text IS NULL OR n.nspname = %(schema)s)
              AND NOT EXISTS (SELECT FROM pg_depend d
                              WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
            ORDER BY 1, 2
            """,
            {"schema": schema},
        )
        return [TableId(schema_name, name) for schema_name, name in cursor.fetchall()]


@contextmanager
def _snapshot(connection: psycopg2.extensions.connection) -> Iterator[psycopg2.extensions.cursor]:
    """Yield a cursor in a read-only snapshot with fixed settings; roll back after."""
    if connection.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_IDLE:
        raise ValueError("a connection to compare is inside a transaction")
    autocommit = connection.autocommit
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            # Names of a regclass or regtype value are qualified on both sides alike.
            for name, value in {**SESSION_SETTINGS, "search_path": ""}.items():
                cursor.execute("SELECT set_config(%s, %s, true)", (name, value))
            yield cursor
    finally:
        if not connection.closed:
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")
            connection.autocommit = autocommit


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is read of one table on one side."""

    relation: str
    columns: tuple[str, ...]
    key: tuple[str, ...]

    @property
    def row(self) -> str:
        return _row_text(self.columns)

    @property
    def identity(self) -> str:
        """Text of a row's key; without a key, the digest of the whole row."""
        return _row_text(self.key) if self.key else f"md5({self.row})"


def _row_text(columns: tuple[str, ...]) -> str:
    # A row of texts writes NULL, the empty text, commas and quotes each in their own way, so no two rows look alike.
    return "ROW(" + ", ".join(f"{quote_identifier(name)}::text" for name in columns) + ")::text"


def _compare_table(
    source: psycopg2.extensions.cursor, target: psycopg2.extensions.cursor, table: TableId, target_table: TableId
) -> Difference | None:
    shape = _shape(source, table)
    if shape is None:
        raise ValueError(f"the source has no table {table}")
    target_shape = _shape(target, target_table)
    if target_shape is None:
        return Difference(str(table), str(target_table), "table_missing")
    missing = tuple(name for name in shape.columns if name not in target_shape.columns)
    if missing:
        return Difference(str(table), str(target_table), "columns_missing", columns=missing)
    # Same columns in the same order, whatever else the target has and however it is ordered there.
    there = _Shape(target_shape.relation, shape.columns, shape.key)
    source_rows, source_digest = _digest(source, shape)
    target_rows, target_digest = _digest(target, there)
    if (source_rows, source_digest) == (target_rows, target_digest):
        return None
    keys = _differing_keys(source, target, shape, there)
    return Difference(str(table), str(target_table), "rows", source_rows, target_rows, keys)


def _shape(cursor: psycopg2.extensions.cursor, table: TableId) -> _Shape | None:
    cursor.execute(
        """
        SELECT c.oid, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
        """,
        (table.schema, table.name),
    )
    found = cursor.fetchone()
    if found is None:
        return None
    oid, kind = found
    cursor.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        (oid,),
    )
    columns = tuple(name for (name,) in cursor.fetchall())
    cursor.execute(
        """
        SELECT a.attname
        FROM pg_index i
        CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, ordinal)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indexrelid = (SELECT indexrelid FROM pg_index
                              WHERE indrelid = %s AND (indisprimary OR indisreplident)
                              ORDER BY indisprimary DESC LIMIT 1)
          AND k.ordinal <= i.indnkeyatts
        ORDER BY k.ordinal
        """,
        (oid,),
    )
    key = tuple(name for (name,) in cursor.fetchall())
    # Children of plain inheritance are tables of their own; a partition root is read with its leaves.
    return _Shape(table.quoted if kind == "p" else f"ONLY {table.quoted}", columns, key)


def _digest(cursor: psycopg2.extensions.cursor, shape: _Shape) -> tuple[int, str]:
    cursor.execute(
        f"""
        SELECT count(*), md5(coalesce(string_agg(digest, '' ORDER BY digest COLLATE "C"), ''))
        FROM (SELECT md5({shape.row}) AS digest FROM {shape.relation}) AS rows
        """
    )
    row = cursor.fetchone()
    assert row is not None
    return int(row[0]), str(row[1])


def _buckets(cursor: psycopg2.extensions.cursor, shape: _Shape) -> dict[str, tuple[int, str]]:
    cursor.execute(
        f"""
        SELECT bucket, count(*), md5(string_agg(digest, '' ORDER BY digest COLLATE "C"))
        FROM (SELECT left(md5({shape.identity}), 3) AS bucket, md5({shape.row}) AS digest FROM {shape.relation}) AS rows
        GROUP BY bucket
        """
    )
    return {bucket: (int(count), str(digest)) for bucket, count, digest in cursor.fetchall()}


def _bucket_rows(cursor: psycopg2.extensions.cursor, shape: _Shape, buckets: list[str]) -> Counter[tuple[str, str]]:
    wanted = ", ".join(quote_literal(bucket) for bucket in buckets)
    cursor.execute(
        f"""
        SELECT {shape.identity}, md5({shape.row}) FROM {shape.relation}
        WHERE left(md5({shape.identity}), 3) IN ({wanted})
        """
    )
    return Counter((identity, digest) for identity, digest in cursor.fetchall())


def _differing_keys(
    source: psycopg2.extensions.cursor, target: psycopg2.extensions.cursor, here: _Shape, there: _Shape
) -> tuple[str, ...]:
    source_buckets, target_buckets = _buckets(source, here), _buckets(target, there)
    names = sorted(source_buckets.keys() | target_buckets.keys())
    differing = [name for name in names if source_buckets.get(name) != target_buckets.get(name)][:BUCKETS_READ]
    source_rows, target_rows = _bucket_rows(source, here, differing), _bucket_rows(target, there, differing)
    unequal = (source_rows - target_rows) + (target_rows - source_rows)
    return tuple(sorted({identity for identity, _ in unequal})[:KEYS_SHOWN])
