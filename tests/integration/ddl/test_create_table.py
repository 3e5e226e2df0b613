"""Tables made at the target."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cdc_runner.destinations.postgres import ddl, types
from cdc_runner.destinations.postgres.target_table import read_target
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId, quote_identifier
from tests.integration.ddl.conftest import Pair

pytestmark = pytest.mark.pg


def test_generated_identity_serial_and_default_columns(pair: Pair) -> None:
    pair.at_source(
        "CREATE FUNCTION double(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2'",
        "CREATE TYPE mood AS ENUM ('a', 'b')",
        """CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s serial, price numeric(8,2) DEFAULT 1.5,
           at timestamptz NOT NULL DEFAULT now(), m mood DEFAULT 'a',
           stored numeric GENERATED ALWAYS AS (price * 2) STORED, seen int GENERATED ALWAYS AS (s + 1) VIRTUAL,
           label text GENERATED ALWAYS AS (CASE m WHEN 'a' THEN 'A' END) STORED)""",
        "INSERT INTO t (price) VALUES (2), (3.25)",
    )
    schema = pair.create()
    pair.copy(schema)
    pair.assert_equal(schema)
    target = read_target(pair.target, TableId("public", "t"))
    assert target is not None
    columns = target.columns
    assert columns["stored"].column.generated and columns["seen"].column.virtual
    assert not columns["id"].identity and columns["s"].column.default is None and columns["at"].column.default is None
    assert columns["at"].column.not_null and not columns["price"].column.not_null
    assert target.primary_key is not None and target.primary_key.columns == ("id",)


def test_generated_column_that_the_target_cannot_compute_is_refused_with_its_name(pair: Pair) -> None:
    pair.at_source(
        "CREATE FUNCTION double(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2'",
        "CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (double(id)) STORED)",
    )
    with pytest.raises(
        RosettaError, match=r"table public\.t could not be created.*generated columns are twice"
    ) as caught:
        pair.create()
    assert caught.value.kind is ErrorKind.DESTINATION_SCHEMA


def test_keys_keep_the_order_of_the_source(pair: Pair) -> None:
    pair.at_source("CREATE TABLE t (a int, b int, c int, PRIMARY KEY (c, a))")
    pair.create()
    target = read_target(pair.target, TableId("public", "t"))
    assert target is not None and target.primary_key is not None
    assert target.primary_key.columns == ("c", "a")


def test_key_may_follow_the_load(pair: Pair) -> None:
    pair.at_source("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)")
    schema = pair.create(with_key=False)
    table = pair.place(schema)
    pair.copy(schema)
    assert (found := read_target(pair.target, table)) is not None and found.primary_key is None
    ddl.add_key(pair.target, table, schema)
    ddl.add_key(pair.target, table, schema)
    assert (found := read_target(pair.target, table)) is not None and len(found.unique) == 1


def test_key_that_the_rows_refuse_is_a_clear_error(pair: Pair) -> None:
    pair.at_source("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    schema = pair.create(with_key=False)
    pair.copy(schema)
    pair.copy(schema)
    with pytest.raises(RosettaError, match=r"table public\.t cannot have the key \(id\)") as caught:
        ddl.add_key(pair.target, pair.place(schema), schema)
    assert caught.value.kind is ErrorKind.DESTINATION_SCHEMA


def test_replica_identity_index_beside_the_primary_key(pair: Pair) -> None:
    pair.at_source(
        "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL)", "CREATE UNIQUE INDEX codes ON t (code)",
        "ALTER TABLE t REPLICA IDENTITY USING INDEX codes",
    )  # fmt: skip
    schema = pair.create()
    target = read_target(pair.target, pair.place(schema))
    assert target is not None and target.unique_on(["code"]) and target.unique_on(["id"])


def test_tables_without_a_key(pair: Pair) -> None:
    pair.at_source(
        "CREATE TABLE t (a int, b text)", "ALTER TABLE t REPLICA IDENTITY FULL", "INSERT INTO t VALUES (1), (1)"
    )
    schema = pair.create()
    pair.copy(schema)
    pair.assert_equal(schema)
    assert (found := read_target(pair.target, pair.place(schema))) is not None and found.unique == ()


def test_partition_root_becomes_a_plain_table(pair: Pair) -> None:
    pair.at_source(
        "CREATE TABLE t (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
        "INSERT INTO t VALUES (1, '2026-05-05')",
    )
    schema = pair.create()
    pair.copy(schema)
    pair.assert_equal(schema)


_ODD_NAMES = [
    "MiXed", "select", "with space", "a.b", "a_b", 'quo"te', "x;--", "é😀日本", "a%sb", "{}", "$1", "\\'",
    "x" * 63, "😀" * 15 + "abc", "mixed", "_rosetta_rename_0",
]  # fmt: skip


def test_odd_names_of_schemas_tables_and_columns(pair: Pair) -> None:
    for schema in ("Odd.schema", "public"):
        with pair.source.cursor() as cursor:
            if schema != "public":
                cursor.execute(f"CREATE SCHEMA {quote_identifier(schema)}")
            for name in _ODD_NAMES:
                table = TableId(schema, name)
                columns = ", ".join(f"{quote_identifier(column)} text" for column in _ODD_NAMES)
                cursor.execute("CREATE TABLE " + table.quoted + " (id int PRIMARY KEY, " + columns + ")")
        for name in _ODD_NAMES:
            found = pair.create(name, schema)
            there = read_target(pair.target, TableId(schema, name))
            assert there is not None and tuple(there.columns) == found.column_names


def test_sixteen_hundred_columns(pair: Pair) -> None:
    columns = ", ".join(f"c{number} int" for number in range(1599))
    pair.at_source(f"CREATE TABLE t (id int PRIMARY KEY, {columns})")
    schema = pair.create()
    target = read_target(pair.target, pair.place(schema))
    assert target is not None and len(target.columns) == 1600


def test_mapped_schema_is_created(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(lambda schema: "Ziel 1")
    pair.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    schema = pair.create()
    assert read_target(pair.target, TableId("Ziel 1", "t")) is not None
    assert pair.place(schema).schema == "Ziel 1"


def test_missing_right_names_the_grant(pair: Pair) -> None:
    pair.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    pair.at_target("CREATE ROLE plain_role", "SET ROLE plain_role")
    with pytest.raises(RosettaError, match="GRANT CREATE ON SCHEMA") as caught:
        pair.create()
    assert caught.value.kind is ErrorKind.DESTINATION_PERMISSION


def test_schema_that_may_not_be_created_names_the_statement(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(lambda schema: "dw")
    pair.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    pair.at_target("CREATE ROLE plain_role", "SET ROLE plain_role")
    with pytest.raises(RosettaError, match='run CREATE SCHEMA "dw" there') as caught:
        pair.create()
    assert caught.value.kind is ErrorKind.DESTINATION_PERMISSION


def test_search_path_of_both_sessions_is_as_before(pair: Pair) -> None:
    pair.at_source("CREATE TYPE mood AS ENUM ('a')", "CREATE TABLE t (id int PRIMARY KEY, m mood)")
    before = pair.at_target("SHOW search_path")
    schema = pair.create()
    types.refresh_types(pair.source, pair.target, [schema], pair.schema_map)
    assert pair.at_target("SHOW search_path") == before
    with pair.source.cursor() as cursor:
        cursor.execute("SHOW search_path")
        assert cursor.fetchall() == before
