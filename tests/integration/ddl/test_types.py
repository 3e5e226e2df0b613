"""User types at the target."""

from __future__ import annotations

from collections.abc import Callable

import psycopg2
import psycopg2.errors
import pytest

from cdc_runner.destinations.postgres import types
from cdc_runner.destinations.postgres.check import check_table
from cdc_runner.errors import ErrorKind, RosettaError
from tests.integration.ddl.conftest import Pair
from tests.support import type_cases

pytestmark = pytest.mark.pg


def test_every_kind_of_user_type_takes_the_values_of_the_source(pair: Pair) -> None:
    pair.at_source(
        "CREATE SCHEMA sales",
        "CREATE EXTENSION citext",
        "CREATE EXTENSION hstore SCHEMA sales",
        "CREATE TYPE sales.mood AS ENUM ('très bien', 'so-so', 'it''s bad')",
        "CREATE TYPE mood AS ENUM ('ok')",
        "CREATE DOMAIN sales.price AS numeric(10, 2) NOT NULL CHECK (VALUE >= 0)",
        "CREATE DOMAIN sales.net_price AS sales.price CHECK (VALUE < 1000000)",
        "CREATE DOMAIN feeling AS sales.mood CHECK (VALUE <> 'it''s bad'::sales.mood)",
        'CREATE TYPE sales."Point of (x)" AS (x sales.net_price, moods sales.mood[])',
        'CREATE TYPE nested AS (inner_one sales."Point of (x)", tags citext, n int4range)',
        "CREATE TYPE sales.price_range AS RANGE (subtype = numeric)",
        "CREATE TYPE feeling_range AS RANGE (subtype = sales.mood)",
        """CREATE TABLE t (id int PRIMARY KEY, a sales.mood, b mood[], c sales.net_price, d feeling, e nested,
           f sales.price_range, g sales.price_multirange[], h feeling_range, i citext, j sales.hstore, k nested[],
           l varchar(3)[], m numeric(5, 1))""",
        """INSERT INTO t VALUES (1, 'très bien', '{ok,NULL}', 12.50, 'so-so',
           ROW(ROW(1, ARRAY['so-so']::sales.mood[])::sales."Point of (x)", 'Ab', '[1,3)')::nested,
           '[1.5,2)', ARRAY['{[1,2),[3,)}'::sales.price_multirange], '[so-so,]', 'MiXed', 'a=>1,b=>NULL',
           ARRAY[ROW(NULL, 'x', 'empty')::nested], '{abc,NULL}', 1.5)""",
    )
    schema = pair.create()
    pair.copy(schema)
    pair.assert_equal(schema)
    with pytest.raises(psycopg2.errors.CheckViolation):
        pair.at_target("SELECT (-1)::sales.net_price")


def test_ensure_types_again_does_nothing(pair: Pair) -> None:
    pair.at_source(
        "CREATE EXTENSION cube", "CREATE TYPE mood AS ENUM ('a', 'b')", "CREATE DOMAIN d AS mood CHECK (VALUE <> 'b')",
        "CREATE TYPE c AS (x d, y cube)", "CREATE TABLE t (id int PRIMARY KEY, v c[])",
    )  # fmt: skip
    schema = pair.create()
    assert types.ensure_types(pair.source, pair.target, [schema], pair.schema_map) == []


