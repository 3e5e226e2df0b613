"""Reading rows of a source by key, as the text that the change stream would bring."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg2
import psycopg2.extensions

from cdc_runner.capture.base import transaction_numbers
from cdc_runner.capture.visibility import wait_until_shown
from cdc_runner.connections import classify, connect
from cdc_runner.schema import TableSchema, quote_identifier
from cdc_runner.spec import PostgresAddress

_KEYS_AT_ONCE = 1000
"""Keys of one statement: a round trip for each would take most of the time."""

Rows = dict[tuple[str, ...], tuple[str | None, ...]]


def fetch_rows(
    connection: psycopg2.extensions.connection,
    schema: TableSchema,
    keys: Sequence[tuple[str, ...]],
    told: bytes = b"",
) -> Rows:
    """Return present rows by key: texts of `stream_columns`; rows that are gone are absent.

    Args:
        connection: to the source, in autocommit.
        schema: of the table.
        keys: texts.
        told: numbers of the transactions that rows must show (`ChangeBatch.numbers`): a stream tells of a commit before
            other sessions see it.

    Raises:
        RosettaError: SOURCE_UNAVAILABLE when those do not become visible.
    """
    wait_until_shown(connection, transaction_numbers(told))
    columns = ", ".join(f"t.{quote_identifier(name)}::text" for name in schema.stream_names)
    names = [f"k{place}" for place in range(len(schema.key))]
    same = " AND ".join(
        f"t.{quote_identifier(key)} = k.{name}::{schema.column(key).type_text}"
        for key, name in zip(schema.key, names, strict=True)
    )
    # OFFSET keeps the probe of one key apart, so that its plan does not depend on how many keys there are.
    statement = f"(SELECT {columns} FROM {schema.table.quoted} t WHERE {same} OFFSET 0) r".replace("%", "%%")
    given = ", ".join("%s::text[]" for _ in names)
    statement = f"SELECT k.*, r.* FROM unnest({given}) k({', '.join(names)}) CROSS JOIN LATERAL {statement}"
    found: Rows = {}
    with connection.cursor() as cursor:
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            cursor.execute(
                statement, [list(column) for column in zip(*keys[start : start + _KEYS_AT_ONCE], strict=True)]
            )
            found |= {row[: len(names)]: row[len(names) :] for row in cursor}
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

    def fetch(self, schema: TableSchema, keys: Sequence[tuple[str, ...]], told: bytes = b"", /) -> Rows:
        """Return present rows by key, not older than the transactions that were told.

        Raises:
            RosettaError: a source kind.
        """
        try:
            return fetch_rows(self.connection(), schema, keys, told)
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "source") from error

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
