"""Rows of the source for custom SQL: read by key under one snapshot that shows at least what the stream has told."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg2
import psycopg2.extensions
import pyarrow as pa
import structlog

from cdc_runner.capture.inspect import read_tables
from cdc_runner.capture.visibility import Patience, hidden_now
from cdc_runner.connections import classify, connect
from cdc_runner.custom_sql.plan import BoundTable, CustomPlan
from cdc_runner.custom_sql.query import ROW_KEY
from cdc_runner.custom_sql.types import lookup_kind
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId, TableSchema, quote_identifier
from cdc_runner.shaping.mask import Masker, copy_field
from cdc_runner.shaping.net import Lookups
from cdc_runner.spec import PostgresAddress

log = structlog.get_logger()

RowKey = tuple[str, ...]

_TIMEOUT = "300s"
_KEYS = "pg_temp.rosetta_custom_keys"
_WIDTH = 32
"""Most columns that a key can have, as in PostgreSQL's indexes."""


@dataclass(frozen=True, slots=True)
class Masks:
    """What hides columns of the source's tables from the statement, by table and column."""

    maskers: dict[tuple[TableId, str], Masker]

    @property
    def columns(self) -> dict[TableId, frozenset[str]]:
        """The masked columns by table."""
        tables = {table for table, _ in self.maskers}
        return {table: frozenset(name for one, name in self.maskers if one == table) for table in tables}


