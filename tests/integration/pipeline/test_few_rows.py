"""Few rows are written without a staging table; what the target holds is the same either way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest

from cdc_runner.capture.base import TableVersion
from cdc_runner.capture.inspect import read_tables
from cdc_runner.destinations.postgres import few_rows
from cdc_runner.destinations.postgres.divert import merge_rows, multiset_rows
from cdc_runner.destinations.postgres.encode import BinaryEncoder
from cdc_runner.destinations.postgres.type_names import TypePlaces
from cdc_runner.destinations.postgres.writer import TableWriter
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import ResolvedSync
from tests.support.servers import Database

pytestmark = pytest.mark.pg

ODD = [
    "",
    "NULL",
    "null",
    '"',
    "\\",
    '\\"',
    "'",
    "{}",
    "{a,b}",
    ",",
    " ",
    "a\nb\tc\r",
    "%s %",
    "ü €",
    "\U0001f600",
    "\x01",
    "$1",
    None,
]

TABLES = """
CREATE SCHEMA staged; CREATE SCHEMA few;
CREATE TABLE staged.t (id integer PRIMARY KEY, name text, note text, n integer UNIQUE);
CREATE TABLE few.t (LIKE staged.t INCLUDING ALL);
CREATE TABLE staged.keyless (id integer, name text, note text, n integer);
CREATE TABLE few.keyless (LIKE staged.keyless);
"""


def fetched(
    _schema: TableSchema, keys: Sequence[tuple[str, ...]], _told: bytes = b"", /
) -> dict[tuple[str, ...], tuple[str | None, ...]]:
    """What the source holds of the rows that a target lacks: every other one."""
    return {key: (key[0], f"source's {key[0]}", None, None) for key in keys if int(key[0]) % 2}


@pytest.fixture
def connection(target_database: Database) -> Iterator[psycopg2.extensions.connection]:
    with closing(psycopg2.connect(target_database.url("postgresql"))) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute(TABLES)
        yield connection


@pytest.fixture
def encoder(tmp_path: Path) -> Iterator[BinaryEncoder]:
    with closing(BinaryEncoder(tmp_path)) as encoder:
        yield encoder


def version(connection: psycopg2.extensions.connection, schema: str, name: str) -> TableVersion:
    with connection:
        table = next(iter(read_tables(connection, tables=[TableId(schema, name)])))
    return TableVersion(table, 1)


def random_change(version: TableVersion, draw: random.Random) -> NetChange:
    """One row a key, some gone, some with values that the stream left out; or rows of a table without a key."""
    count = draw.randint(0, 12)
    if not version.schema.key:
        rows = [
            {"n": draw.choice([-1, 1, 2]), "c0": str(draw.randint(1, 3)), "c1": draw.choice(ODD), "c2": None, "c3": "7"}
            for _ in range(count)
        ]
        return NetChange(NetKind.MULTISET, version, False, multiset_rows(rows, 4), False, True, count)
    merged = []
    for number in draw.sample(range(1, 40), count):
        gone, marks = draw.random() < 0.2, draw.choice([None, None, "0010", "0011"])
        merged.append(
            {"d": gone, "x": None if gone else marks, "c0": str(number), "c1": draw.choice(ODD), "c2": draw.choice(ODD),
             "c3": None}
        )  # fmt: skip
    net = merge_rows(merged, 4)
    partial = net.column("x").null_count < net.num_rows
    return NetChange(NetKind.MERGE, version, draw.random() < 0.05, net, partial, True, count)


def write(writer: TableWriter, cursor: Any, changes: Sequence[NetChange], *, careful: bool = False) -> None:
    """Write as a destination does: all that belongs to a segment, then what was held back."""
    for change in changes:
        table = change.version.schema.table
        sync = ResolvedSync(None, table, table)
        staging = writer.stage(cursor, sync, change)
        writer.take_away(cursor, sync, change, staging)
        writer.put(cursor, sync, change, staging, careful=careful)
    writer.flush(cursor)


@pytest.mark.parametrize("seed", range(4))
def test_the_target_is_the_same_with_and_without_a_staging_table(
    connection: psycopg2.extensions.connection,
    target_database: Database,
    encoder: BinaryEncoder,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    versions = {
        (schema, name): version(connection, schema, name) for schema in ("staged", "few") for name in ("t", "keyless")
    }
    writers = {schema: TableWriter(encoder, fetched, TypePlaces(lambda one: one)) for schema in ("staged", "few")}
    sessions = {"staged": psycopg2.connect(target_database.url("postgresql")), "few": connection}
    for step in range(60):
        for schema, writer in writers.items():
            session = sessions[schema]
            monkeypatch.setattr(few_rows, "FEW_ROWS", -1 if schema == "staged" else 200)
            draw = random.Random(1000 * seed + step)
            changes = [random_change(versions[schema, draw.choice(["t", "keyless"])], draw) for _ in range(3)]
            with session, session.cursor() as cursor:
                writer.begin()
                write(writer, cursor, changes, careful=draw.random() < 0.3)
        for name in ("t", "keyless"):
            assert held(connection, "few", name) == held(connection, "staged", name), (step, name)
    sessions["staged"].close()
    assert held(connection, "few", "t")


def held(connection: psycopg2.extensions.connection, schema: str, name: str) -> list[str]:
    with connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT t::text FROM {schema}.{name} t ORDER BY 1")
        return [row[0] for row in cursor.fetchall()]


def test_many_tables_take_few_round_trips_and_no_staging_table(
    connection: psycopg2.extensions.connection, encoder: BinaryEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_rows, "PREPARED", 30)
    names = [f"m{number}" for number in range(40)]
    with connection, connection.cursor() as cursor:
        cursor.execute("; ".join(f"CREATE TABLE few.{name} (id integer PRIMARY KEY, v text)" for name in names))
    changes = []
    for name in names:
        rows = merge_rows([{"d": number == 2, "x": None, "c0": str(number), "c1": name} for number in range(20)], 2)
        changes.append(NetChange(NetKind.MERGE, version(connection, "few", name), False, rows, False, True, 20))
    writer = TableWriter(encoder, fetched, TypePlaces(lambda one: one))

    class Counting(psycopg2.extensions.cursor):
        trips = 0

        def execute(self, query: Any, vars: Any = None) -> None:
            type(self).trips += 1
            super().execute(query, vars)

    for _ in range(2):
        writer.begin()
        with connection, connection.cursor(cursor_factory=Counting) as cursor:
            write(writer, cursor, changes)
    assert Counting.trips <= 4
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_class WHERE relpersistence = 't'")
        assert cursor.fetchone() == (0,)
        cursor.execute("SELECT count(*) <= 30 FROM pg_prepared_statements")
        assert cursor.fetchone() == (True,)
        cursor.execute("SELECT count(*), min(v), max(id) FROM few.m39")
        assert cursor.fetchone() == (19, "m39", 19)


def test_a_refused_row_fails_the_transaction_and_the_next_one_begins_clean(
    connection: psycopg2.extensions.connection, encoder: BinaryEncoder
) -> None:
    one = version(connection, "few", "t")
    writer = TableWriter(encoder, fetched, TypePlaces(lambda one: one))

    def change(*values: str) -> NetChange:
        rows = [
            {"d": False, "x": None, "c0": str(number), "c1": "a", "c2": "b", "c3": value}
            for number, value in enumerate(values)
        ]
        return NetChange(NetKind.MERGE, one, False, merge_rows(rows, 4), False, False, len(rows))

    writer.begin()
    with connection, connection.cursor() as cursor:
        write(writer, cursor, [change("1", "2")])
    writer.begin()
    with pytest.raises(psycopg2.errors.UniqueViolation), connection, connection.cursor() as cursor:
        write(writer, cursor, [change("2", "1")])
    writer.begin()
    with connection, connection.cursor() as cursor:
        write(writer, cursor, [change("2", "1")], careful=True)
    assert held(connection, "few", "t") == ["(0,a,b,2)", "(1,a,b,1)"]
