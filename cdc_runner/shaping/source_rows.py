"""Questions to the source's server about rows of the stream: do they meet a filter, and what is a row now?

The server that a value comes from is the one place that knows its type, its collation and its enum labels, so it
decides whether a row passes. Values go there by COPY into a temporary table, never in the text of a statement, which
the server might log.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import psycopg2
import psycopg2.extensions
import pyarrow as pa

from cdc_runner.capture.inspect import read_tables
from cdc_runner.capture.visibility import hidden_now, wait_until_shown
from cdc_runner.connections import classify, connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import Column, TableId, TableSchema, quote_identifier
from cdc_runner.shaping.mask import copy_field
from cdc_runner.spec import PostgresAddress

_ROW = "_rosetta_row"
_TIMEOUT = "300s"
_MOST_TOLD = 10_000
"""Transactions to heed; beyond it those that are visible by now are forgotten."""

_COLLATIONS = """
SELECT a.attnum, c.collname, n.nspname FROM pg_attribute a
JOIN pg_collation c ON c.oid = a.attcollation JOIN pg_namespace n ON n.oid = c.collnamespace
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped AND c.collname <> 'default'
"""


class SourceRows:
    """A session at the source, opened when it is needed and again after an error. Not thread-safe."""

    def __init__(self, address: PostgresAddress, pipeline: str) -> None:
        """Args:
        address: the source.
        pipeline: shown in `pg_stat_activity`.
        """
        self._address = address
        self._pipeline = pipeline
        self._connection: psycopg2.extensions.connection | None = None
        self._made: set[str] = set()
        self._collations: dict[TableId, dict[int, str]] = {}
        self._told: frozenset[int] = frozenset()

    def close(self) -> None:
        """Close the session; the next question opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._made.clear()
        self._collations.clear()

    def passing(
        self,
        schema: TableSchema,
        condition: str,
        places: Sequence[int],
        values: Sequence[pa.Array | pa.ChunkedArray],
    ) -> list[int]:
        """Return which rows meet a condition, by their place.

        Args:
            schema: the version of the table that the rows are of.
            condition: as `row_filter.sql` writes it.
            places: of the columns that it reads among the schema's stream columns.
            values: their values as text, one array a column.

        Raises:
            RosettaError: CONFIG_INVALID when the server cannot compute the condition, and the source kinds.
        """
        columns = [schema.stream_columns[place] for place in places]
        try:
            with self._session() as connection, connection.cursor() as cursor:
                name = self._stage(cursor, values)
                typed = self._typed(cursor, schema, columns)
                cursor.execute(
                    f"SELECT v.{_ROW} FROM (SELECT i AS {_ROW}, {typed} FROM {name}) v WHERE {condition} ORDER BY 1"
                )
                return [row[0] for row in cursor.fetchall()]
        except psycopg2.Error as error:
            self.close()
            raise _refused(error, schema) from error

    def check(self, schema: TableSchema, condition: str, places: Sequence[int]) -> None:
        """Make sure that the server can compute a condition over a table's columns.

        Raises:
            RosettaError: CONFIG_INVALID, and the source kinds.
        """
        self.passing(schema, condition, places, [pa.array([], pa.string()) for _ in places])

    def heed(self, transactions: frozenset[int]) -> None:
        """Have later reads of rows show these transactions, which the stream has told.

        Raises:
            RosettaError: the source kinds.
        """
        self._told |= transactions
        if len(self._told) > _MOST_TOLD:
            try:
                with self._session() as connection, connection.cursor() as cursor:
                    self._told = hidden_now(cursor, self._told)
            except psycopg2.Error as error:
                self.close()
                raise classify(error, "source") from error

    def fetch(self, schema: TableSchema, keys: Sequence[Sequence[str]]) -> list[tuple[str | None, ...] | None]:
        """Return present rows by key, in the order of the keys: not older than the transactions that were heeded.

        Args:
            schema: the version of the table that the rows are wanted in: texts of its stream columns.
            keys: the key's values as text.

        Returns:
            A row for each key, None where there is none now. A column that the table has no more is NULL.

        Raises:
            RosettaError: SOURCE_UNAVAILABLE when those do not become visible, and the source kinds.
        """
        try:
            with self._session() as connection:
                wait_until_shown(connection, self._told)
                self._told = frozenset()
                present = read_tables(connection, tables=[schema.table])
                now = {column.number or column.name: column.name for column in present[0].columns} if present else {}
                wanted = [now.get(column.number or column.name) for column in schema.stream_columns]
                own = [now.get(schema.column(name).number or name) for name in schema.key]
                if not present or any(name is None for name in own):
                    return [None] * len(keys)
                return self._fetch(connection, schema, keys, wanted, [name for name in own if name is not None])
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error

    def _fetch(
        self,
        connection: psycopg2.extensions.connection,
        schema: TableSchema,
        keys: Sequence[Sequence[str]],
        wanted: Sequence[str | None],
        own: Sequence[str],
    ) -> list[tuple[str | None, ...] | None]:
        select = ", ".join("NULL" if name is None else f"t.{quote_identifier(name)}::text" for name in wanted)
        same = " AND ".join(
            f"t.{quote_identifier(name)} = s.c{place}::{schema.column(schema.key[place]).type_text}"
            for place, name in enumerate(own)
        )
        with connection.cursor() as cursor:
            columns = [pa.array([key[place] for key in keys], pa.string()) for place in range(len(own))]
            name = self._stage(cursor, columns)
            # The staged keys have no statistics: only a probe of the key's index is sure not to read the whole table.
            for way in ("seqscan", "hashjoin", "mergejoin"):
                cursor.execute(f"SET LOCAL enable_{way} = off")
            cursor.execute(f"SELECT s.i, {select} FROM {name} s JOIN {schema.table.quoted} t ON {same}")
            found = {row[0]: tuple(row[1:]) for row in cursor.fetchall()}
        return [found.get(place) for place in range(len(keys))]

    def _session(self) -> psycopg2.extensions.connection:
        if self._connection is None or self._connection.closed:
            self.close()
            self._connection = connect(
                self._address,
                application_name=f"rosetta {self._pipeline} rows",
                settings={"statement_timeout": _TIMEOUT, "synchronous_commit": "off"},
            )
        return self._connection

    def _stage(self, cursor: psycopg2.extensions.cursor, values: Sequence[pa.Array | pa.ChunkedArray]) -> str:
        """Copy texts into a temporary table that empties itself at the end of the transaction; return its name."""
        name = f"pg_temp.rosetta_rows_{len(values)}"
        if name not in self._made:
            columns = ", ".join(["i bigint", *(f"c{place} text" for place in range(len(values)))])
            cursor.execute(f"CREATE TEMPORARY TABLE {name} ({columns}) ON COMMIT DELETE ROWS")
            cursor.connection.commit()
            self._made.add(name)
        fields = [[copy_field(text) for text in one.to_pylist()] for one in values]
        lines = [b"\t".join((b"%d" % place, *row)) for place, row in enumerate(zip(*fields, strict=True))]
        if lines:
            cursor.copy_expert(f"COPY {name} FROM STDIN", io.BytesIO(b"\n".join(lines) + b"\n"), size=1 << 18)
        return name

    def _typed(self, cursor: psycopg2.extensions.cursor, schema: TableSchema, columns: Sequence[Column]) -> str:
        collations = self._collations.get(schema.table)
        if collations is None:
            cursor.execute(_COLLATIONS, (schema.table.quoted,))
            collations = self._collations[schema.table] = {
                number: f"{quote_identifier(namespace)}.{quote_identifier(name)}"
                for number, name, namespace in cursor.fetchall()
            }
        parts = []
        for place, column in enumerate(columns):
            collation = collations.get(column.number)
            collate = f" COLLATE {collation}" if collation else ""
            parts.append(f"CAST(c{place} AS {column.type_text}){collate} AS {quote_identifier(column.name)}")
        return ", ".join(parts)


def _refused(error: psycopg2.Error, schema: TableSchema) -> RosettaError:
    """A condition that the server cannot compute does not get better with time."""
    named = classify(error, "source")
    if (error.pgcode or "")[:2] in ("22", "42") and error.pgcode != "42501":
        return RosettaError(
            ErrorKind.CONFIG_INVALID,
            f"table {schema.table}: the filter cannot be computed: {named.message}",
            named.detail,
        )
    if error.pgcode == "42501":
        return RosettaError(
            ErrorKind.SOURCE_PERMISSION,
            f"table {schema.table} has a filter, which needs the right to make temporary tables: "
            "GRANT TEMPORARY ON DATABASE ... TO the source's role",
            named.detail,
        )
    return named