class CustomSource:
    """A session at the source, opened when it is needed and again after an error. Not thread-safe."""

    def __init__(self, address: PostgresAddress, pipeline: str, snapshot_statement: str | None = None) -> None:
        """Args:
        address: the source.
        pipeline: shown in `pg_stat_activity`.
        snapshot_statement: makes a transaction see an exported snapshot; every read then is of that one.
        """
        self._address = address
        self._pipeline = pipeline
        self._snapshot_statement = snapshot_statement
        self._connection: psycopg2.extensions.connection | None = None

    def close(self) -> None:
        """Close the session; the next read opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    @contextmanager
    def snapshot(self, lookups: Lookups, transactions: frozenset[int] = frozenset()) -> Iterator[SnapshotRows]:
        """Give rows of one snapshot.

        A transaction that the stream has told may not be visible yet: its commit is in the WAL before other sessions
        see it, under synchronous replication for long. So the snapshot is taken anew until it shows them all.

        Args:
            lookups: reads tables of the destination.
            transactions: numbers of those that it must show.

        Raises:
            RosettaError: SOURCE_UNAVAILABLE when they do not become visible, and the source kinds.
        """
        try:
            connection = self._session()
            cursor = connection.cursor()
            patience = Patience()
            while self._hidden(cursor, transactions):
                connection.rollback()
                patience.wait()
            yield SnapshotRows(cursor, lookups)
            connection.rollback()
        except psycopg2.Error as error:
            self.close()
            raise _named(error) from error
        except BaseException:
            self.close()
            raise

    def _hidden(self, cursor: psycopg2.extensions.cursor, transactions: frozenset[int]) -> bool:
        """Begin a transaction, and tell whether its snapshot lacks one of the transactions."""
        if self._snapshot_statement is not None:
            cursor.execute(self._snapshot_statement)
            return False
        return bool(hidden_now(cursor, transactions))

    def _session(self) -> psycopg2.extensions.connection:
        if self._connection is None or self._connection.closed:
            settings = {"statement_timeout": _TIMEOUT, "synchronous_commit": "off"}
            connection = connect(self._address, application_name=f"rosetta {self._pipeline} sql", settings=settings)
            with connection, connection.cursor() as cursor:
                columns = ", ".join(f"c{place} text" for place in range(_WIDTH))
                cursor.execute(f"CREATE TEMPORARY TABLE rosetta_custom_keys ({columns}) ON COMMIT DELETE ROWS")
            connection.set_session(isolation_level="REPEATABLE READ")
            self._connection = connection
        return self._connection


class SnapshotRows:
    """Rows of a snapshot, as texts, and rows of the destination that they lead to."""

    def __init__(self, cursor: psycopg2.extensions.cursor, lookups: Lookups) -> None:
        self._cursor = cursor
        self.lookups = lookups

    def schemas(self, tables: Iterable[TableId]) -> dict[TableId, TableSchema]:
        """Return the schemas that tables have; those that are gone are absent."""
        return {one.table: one for one in read_tables(self._cursor.connection, tables=sorted(tables))}

    def canonical(self, table: TableSchema, keys: Iterable[RowKey]) -> list[RowKey]:
        """Return keys as the source writes them, each once."""
        self._stage(keys, len(table.key))
        texts = ", ".join(f"({_cast(table, place)})::text" for place in range(len(table.key)))
        self._cursor.execute(f"SELECT DISTINCT {texts} FROM {_KEYS} s ORDER BY {texts}")
        return [tuple(row) for row in self._cursor.fetchall()]

    def read(self, plan: CustomPlan, keys: Sequence[RowKey], masks: Masks) -> list[pa.Table]:
        """Return what the statement reads for rows of the base: those rows, and the rows of the joined tables."""
        self._stage(keys, len(plan.base.schema.key))
        # Staged keys have no statistics: only probes of indexes are sure not to read whole tables.
        for way in ("seqscan", "hashjoin", "mergejoin"):
            self._cursor.execute(f"SET LOCAL enable_{way} = off")
        found = [self._base(plan, masks)]
        for place, table in enumerate(plan.tables[1:], 1):
            found.append(look_up(self.lookups, table, found) if table.lookup else self._joined(plan, place, masks))
        return found

    def touched(self, plan: CustomPlan, place: int, keys: Iterable[RowKey], most: int) -> list[RowKey] | None:
        """Return the keys of the base's rows that lead to rows of a joined table; None when there are more than `most`.

        Args:
            plan: of the statement.
            place: of the joined table.
            keys: of its rows, which may be gone.
            most: how many keys are wanted at most.
        """
        table = plan.tables[place]
        self._stage(keys, len(table.schema.key))
        self._cursor.execute("SET LOCAL enable_seqscan = off")
        same = " AND ".join(
            f"t{at}.{quote_identifier(column)} = {_cast(table.schema, number)}"
            for number, (at, column) in enumerate(table.links)
        )
        # Through the tables between the base and this one.
        needed = sorted(_way(plan, place))
        joins = "".join(
            f" JOIN {plan.tables[one].schema.table.quoted} t{one} ON {_links(plan, one)}" for one in needed if one
        )
        texts = ", ".join(f"t0.{quote_identifier(name)}::text" for name in plan.base.schema.key)
        self._cursor.execute(
            f"SELECT DISTINCT {texts} FROM {_KEYS} s CROSS JOIN {plan.base.schema.table.quoted} t0{joins} "
            f"WHERE {same} LIMIT {most + 1}"
        )
        found = [tuple(row) for row in self._cursor.fetchall()]
        return None if len(found) > most else found

    def all_keys(self, schema: TableSchema, rows: int) -> Iterator[list[RowKey]]:
        """Yield the keys of all rows of a table, so many at a time."""
        texts = ", ".join(f"{quote_identifier(name)}::text" for name in schema.key)
        with self._cursor.connection.cursor("rosetta_custom_rows") as cursor:
            cursor.itersize = rows
            cursor.execute(f"SELECT {texts} FROM {schema.table.quoted}")
            while found := cursor.fetchmany(rows):
                yield [tuple(row) for row in found]

    def _base(self, plan: CustomPlan, masks: Masks) -> pa.Table:
        table = plan.base
        keys = ", ".join(f"t.{quote_identifier(name)}::text" for name in table.schema.key)
        same = " AND ".join(
            f"t.{quote_identifier(name)} = {_cast(table.schema, place)}" for place, name in enumerate(table.schema.key)
        )
        listed = _listed(table)
        self._cursor.execute(
            f"SELECT {listed}, {keys} FROM {_KEYS} s JOIN {table.schema.table.quoted} t ON {same} ORDER BY {keys}"
        )
        return _texts(self._cursor, table, masks, len(table.schema.key))

    def _joined(self, plan: CustomPlan, place: int, masks: Masks) -> pa.Table:
        table = plan.tables[place]
        needed = sorted(_way(plan, place))
        joins = "".join(
            f" JOIN {plan.tables[one].schema.table.quoted} t{one} ON {_links(plan, one)}" for one in needed if one
        )
        base = plan.base.schema
        same = " AND ".join(f"t0.{quote_identifier(name)} = {_cast(base, at)}" for at, name in enumerate(base.key))
        ends = ", ".join(f"t{at}.{quote_identifier(column)}" for at, column in table.links)
        own = ", ".join(f"t.{quote_identifier(name)}" for name in table.schema.key)
        order = ", ".join(f"t.{quote_identifier(name)}::text" for name in table.schema.key)
        self._cursor.execute(
            f"SELECT {_listed(table)} FROM {table.schema.table.quoted} t WHERE ({own}) IN (SELECT {ends} "
            f"FROM {_KEYS} s JOIN {base.table.quoted} t0 ON {same}{joins}) ORDER BY {order}"
        )
        return _texts(self._cursor, table, masks, 0)

    def _stage(self, keys: Iterable[RowKey], width: int) -> None:
        lines = [b"\t".join(copy_field(text) for text in key) for key in keys]
        self._cursor.execute(f"TRUNCATE {_KEYS}")
        columns = ", ".join(f"c{place}" for place in range(width))
        if lines:
            data = io.BytesIO(b"\n".join(lines) + b"\n")
            self._cursor.copy_expert(f"COPY {_KEYS} ({columns}) FROM STDIN", data, size=1 << 18)


def look_up(lookups: Lookups, table: BoundTable, before: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of a table of the destination that rows of the tables before it lead to.

    Args:
        lookups: reads them.
        table: which table.
        before: rows of the tables before it, by place; none to try only whether it can be read.
    """
    keys: set[tuple[str, ...]] = set()
    if before:
        values = [before[at].column(column).to_pylist() for at, column in table.links]
        keys = {key for key in zip(*values, strict=True) if None not in key}
    names = [column.name for column in table.columns]
    kinds = [lookup_kind(table.schema.column(name)) or "text" for name in table.schema.key]
    rows = lookups.rows(table.schema, names, kinds, sorted(keys))
    return pa.table({name: pa.array([row[place] for row in rows], pa.string()) for place, name in enumerate(names)})


