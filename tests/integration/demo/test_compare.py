from __future__ import annotations

from collections.abc import Iterator

import psycopg2.extensions
import pytest

from cdc_runner.schema import TableId
from rosetta_dagster.demo.compare import Difference, compare_databases, user_tables
from tests.support.servers import Database

pytestmark = pytest.mark.pg

Connection = psycopg2.extensions.connection

SETUP = """
CREATE TABLE keyed (id int PRIMARY KEY, v text, at timestamptz, n numeric);
INSERT INTO keyed SELECT g, 'v' || g, '2024-01-01Z', g / 3.0 FROM generate_series(1, 1000) g;
CREATE TABLE keyless (a int, b text);
INSERT INTO keyless SELECT g % 10, 'x' FROM generate_series(1, 100) g;
CREATE TABLE "Odd.Name" (id int, "part" text, PRIMARY KEY (id, "part")) PARTITION BY LIST ("part");
CREATE TABLE odd_a PARTITION OF "Odd.Name" FOR VALUES IN ('a');
INSERT INTO "Odd.Name" VALUES (1, 'a');
CREATE TABLE without_columns ();
"""


@pytest.fixture
def pair(source_database: Database, target_database: Database) -> Iterator[tuple[Connection, Connection]]:
    source_database.execute(SETUP)
    target_database.execute(SETUP)
    source, target = source_database.connect(), target_database.connect(options="-c TimeZone=Asia/Jakarta")
    yield source, target
    source.close()
    target.close()


def compare(pair: tuple[Connection, Connection]) -> list[Difference]:
    return compare_databases(*pair, {table: table for table in user_tables(pair[0])})


def run(connection: Connection, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def test_equal_tables_have_no_difference_whatever_the_row_order_and_time_zone(
    pair: tuple[Connection, Connection],
) -> None:
    run(pair[1], "UPDATE keyed SET v = v WHERE id % 2 = 0; ALTER TABLE keyed ADD extra int DEFAULT 7")
    assert compare(pair) == []
    assert [table.name for table in user_tables(pair[0])] == ["Odd.Name", "keyed", "keyless", "without_columns"]
    with pair[1].cursor() as cursor:
        cursor.execute("SHOW TimeZone")
        assert cursor.fetchone() == ("Asia/Jakarta",), "the caller's settings were changed"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("UPDATE keyed SET v = NULL WHERE id = 5", "(5)"),
        ("UPDATE keyed SET v = '' WHERE id = 5", "(5)"),
        ("UPDATE keyed SET n = n + 0.00000000000000000001 WHERE id = 5", "(5)"),
        ("UPDATE keyed SET at = at + interval '1 microsecond' WHERE id = 5", "(5)"),
        ("DELETE FROM keyed WHERE id = 7", "(7)"),
        ("INSERT INTO keyed VALUES (4000)", "(4000)"),
        ("""INSERT INTO "Odd.Name" VALUES (2, 'a')""", "(2,a)"),
    ],
)
def test_one_changed_row_is_found_and_named(pair: tuple[Connection, Connection], change: str, key: str) -> None:
    run(pair[1], change)
    (difference,) = compare(pair)
    assert difference.reason == "rows"
    assert difference.keys == (key,)


def test_the_number_of_equal_rows_matters(pair: tuple[Connection, Connection]) -> None:
    run(pair[1], "INSERT INTO keyless VALUES (3, 'x')")
    (difference,) = compare(pair)
    assert (difference.table, difference.source_rows, difference.target_rows) == ("public.keyless", 100, 101)
    assert len(difference.keys) == 1


def test_values_that_moved_between_columns_are_a_difference(pair: tuple[Connection, Connection]) -> None:
    for connection, row in zip(pair, ("('a,b', NULL)", "('a', 'b')"), strict=True):
        run(connection, f"CREATE TABLE moved (x text, y text); INSERT INTO moved VALUES {row}")
    assert [difference.table for difference in compare(pair)] == ["public.moved"]


def test_missing_tables_and_columns_are_named(pair: tuple[Connection, Connection]) -> None:
    run(pair[1], "DROP TABLE keyed; ALTER TABLE keyless DROP COLUMN b")
    found = {difference.table: difference for difference in compare(pair)}
    assert found["public.keyed"].reason == "table_missing"
    assert found["public.keyless"].columns == ("b",)


def test_keys_of_a_table_that_differs_all_over_are_bounded(pair: tuple[Connection, Connection]) -> None:
    run(pair[1], "UPDATE keyed SET v = 'secret'")
    (difference,) = compare(pair)
    assert len(difference.keys) == 5
    assert "secret" not in str(difference.as_json())


def test_tables_are_compared_under_another_name(pair: tuple[Connection, Connection]) -> None:
    run(pair[1], "CREATE SCHEMA copy; ALTER TABLE keyed SET SCHEMA copy")
    assert compare_databases(*pair, {TableId("public", "keyed"): TableId("copy", "keyed")}) == []


def test_a_connection_inside_a_transaction_is_refused(pair: tuple[Connection, Connection]) -> None:
    run(pair[1], "BEGIN")
    with pytest.raises(ValueError, match="inside a transaction"):
        compare(pair)