def test_types_of_all_schemas_go_to_the_one_target_schema(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(types.TypePlaces(lambda schema: "dw"))
    pair.at_source(
        "CREATE SCHEMA sales", "CREATE TYPE sales.mood AS ENUM ('a', 'b')", "CREATE TYPE public.color AS ENUM ('red')",
        "CREATE DOMAIN public.bright AS sales.mood CHECK (VALUE IN ('a'::sales.mood))", "CREATE EXTENSION citext",
        "CREATE TABLE t (id int PRIMARY KEY, a sales.mood, b color[], c bright, d citext)",
        "INSERT INTO t VALUES (1, 'b', '{red}', 'a', 'Xx')",
    )  # fmt: skip
    pair.at_target("CREATE SCHEMA ext", "CREATE EXTENSION citext SCHEMA ext")
    schema = pair.create()
    pair.copy(schema)
    (row,) = pair.at_target("SELECT id, a::text, b::text, c::text, d::text, pg_typeof(c)::text FROM dw.t")
    assert row == (1, "b", "{red}", "a", "Xx", "dw.bright")


def test_two_types_of_one_name_in_one_target_schema_are_a_clear_error(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(lambda schema: "dw")
    pair.at_source(
        "CREATE SCHEMA sales", "CREATE TYPE sales.mood AS ENUM ('a', 'b')", "CREATE TYPE public.mood AS ENUM ('x')",
        "CREATE TABLE t (id int PRIMARY KEY, a sales.mood, b public.mood)",
    )  # fmt: skip
    with pytest.raises(RosettaError, match=r"column b of table public\.t has type public\.mood.*sales\.mood") as caught:
        pair.create()
    assert caught.value.kind is ErrorKind.DESTINATION_SCHEMA


def test_type_of_another_kind_at_the_target_is_a_clear_error(pair: Pair) -> None:
    pair.at_source("CREATE TYPE mood AS ENUM ('a')", "CREATE TABLE t (id int PRIMARY KEY, a mood)")
    pair.at_target("CREATE DOMAIN mood AS text")
    with pytest.raises(
        RosettaError, match=r"public\.mood at the destination, where the destination has a type of anot"
    ):
        pair.create()


def test_labels_added_to_an_enum_later_get_the_place_they_have_at_the_source(lasting_pair: Pair) -> None:
    pair = lasting_pair
    pair.at_source("CREATE TYPE mood AS ENUM ('c', 'f')", "CREATE TABLE t (id int PRIMARY KEY, a mood[])")
    schema = pair.create()
    pair.target.commit()
    pair.at_source(
        "ALTER TYPE mood ADD VALUE 'a' BEFORE 'c'", "ALTER TYPE mood ADD VALUE 'd' AFTER 'c'",
        "ALTER TYPE mood ADD VALUE 'e' AFTER 'd'", "ALTER TYPE mood ADD VALUE 'z'", "INSERT INTO t VALUES (1, '{d,z}')",
    )  # fmt: skip
    with pytest.raises(psycopg2.errors.InvalidTextRepresentation):
        pair.copy(schema)
    pair.target.rollback()
    assert len(types.refresh_types(pair.source, pair.target, [schema], pair.schema_map)) == 4
    pair.target.commit()
    pair.copy(schema)
    pair.assert_equal(schema)
    assert pair.at_target("SELECT enum_range(NULL::mood)::text") == [("{a,c,d,e,f,z}",)]
    assert types.refresh_types(pair.source, pair.target, [schema], pair.schema_map) == []


def test_missing_extension_names_the_statement_and_the_column(pair: Pair) -> None:
    pair.at_source("CREATE EXTENSION ltree", "CREATE TABLE t (id int PRIMARY KEY, path ltree)")
    pair.at_target("CREATE ROLE plain_role", "SET ROLE plain_role")
    with pytest.raises(
        RosettaError, match=r"type ltree of column path of table public\.t.*CREATE EXTENSION \"ltree\""
    ) as e:
        pair.create()
    assert e.value.kind is ErrorKind.DESTINATION_SCHEMA
    assert e.value.detail == {"extension": "ltree"}


def test_domain_whose_check_calls_a_function_of_the_source_is_created_without_it(pair: Pair) -> None:
    pair.at_source(
        "CREATE FUNCTION fine(int) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true'",
        "CREATE DOMAIN d AS int CHECK (fine(VALUE)) CHECK (VALUE > 0)", "CREATE TABLE t (id int PRIMARY KEY, v d)",
    )  # fmt: skip
    done = types.ensure_types(pair.source, pair.target, [pair.schema()], pair.schema_map)
    assert sum("left out constraint" in line for line in done) == 1
    with pytest.raises(psycopg2.errors.CheckViolation):
        pair.at_target("SELECT 0::d")


def test_attribute_added_to_a_composite_later_arrives(pair: Pair) -> None:
    pair.at_source(
        "CREATE TYPE c AS (x int)", "CREATE TABLE t (id int PRIMARY KEY, v c)", "INSERT INTO t VALUES (1, ROW(1))"
    )
    schema = pair.create()
    pair.copy(schema)
    pair.at_source("ALTER TYPE c ADD ATTRIBUTE y text", "UPDATE t SET v.y = 'new'")
    types.ensure_types(pair.source, pair.target, [schema], pair.schema_map)
    pair.at_target("DELETE FROM t")
    pair.copy(schema)
    pair.assert_equal(schema)


def test_renamed_label_is_renamed_with_the_rows_that_hold_it(lasting_pair: Pair) -> None:
    pair = lasting_pair
    pair.at_source(
        "CREATE TYPE mood AS ENUM ('a', 'b', 'c')", "CREATE TABLE t (id int PRIMARY KEY, m mood)",
        "INSERT INTO t VALUES (1, 'b')",
    )  # fmt: skip
    schema = pair.create()
    pair.copy(schema)
    pair.target.commit()
    pair.at_source("ALTER TYPE mood RENAME VALUE 'b' TO 'B'", "ALTER TYPE mood ADD VALUE 'd'")
    types.refresh_types(pair.source, pair.target, [schema], pair.schema_map)
    pair.target.commit()
    pair.assert_equal(schema)
    assert pair.at_target("SELECT enum_range(NULL::mood)::text") == [("{a,B,c,d}",)]


def test_labels_of_an_enum_that_is_not_ours_are_never_renamed(lasting_pair: Pair) -> None:
    pair = lasting_pair
    pair.at_source("CREATE TYPE mood AS ENUM ('a', 'b')", "CREATE TABLE t (id int PRIMARY KEY, m mood)")
    pair.at_target("CREATE TYPE mood AS ENUM ('a', 'x')")
    pair.create()
    pair.target.commit()
    assert pair.at_target("SELECT enum_range(NULL::mood)::text") == [("{a,b,x}",)]


def test_domain_that_the_source_loosened_takes_the_new_values(pair: Pair) -> None:
    pair.at_source(
        "CREATE SCHEMA s", "CREATE TYPE s.mood AS ENUM ('a', 'b')",
        "CREATE DOMAIN s.d AS int NOT NULL CONSTRAINT small CHECK (VALUE < 10) CONSTRAINT positive CHECK (VALUE > 0)",
        "CREATE DOMAIN s.m AS s.mood CHECK (VALUE <> 'b'::s.mood)", "CREATE TABLE t (id int PRIMARY KEY, v s.d, m s.m)",
    )  # fmt: skip
    schema = pair.create()
    assert types.refresh_types(pair.source, pair.target, [schema], pair.schema_map) == []
    pair.at_source("ALTER DOMAIN s.d DROP CONSTRAINT small", "ALTER DOMAIN s.d DROP NOT NULL",
                   "INSERT INTO t VALUES (1, 11, 'a'), (2, NULL, NULL)")  # fmt: skip
    assert len(types.refresh_types(pair.source, pair.target, [schema], pair.schema_map)) == 2
    pair.copy(schema)
    pair.assert_equal(schema)
    with pytest.raises(psycopg2.errors.CheckViolation):
        pair.at_target("SELECT 0::s.d")


def test_every_type_of_the_server_and_its_extensions(pair: Pair) -> None:
    """Each case is a column; each of its values a row, which reaches the target as text and reads back the same."""
    pair.at_source(*(f"CREATE EXTENSION {name}" for name in type_cases.EXTENSIONS), type_cases.SETUP)
    # A value of type regnamespace is a reference: what it names has to be there.
    pair.at_target('CREATE SCHEMA "Odd schema"')
    for place, (type_, values) in enumerate(type_cases.CASES.items()):
        pair.at_source(f"CREATE TABLE t{place} (id serial PRIMARY KEY, v {type_})")
        with pair.source.cursor() as cursor:
            cursor.executemany(f"INSERT INTO t{place} (v) VALUES (%s)", [(value,) for value in values])
        schema = pair.create(f"t{place}")
        pair.copy(schema)
        pair.assert_equal(schema)
        assert check_table(pair.target, pair.place(schema), schema, pair.schema_map) == []
