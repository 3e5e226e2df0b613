"""Reading rows of a source by key, as the text that the change stream would bring."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg2
import psycopg2.extensions

from cdc_runner.connections import classify, connect
from cdc_runner.schema import TableSchema, quote_identifier
from cdc_runner.spec import PostgresAddress

Rows = dict[tuple[str, ...], tuple[str | None, ...]]


def fetch_rows(
    connection: psycopg2.extensions.connection, schema: TableSchema, keys: Sequence[tuple[str, ...]]
) -> Rows:
    """Return present rows by key: texts of `stream_columns`; rows that are gone are absent."""
    columns = ", ".join(f"t.{quote_identifier(name)}::text" for name in schema.stream_names)
    casts = [f"%s::{schema.column(name).type_text}" for name in schema.key]
    names = ", ".join(f"t.{quote_identifier(name)}" for name in schema.key)
    statement = f"SELECT {columns} FROM {schema.table.quoted} t WHERE ({names}) = ".replace("%", "%%")
    statement += f"({', '.join(casts)})"
    found: Rows = {}
    with connection.cursor() as cursor:
        for key in keys:
            cursor.execute(statement, key)
            row = cursor.fetchone()
            if row is not None:
                found[key] = row
    return found


class SourceRows:
    """A source as short work beside a pipeline needs it: rows by key, and its catalogs. Opens when it is used."""

    def __init__(self, address: PostgresAddress, purpose: str) -> None:
        """Args:
        address: of the source.
        purpose: shown in `pg_stat_activity`.
        """
        self._address = address
        self._purpose = purpose
        self._connection: psycopg2.extensions.connection | None = None

    def connection(self) -> psycopg2.extensions.connection:
        """Return the connection, opened if need be, in autocommit.

        Raises:
            RosettaError: a source kind.
        """
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._address, application_name=f"rosetta {self._purpose}")
            self._connection.autocommit = True
        return self._connection

    def fetch(self, schema: TableSchema, keys: Sequence[tuple[str, ...]]) -> Rows:
        """Return present rows by key.

        Raises:
            RosettaError: a source kind.
        """
        try:
            return fetch_rows(self.connection(), schema, keys)
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
