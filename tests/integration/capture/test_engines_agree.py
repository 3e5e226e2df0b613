"""Both capture engines give the same rows with the same stamps, wherever Debezium's batches end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2.extensions
import pytest

from cdc_runner.capture.assemble import BatchSettings
from cdc_runner.capture.inspect import read_tables
from cdc_runner.capture.pgoutput.stream import PgoutputStream
from cdc_runner.capture.registry import SchemaRegistry
from cdc_runner.schema import TableSchema
from cdc_runner.spec import SourceSpec
from tests.support.debezium_child import Rows, stream_rows
from tests.support.servers import Database, PostgresServer

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(400)]

DDL = """
CREATE TABLE plain (id int PRIMARY KEY, "Wei/rd ""~" text, big text);
CREATE TABLE whole (id int PRIMARY KEY, "Wei/rd ""~" text, big text);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE keyless (id int, "Wei/rd ""~" text, big text);
ALTER TABLE keyless REPLICA IDENTITY FULL;
CREATE TABLE by_index (other text, id int NOT NULL, "Wei/rd ""~" text, big text);
CREATE UNIQUE INDEX by_index_id ON by_index (id);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id;
"""
TABLES = ("plain", "whole", "keyless", "by_index")
TEXTS = [None, "", "é😀", 'q"\\', "tab\tline\n", "\\N", "~rosetta-unchanged-0~", "NULL"]
TRANSACTIONS = 60
SEED = 20261130


def write(connection: psycopg2.extensions.connection, chance: random.Random) -> None:
    """Write transactions of every operation, with values that updates leave out and keys that change."""
    big = f"repeat(md5('{chance.random()}'), 200)"
    for _ in range(TRANSACTIONS):
        with connection, connection.cursor() as cursor:
            for _ in range(chance.randint(1, 12)):
                change(cursor, chance, chance.choice(TABLES), big)
    write_large(connection)
    with connection, connection.cursor() as cursor:
        # Deletes and inserts that look like a changed key, and a changed key that leaves a value out.
        cursor.execute("INSERT INTO plain SELECT i, 'x', " + big + " FROM generate_series(1001, 1020) i")
        cursor.execute("DELETE FROM plain WHERE id = 1001")
        cursor.execute("INSERT INTO plain VALUES (1030, 'y', 'small')")
        cursor.execute("UPDATE plain SET id = id + 100 WHERE id BETWEEN 1002 AND 1020")


def write_large(connection: psycopg2.extensions.connection) -> None:
    """Write values that are too large for Debezium's heap to hold them for long, under keys that change as well."""
    huge = "repeat('é😀x', 200000)"
    statements = (
        f"INSERT INTO whole VALUES (9001, {huge}, {huge} || '1')",
        f"INSERT INTO plain VALUES (9001, {huge} || '2', 'small'), (9002, NULL, {huge} || '3')",
        f"INSERT INTO keyless VALUES (9001, 'x', {huge} || '4')",
        "UPDATE whole SET id = 9002 WHERE id = 9001",
        f"UPDATE plain SET id = 9003, big = {huge} || '5' WHERE id = 9002",
        "UPDATE plain SET id = 9004 WHERE id = 9001",
        "UPDATE whole SET big = 'small' WHERE id = 9002",
        "DELETE FROM keyless WHERE id = 9001",
        "DELETE FROM whole WHERE id = 9002",
    )
    for number in range(0, len(statements), 3):
        with connection, connection.cursor() as cursor:
            for statement in statements[number : number + 3]:
                cursor.execute(statement)