def key_text(key: Sequence[str | None]) -> str:
    """Return the texts of a key as one text."""
    return json.dumps(list(key), ensure_ascii=False, separators=(",", ":"))


def key_of_text(text: str) -> tuple[str | None, ...]:
    """Return the key of its text."""
    return tuple(json.loads(text))


def _way(plan: CustomPlan, place: int) -> set[int]:
    """Return the places of the tables between the base and a joined table, the base included."""
    found: set[int] = {0}
    for at, _ in plan.tables[place].links:
        if at:
            found |= {at} | _way(plan, at)
    return found


def _links(plan: CustomPlan, place: int) -> str:
    table = plan.tables[place]
    return " AND ".join(
        f"t{place}.{quote_identifier(name)} = t{at}.{quote_identifier(column)}"
        for name, (at, column) in zip(table.schema.key, table.links, strict=True)
    )


def _cast(schema: TableSchema, place: int) -> str:
    return f"s.c{place}::{schema.column(schema.key[place]).type_text}"


def _listed(table: BoundTable) -> str:
    return ", ".join(f"t.{quote_identifier(column.name)}::text" for column in table.columns)


def _texts(cursor: psycopg2.extensions.cursor, table: BoundTable, masks: Masks, key_width: int) -> pa.Table:
    rows = cursor.fetchall()
    columns: dict[str, pa.Array] = {}
    names = [*(column.name for column in table.columns), *(f"{ROW_KEY}{number}" for number in range(key_width))]
    for place, name in enumerate(names):
        values: list[str | None] = [row[place] for row in rows]
        mask = masks.maskers.get((table.schema.table, name)) if place < len(table.columns) else None
        columns[name] = pa.array(values if mask is None else [mask(value) for value in values], pa.string())
    return pa.table(columns)


def _named(error: psycopg2.Error) -> RosettaError:
    """What the tables do not have any more does not come back with time."""
    named = classify(error, "source")
    if (error.pgcode or "")[:2] == "42" and error.pgcode != "42501":
        return RosettaError(
            ErrorKind.CONFIG_INVALID,
            f"custom SQL: a table or column that it reads is not at the source any more: {named.message}",
            named.detail,
        )
    return named
