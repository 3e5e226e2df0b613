"""Every type of the server and of the bundled extensions, through the real Debezium engine, compared as text."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cdc_runner.capture.inspect import read_tables
from cdc_runner.capture.readable import unreadable
from cdc_runner.schema import Column, TableSchema
from tests.support import random_values, type_cases
from tests.support.debezium_child import Rows, stream_rows
from tests.support.servers import Database, PostgresServer

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(400)]

OPTIONS = (
    "-c timezone=UTC -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex "
    "-c lc_monetary=C"
)
UNUSUAL = {
    "datestyle": "SQL, DMY",
    "intervalstyle": "iso_8601",
    "bytea_output": "escape",
    "timezone": "Asia/Jakarta",
    "extra_float_digits": "-10",
}
UPDATED, LARGE, LATER = 10_000, 20_000, 30_000
RANDOM_VALUES = 60
SEED = 20261123

Value = str | None


@dataclass
class Streamed:
    """What the source holds and what Debezium made of it, by table: row id -> value."""

    schemas: dict[str, TableSchema]
    expected: dict[str, dict[str, Value]]
    rows: Rows

    def column(self, table: str) -> Column:
        return self.schemas[table].column("v")

    def received(self, table: str) -> list[tuple[str, str, Value, bool]]:
        """Return operation, id, value and whether it stands for an unchanged one, in stream order."""
        names = self.schemas[table].stream_names
        id_, v = names.index("id"), names.index("v")
        return [
            (row["op"], row[f"c{id_}"], row[f"c{v}"], row["x"] is not None and row["x"][v] == "1")
            for row in self.rows[table]
        ]

    def values(self, table: str, row: dict[str, Any]) -> dict[str, Value]:
        """Return a row's values by column."""
        return {name: row[f"c{place}"] for place, name in enumerate(self.schemas[table].stream_names)}


def table_of(number: int) -> str:
    return f"case_{number}"


TABLES = {type_name: table_of(number) for number, type_name in enumerate(type_cases.CASES)}


def create(database: Database) -> None:
    for name, value in UNUSUAL.items():
        database.execute(f"ALTER DATABASE \"{database.name}\" SET {name} = '{value}'")
    for extension in type_cases.EXTENSIONS:
        database.execute(f"CREATE EXTENSION {extension}")
    database.execute(type_cases.SETUP)
    tables = [f"CREATE TABLE {table} (id int PRIMARY KEY, tag int, v {name})" for name, table in TABLES.items()]
    outside = [f"ALTER TABLE {TABLES[name]} ALTER v SET STORAGE EXTERNAL" for name in type_cases.LARGE]
    database.execute(";".join(tables + outside))
    database.execute(
        """CREATE TABLE standard (id int PRIMARY KEY, v int[] DEFAULT '{1}', a int DEFAULT 7, b text DEFAULT 'x',
           c timestamptz DEFAULT now(), d interval DEFAULT '1 day', e money DEFAULT 12, f bytea DEFAULT '\\x00ff',
           g numeric DEFAULT 1.5, h hstore DEFAULT 'a=>1', i point DEFAULT '(1,2)', j bit(3) DEFAULT B'101',
           k time DEFAULT '24:00', l mood DEFAULT 'sad', m jsonb DEFAULT '{}', n float8 DEFAULT 'NaN',
           o bool DEFAULT true, p uuid DEFAULT gen_random_uuid(), q date DEFAULT 'infinity', r timetz DEFAULT '1:00+1',
           s pair DEFAULT '(1,x)', t int4range DEFAULT '[1,2)', u bigint GENERATED ALWAYS AS IDENTITY,
           w int GENERATED ALWAYS AS (a + 1) STORED)"""
    )
    database.execute("CREATE TABLE keyed (v timetz, id numeric, d date, f bytea, PRIMARY KEY (v, id, d, f))")
    database.execute("CREATE TABLE whole (id int, tag int, v text); ALTER TABLE whole ALTER v SET STORAGE EXTERNAL")
    database.execute("ALTER TABLE whole REPLICA IDENTITY FULL")