def change(cursor: psycopg2.extensions.cursor, chance: random.Random, table: str, big: str) -> None:
    what = chance.choice(["insert", "insert", "small", "big", "key", "both", "delete", "truncate"])
    one, text = chance.randint(1, 40), chance.choice(TEXTS)
    if what == "insert":
        values = f"SELECT i, %s, {big} FROM generate_series(%s, %s) i"
        columns = 'id, "Wei/rd ""~", big'
        conflict = "" if table == "keyless" else "ON CONFLICT DO NOTHING"
        cursor.execute(f"INSERT INTO {table} ({columns}) {values} {conflict}", (text, one, one + 5))
    elif what == "small":
        cursor.execute(f'UPDATE {table} SET "Wei/rd ""~" = %s WHERE id %% 3 = %s', (text, one % 3))
    elif what == "big":
        cursor.execute(f"UPDATE {table} SET big = {big} || %s WHERE id = %s", (str(one), one))
    elif what == "key":
        cursor.execute(f"UPDATE {table} SET id = id + 1000000 WHERE id = %s", (one,))
    elif what == "both":
        cursor.execute(f"UPDATE {table} SET id = id + 2000000, big = 'small' WHERE id = %s", (one,))
    elif what == "delete":
        cursor.execute(f"DELETE FROM {table} WHERE id %% 7 = %s", (one % 7,))
    elif chance.random() < 0.3:
        cursor.execute(f"TRUNCATE {table}")


@pytest.fixture(scope="module")
def written(source_server: PostgresServer) -> Iterator[tuple[Database, list[TableSchema]]]:
    database = source_server.create_database("test_engines_agree")
    try:
        database.execute(DDL)
        database.execute(";".join(f"ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL" for table in TABLES))
        database.execute("CREATE PUBLICATION p FOR ALL TABLES")
        for slot in ("agree_pgoutput", "agree_debezium", "agree_single"):
            database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
        with closing(database.connect()) as connection:
            connection.autocommit = False
            write(connection, random.Random(SEED))
            schemas = read_tables(connection, patterns=["public.*"])
        yield database, schemas
    finally:
        source_server.drop_database(database.name)


def by_pgoutput(database: Database, schemas: list[TableSchema], directory: Path) -> tuple[Rows, int]:
    """Return the rows, and how many transactions there are."""
    spec = SourceSpec(1, "s", database.address(), "p", "agree_pgoutput", ("*.*",), "pgoutput")
    known = {schema.table: schema for schema in schemas}
    settings = BatchSettings(stamped=True)
    registry = SchemaRegistry(schemas, known.__getitem__)
    stream = PgoutputStream(spec, registry, list(known), settings=settings, spill_directory=directory)
    found: Rows = {schema.table.name: [] for schema in schemas}
    transactions = 0
    try:
        for batch in stream.batches():
            transactions += batch.transactions
            for segment in batch.segments():
                for changes in segment.tables:
                    found[changes.version.schema.table.name] += changes.rows.to_pylist()
            if any(row["c0"] == "1030" for row in found["plain"]):
                return found, transactions
    finally:
        stream.close()
    raise AssertionError("the stream ended by itself")


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on where a batch begins; commit times in milliseconds, as Debezium has them."""
    kept = {name: value for name, value in row.items() if name != "ord" and value is not None}
    return kept | {"at": int(row["at"] * 1000 + 0.0005)}


def test_the_same_rows_and_stamps_wherever_batches_end(
    written: tuple[Database, list[TableSchema]], tmp_path: Path
) -> None:
    database, schemas = written
    expected, transactions = by_pgoutput(database, schemas, tmp_path)
    kinds = {(name, row["op"]) for name, rows in expected.items() for row in rows}
    assert {("plain", "m"), ("by_index", "m"), ("whole", "d"), ("keyless", "t"), ("keyless", "i")} <= kinds
    tables = [schema.table for schema in schemas]
    for slot, properties in (("agree_debezium", {}), ("agree_single", {"max.batch.size": "1"})):
        found = stream_rows(
            database.address(), slot, "p", tables, transactions, stamped=True, properties=properties, zone="UTC"
        )
        for name, rows in expected.items():
            assert [comparable(row) for row in found[name]] == [comparable(row) for row in rows], (slot, name)
