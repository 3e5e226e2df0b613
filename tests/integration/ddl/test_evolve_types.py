"""Columns of a source table that change their type, carried out at the target."""

from __future__ import annotations

import pytest

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.shaping.evolution import ChangeKind
from tests.integration.ddl.conftest import Pair, start, there

pytestmark = pytest.mark.pg


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        ("int2", "int4", "-32768"),
        ("int4", "int8", "2147483647"),
        ("int8", "numeric", "9223372036854775807"),
        ("int4", "numeric(12,2)", "2147483647"),
        ("varchar(10)", "varchar(20)", "ab  "),
        ("varchar(10)", "text", "ab  "),
        ("char(5)", "text", "ab"),
        ("char(5)", "char(8)", "ab"),
        ("char(5)", "varchar(5)", "ab"),
        ("numeric(5,2)", "numeric(12,4)", "123.45"),
        ("numeric(5,2)", "numeric", "123.40"),
        ("float4", "float8", "0.1"),
        ("date", "timestamp", "infinity"),
        ("timestamp(0)", "timestamp(3)", "2026-01-01 00:00:00"),
        ("timestamp(3)", "timestamp", "2026-01-01 00:00:00.123"),
        ("mood", "text", "so-so"),
        ("mood", "feeling", "so-so"),
        ("mood", "varchar", "so-so"),
        ("int4", "text", "-5"),
        ("bool", "text", "t"),
        ("json", "jsonb", '{"b":1,  "a":1e2, "a":2}'),
        ("int4[]", "int8[]", "{1,NULL}"),
        ("bit(4)", "bit varying(8)", "1010"),
        ("cidr", "inet", "10.1.2.3/32"),
        ("text", "citext", "MiXed"),
    ],
)
def test_wider_type_converts_in_place(pair: Pair, before: str, after: str, value: str) -> None:
    old = start(
        pair, "CREATE EXTENSION citext", "CREATE TYPE mood AS ENUM ('a', 'so-so')",
        "CREATE TYPE feeling AS ENUM ('so-so', 'b')",
        f"CREATE TABLE t (id int PRIMARY KEY, v {before})", f"INSERT INTO t VALUES (1, '{value}'), (2, NULL)",
    )  # fmt: skip
    using = f"USING v::text::{after}" if before == "mood" else ""
    pair.at_source(f"ALTER TABLE t ALTER v TYPE {after} {using}")
    assert [change.kind for change in pair.evolve(old)] == [ChangeKind.CHANGE_TYPE]
    pair.assert_equal(pair.schema())
    assert there(pair)["v"].type_text == pair.schema().column("v").type_text


@pytest.mark.parametrize(
    ("before", "after", "value", "using"),
    [
        ("text", "int", "17", "length(v)"),
        ("int8", "int4", "17", "v::int4"),
        ("numeric(12,4)", "numeric(5,2)", "1.5", "v::numeric(5,2)"),
        ("varchar(20)", "varchar(10)", "abc", "v"),
        ("timestamp", "timestamptz", "2026-01-01", "v"),
        ("float8", "float4", "0.1", "v"),
    ],
)
def test_other_type_is_held_with_table_column_and_both_types(
    pair: Pair, before: str, after: str, value: str, using: str
) -> None:
    old = start(pair, f"CREATE TABLE t (id int PRIMARY KEY, v {before})", f"INSERT INTO t VALUES (1, '{value}')")
    before = old.column("v").type_text
    pair.at_source(f"ALTER TABLE t ALTER v TYPE {after} USING {using}")
    after = pair.schema().column("v").type_text
    with pytest.raises(RosettaError) as caught:
        pair.evolve(old)
    assert caught.value.kind is ErrorKind.SCHEMA_CHANGE_HELD
    assert f"table public.t: column v changed its type from {before} to {after}" in caught.value.message
    assert value not in caught.value.message


def test_any_type_change_of_an_empty_target_goes_through(pair: Pair) -> None:
    pair.at_source("CREATE TABLE t (id int PRIMARY KEY, v text)")
    old = pair.create()
    pair.at_source("ALTER TABLE t ALTER v TYPE int USING length(v)")
    pair.evolve(old)
    assert there(pair)["v"].type_text == "integer"


def test_target_that_is_wider_already_stays(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, v varchar(5))", "INSERT INTO t VALUES (1, 'x')")
    pair.at_target("ALTER TABLE t ALTER v TYPE text")
    pair.at_source("ALTER TABLE t ALTER v TYPE varchar(9)")
    pair.evolve(old)
    assert there(pair)["v"].type_text == "text"


def test_type_change_that_a_view_of_the_target_forbids_is_held(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, v int)", "INSERT INTO t VALUES (1, 1)")
    pair.at_target("CREATE VIEW w AS SELECT v FROM t")
    pair.at_source("ALTER TABLE t ALTER v TYPE bigint")
    with pytest.raises(RosettaError, match="cannot alter type of a column used by a view or rule") as caught:
        pair.evolve(old)
    assert caught.value.kind is ErrorKind.SCHEMA_CHANGE_HELD