def values_of(type_name: str) -> list[str]:
    values = list(type_cases.CASES[type_name])
    if type_name in random_values.RANDOM:
        source = random.Random(f"{SEED} {type_name}")
        values += [random_values.RANDOM[type_name](source) for _ in range(RANDOM_VALUES)]
    return values


def write(database: Database) -> None:
    """Write everything in two transactions."""
    connection = database.connect(options=OPTIONS)
    connection.autocommit = False
    with connection.cursor() as cursor:
        for type_name, table in TABLES.items():
            for number, value in enumerate(values_of(type_name)):
                cursor.execute(f"INSERT INTO {table} VALUES (%s, 0, %s)", (number, value))
                cursor.execute(f"INSERT INTO {table} VALUES (%s, 0, NULL)", (number + UPDATED,))
            cursor.execute(
                f"UPDATE {table} u SET v = i.v FROM {table} i WHERE u.id = i.id + %s AND i.id < %s", (UPDATED, UPDATED)
            )
            if type_name in type_cases.LARGE:
                cursor.execute(f"INSERT INTO {table} SELECT {LARGE}, 0, {type_cases.LARGE[type_name]}")
                cursor.execute(f"UPDATE {table} SET tag = 1 WHERE id = %s", (LARGE,))
        names = [column for column in "vabcdefghijklmnopqrst"]
        cursor.execute("INSERT INTO standard(id) VALUES (1)")
        cursor.execute(f"INSERT INTO standard(id, {','.join(names)}) VALUES (2{', NULL' * len(names)})")
        cursor.execute("INSERT INTO keyed VALUES ('24:00+02:30', 1.10, '0044-03-15 BC', '\\x00ff')")
        cursor.execute("UPDATE keyed SET id = 1.100, v = '1:00-3'")
        cursor.execute(f"INSERT INTO whole SELECT 1, 0, {type_cases.LARGE['varchar']}")
        cursor.execute("UPDATE whole SET tag = 1")
    connection.commit()
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("ALTER TYPE mood ADD VALUE 'später' BEFORE 'sad'")
        cursor.execute(f"INSERT INTO {TABLES['mood']} VALUES ({LATER}, 0, 'später')")
    connection.close()


def expected_of(database: Database, tables: Iterable[str]) -> dict[str, dict[str, Value]]:
    # format() calls the output function, as COPY and logical decoding do; a cast to text strips padding.
    connection = database.connect(options=OPTIONS)
    found: dict[str, dict[str, Value]] = {}
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"SELECT id::text, CASE WHEN v IS DISTINCT FROM NULL THEN format('%s', v) END FROM {table}")
            found[table] = dict(cursor.fetchall())
    connection.close()
    return found


@pytest.fixture(scope="module")
def streamed(source_server: PostgresServer) -> Iterator[Streamed]:
    database = source_server.create_database("test_debezium_types")
    try:
        create(database)
        database.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        database.execute("SELECT pg_create_logical_replication_slot('debezium_types', 'pgoutput')")
        write(database)
        connection = database.connect()
        schemas = read_tables(connection, patterns=["public.*"])
        connection.close()
        tables = [schema.table for schema in schemas]
        rows = stream_rows(database.address(), "debezium_types", "everything", tables, transactions=2)
        yield Streamed({schema.table.name: schema for schema in schemas}, expected_of(database, rows), rows)
    finally:
        source_server.drop_database(database.name)


@pytest.mark.parametrize("type_name", type_cases.CASES)
def test_inserted_and_updated_values_arrive_as_the_servers_text(streamed: Streamed, type_name: str) -> None:
    table = TABLES[type_name]
    assert unreadable(streamed.column(table)) is None
    received = {id_: value for _, id_, value, unchanged in streamed.received(table) if not unchanged}
    count = len(values_of(type_name))
    assert count > 0
    assert len(received) >= 2 * count
    assert received == streamed.expected[table]


