"""Rows of the destination that custom SQL looks up by key, in the transaction that applies a change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import psycopg2.errors
import psycopg2.extensions

from cdc_runner.capture.inspect import read_tables
from cdc_runner.connections import classify, connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId, TableSchema, quote_identifier
from cdc_runner.spec import PostgresAddress

_KEYS_AT_ONCE = 1000


class PostgresLookups:
    """See `cdc_runner.shaping.net.Lookups`; in the transaction of a cursor, which it only reads with."""

    def __init__(self, cursor: psycopg2.extensions.cursor) -> None:
        """Args:
        cursor: of the transaction.
        """
        self._cursor = cursor

    def schemas(self, tables: Iterable[TableId]) -> dict[TableId, TableSchema]:
        """Return the schemas that tables have."""
        # A replica identity is for those who subscribe to the table; rows are found by its primary key.
        return {
            one.table: replace(one, key=one.primary_key or one.key)
            for one in read_tables(self._cursor.connection, tables=tables)
        }

    def rows(
        self, table: TableSchema, columns: Sequence[str], kinds: Sequence[str], keys: Iterable[Sequence[str]]
    ) -> list[tuple[str | None, ...]]:
        """Return rows by key."""
        listed = ", ".join(f"t.{quote_identifier(name)}::text" for name in columns)
        names = [f"k{place}" for place in range(len(table.key))]
        # An index of char(n) is of that type, one of varchar is of text.
        casts = [
            "bpchar" if table.column(key).type_name == "bpchar" else kind
            for key, kind in zip(table.key, kinds, strict=True)
        ]
        same = " AND ".join(
            f"t.{quote_identifier(key)} = k.{name}::{cast}"
            for key, name, cast in zip(table.key, names, casts, strict=True)
        )
        # OFFSET keeps the probe of one key apart, so that its plan does not depend on how many keys there are.
        probe = f"(SELECT {listed} FROM {table.table.quoted} t WHERE {same} OFFSET 0) r".replace("%", "%%")
        given = ", ".join("%s::text[]" for _ in names)
        statement = f"SELECT r.* FROM unnest({given}) k({', '.join(names)}) CROSS JOIN LATERAL {probe}"
        wanted = list(keys)
        found: dict[tuple[str | None, ...], None] = {}
        try:
            for start in range(0, max(1, len(wanted)), _KEYS_AT_ONCE):
                part = wanted[start : start + _KEYS_AT_ONCE]
                self._cursor.execute(statement, [[key[place] for key in part] for place in range(len(names))])
                # Two texts may mean one key.
                found |= dict.fromkeys(self._cursor.fetchall())
        except psycopg2.errors.InsufficientPrivilege as error:
            raise _not_allowed(table.table, self._cursor) from error
        except (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn) as error:
            # It went after its schema was read: the next try names it.
            text = f"custom SQL: table {table.table} of the destination is being changed"
            raise RosettaError(ErrorKind.DESTINATION_UNAVAILABLE, text) from error
        return list(found)


@contextmanager
def lookup_session(address: PostgresAddress, pipeline: str) -> Iterator[PostgresLookups]:
    """Give lookups of a session of their own.

    Raises:
        RosettaError: the destination kinds.
    """
    connection = connect(address, application_name=f"rosetta {pipeline} lookup", side="destination")
    try:
        with connection.cursor() as cursor:
            yield PostgresLookups(cursor)
    except psycopg2.Error as error:
        raise classify(error, "destination") from error
    finally:
        connection.close()


def _not_allowed(table: TableId, cursor: psycopg2.extensions.cursor) -> RosettaError:
    role = quote_identifier(cursor.connection.info.user)
    return RosettaError(
        ErrorKind.DESTINATION_PERMISSION,
        f"custom SQL: the destination's role may not read table {table}: "
        f"GRANT USAGE ON SCHEMA {quote_identifier(table.schema)} TO {role}; GRANT SELECT ON {table.quoted} TO {role}",
        {"sqlstate": "42501"},
    )