@pytest.mark.parametrize("type_name", type_cases.LARGE)
def test_unchanged_large_value_is_told_from_every_other_value(streamed: Streamed, type_name: str) -> None:
    table = TABLES[type_name]
    events = [(op, unchanged) for op, id_, _, unchanged in streamed.received(table) if id_ == str(LARGE)]
    assert events == [("u", False), ("u", True)]
    assert not any(unchanged for _, id_, _, unchanged in streamed.received(table) if id_ != str(LARGE))


def test_null_in_a_column_with_a_default_stays_null(streamed: Streamed) -> None:
    given, empty = (streamed.values("standard", row) for row in streamed.rows["standard"])
    assert set(given) == set(streamed.schemas["standard"].column_names) - {"w"}  # generated: not published
    assert None not in given.values()
    assert {name for name, value in empty.items() if value is not None} == {"id", "u"}


def test_changed_key_of_unusual_types_arrives_exactly(streamed: Streamed) -> None:
    first = {"v": "24:00:00+02:30", "id": "1.10", "d": "0044-03-15 BC", "f": "\\x00ff"}
    second = first | {"v": "01:00:00-03", "id": "1.100"}
    rows = [(row["op"], streamed.values("keyed", row)) for row in streamed.rows["keyed"]]
    assert rows == [("u", first), ("d", first), ("u", second)]


def test_full_replica_identity_brings_the_unchanged_large_value(streamed: Streamed) -> None:
    (value,) = streamed.expected["whole"].values()
    assert [(row["op"], row["x"], row["c2"]) for row in streamed.rows["whole"]] == [
        ("i", None, value),
        ("d", None, value),
        ("i", None, value),
    ]


def test_every_type_of_the_server_is_in_the_cases_or_refused(source_server: PostgresServer) -> None:
    database = source_server.create_database("test_debezium_every_type")
    try:
        for extension in type_cases.EXTENSIONS:
            database.execute(f"CREATE EXTENSION {extension}")
        database.execute(type_cases.SETUP)
        types = database.execute(
            """SELECT oid, typname, typnamespace::regnamespace::text, typtype::text, typcategory::text FROM pg_type
               WHERE typtype IN ('b', 'r', 'm') AND typcategory <> 'A' AND typnamespace::regnamespace::text
               IN ('pg_catalog', 'public')"""
        )
        covered = {oid for (oid,) in database.execute("SELECT to_regtype(unnest(%s))::oid", (list(type_cases.CASES),))}
    finally:
        source_server.drop_database(database.name)
    missing = {
        name
        for oid, name, schema, kind, category in types
        if oid not in covered and unreadable(Column("c", name, name, schema, kind, category)) is None
    }
    # xml needs a server with libxml; the others are what indexes store, or the multirange twins of the ranges.
    assert missing == {"xml", "ghstore", "ltree_gist", "floatmultirange", "textmultirange"}


def test_text_is_read_back_as_the_same_value(source_server: PostgresServer) -> None:
    database = source_server.create_database("test_debezium_read_back")
    try:
        for extension in type_cases.EXTENSIONS:
            database.execute(f"CREATE EXTENSION {extension}")
        database.execute(type_cases.SETUP)
        connection = database.connect(options=OPTIONS)
        with connection.cursor() as cursor:
            for type_name in type_cases.CASES:
                for value in values_of(type_name):
                    cursor.execute(
                        f"SELECT format('%%s', format('%%s', %s::{type_name})::{type_name})"
                        f" = format('%%s', %s::{type_name})",
                        (value, value),
                    )
                    assert cursor.fetchall() == [(True,)], type_name
        connection.close()
    finally:
        source_server.drop_database(database.name)


def test_install_fails_when_debezium_has_loaded_its_resolver() -> None:
    script = """
from cdc_runner.capture.debezium import jvm, text_converter
jvm.start(256)
import jpype
jpype.JClass(text_converter._RESOLVER)
text_converter.install()
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode != 0
    assert "RuntimeError: this version of Debezium resolves values in another way" in done.stderr
