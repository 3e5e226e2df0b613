"""Columns of a source table that come, go or get another name, carried out at the target."""

from __future__ import annotations

import pytest

from cdc_runner.destinations.postgres import ddl
from cdc_runner.destinations.postgres.target_table import read_target
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.shaping.evolution import ChangeKind
from tests.integration.ddl.conftest import TABLE, Pair, start, there

pytestmark = pytest.mark.pg


# -- columns that come -----------------------------------------------------------------------------------------------


def test_added_columns_give_old_rows_the_value_they_have_at_the_source(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)")
    pair.at_source(
        "CREATE TYPE mood AS ENUM ('a', 'b c')", "CREATE TYPE pair AS (x int, y text)", "CREATE EXTENSION citext",
        "CREATE DOMAIN d AS numeric(6,2) DEFAULT 7.5",
        """ALTER TABLE t ADD plain text, ADD q text NOT NULL DEFAULT E'it''s, "a\\\\b" {} NULL',
           ADD empty text DEFAULT '', ADD word text DEFAULT 'NULL', ADD n numeric(8,3) DEFAULT 1.5,
           ADD m mood NOT NULL DEFAULT 'b c', ADD a int[] DEFAULT '{1,NULL,3}', ADD ma mood[] DEFAULT '{a,"b c"}',
           ADD p pair DEFAULT ROW(1, 'x,"y'),
           ADD j jsonb DEFAULT '{"a": [1, "x"]}', ADD b bytea DEFAULT '\\x00ff', ADD at timestamptz DEFAULT now(),
           ADD i interval DEFAULT '1 day', ADD box1 box DEFAULT '(1,1),(0,0)', ADD c citext DEFAULT 'MiXed',
           ADD e1 bpchar DEFAULT 'x  ', ADD f bool DEFAULT true, ADD r int4range DEFAULT '[1,5)', ADD dd d DEFAULT 1""",
        "INSERT INTO t (id, plain) VALUES (3, 'new')",
    )  # fmt: skip
    assert {change.kind for change in pair.evolve(old)} == {ChangeKind.ADD_COLUMN}
    new = pair.schema()
    source, target = pair.rows(new)
    assert source[:2] == target
    assert all(column.default is None for column in there(pair).values())


def test_added_column_that_is_there_already_is_no_error(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    pair.at_target("ALTER TABLE t ADD a bigint, ADD b text")
    pair.at_source("ALTER TABLE t ADD a int, ADD b varchar(7)")
    pair.evolve(old)
    assert [column.type_text for column in there(pair).values()] == ["integer", "bigint", "text"]


def test_added_column_that_is_there_with_a_narrower_type_is_held(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    pair.at_target("ALTER TABLE t ADD a smallint")
    pair.at_source("ALTER TABLE t ADD a int")
    with pytest.raises(RosettaError, match="column a integer was added, and the destination has it as smallint") as e:
        pair.evolve(old)
    assert e.value.kind is ErrorKind.SCHEMA_CHANGE_HELD


@pytest.mark.parametrize(
    "column", ["u uuid DEFAULT gen_random_uuid()", "s serial", "i int GENERATED ALWAYS AS IDENTITY"]
)
def test_added_column_whose_values_differ_from_row_to_row_needs_a_reload(pair: Pair, column: str) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)")
    pair.at_source(f"ALTER TABLE t ADD {column}")
    with pytest.raises(ddl.ReloadNeeded, match=r"public\.t must be loaded again") as caught:
        pair.evolve(old)
    assert caught.value.kind is ErrorKind.SCHEMA_CHANGE_HELD


def test_default_that_came_later_needs_no_reload(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)")
    pair.at_source("ALTER TABLE t ADD a int, ADD b int", "ALTER TABLE t ALTER a SET DEFAULT 5")
    pair.evolve(old)
    pair.assert_equal(pair.schema())


def test_values_that_a_rewrite_gave_to_older_rows_need_a_reload(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)")
    pair.at_source("ALTER TABLE t ADD a float DEFAULT random()", "ALTER TABLE t ALTER a DROP DEFAULT")
    with pytest.raises(ddl.ReloadNeeded):
        pair.evolve(old)


def test_added_column_with_a_volatile_default_needs_no_reload_of_an_empty_table(pair: Pair) -> None:
    pair.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    old = pair.create()
    pair.at_source("ALTER TABLE t ADD u uuid NOT NULL DEFAULT gen_random_uuid(), ADD n int DEFAULT NULL")
    pair.evolve(old)
    assert list(there(pair)) == ["id", "u", "n"]


def test_column_with_default_added_to_a_partitioned_table(pair: Pair) -> None:
    old = start(
        pair, "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10)", "INSERT INTO t VALUES (1)",
    )  # fmt: skip
    pair.at_source("ALTER TABLE t ADD a int NOT NULL DEFAULT 5", "ALTER TABLE t ALTER a SET DEFAULT 6")
    pair.evolve(old)
    pair.assert_equal(pair.schema())


def test_added_generated_column_is_generated_at_the_target(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (3)")
    pair.at_source("ALTER TABLE t ADD twice int GENERATED ALWAYS AS (id * 2) STORED")
    pair.evolve(old)
    pair.assert_equal(pair.schema())


# -- columns that go -------------------------------------------------------------------------------------------------


def test_dropped_column_is_kept_and_takes_rows_without_it(pair: Pair) -> None:
    old = start(
        pair, "CREATE DOMAIN d AS int NOT NULL", "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL, b d, c text)",
        "INSERT INTO t VALUES (1, 2, 3, 'x')",
    )  # fmt: skip
    pair.at_target("COMMENT ON COLUMN t.a IS 'said by a person'")
    pair.at_source("ALTER TABLE t DROP a, DROP b")
    assert [change.kind for change in pair.evolve(old)] == [ChangeKind.DROP_COLUMN] * 2
    pair.at_target("INSERT INTO t (id, c) VALUES (2, 'y')")
    assert pair.at_target("SELECT id, a, b::text, c FROM t ORDER BY 1") == [(1, 2, "3", "x"), (2, None, None, "y")]
    (comment,) = pair.at_target("SELECT col_description('t'::regclass, 2)")
    assert str(comment[0]).startswith("said by a person\n")


def test_dropped_column_is_dropped_when_asked(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int)", "INSERT INTO t VALUES (1, 2)")
    pair.at_source("ALTER TABLE t DROP a")
    pair.evolve(old, drop_columns=True)
    assert list(there(pair)) == ["id"]


def test_drop_that_a_view_of_the_target_forbids_is_held(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int)", "INSERT INTO t VALUES (1, 2)")
    pair.at_target("CREATE VIEW v AS SELECT a FROM t")
    pair.at_source("ALTER TABLE t DROP a")
    with pytest.raises(RosettaError, match="column a was dropped, which the destination refuses") as caught:
        pair.evolve(old, drop_columns=True)
    assert caught.value.kind is ErrorKind.SCHEMA_CHANGE_HELD


@pytest.mark.parametrize("in_one_step", [True, False])
def test_column_dropped_and_added_again_with_another_type(pair: Pair, in_one_step: bool) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL)", "INSERT INTO t VALUES (1, 7)")
    pair.at_source("ALTER TABLE t DROP a")
    if not in_one_step:
        pair.evolve(old)
        old = pair.schema()
    pair.at_source("ALTER TABLE t ADD a text DEFAULT 'x'")
    pair.evolve(old)
    pair.assert_equal(pair.schema())
    assert pair.at_target("SELECT a_dropped_2 FROM t") == [(7,)]


def test_long_name_dropped_and_added_again_twice(pair: Pair) -> None:
    name = "é" * 31
    old = start(pair, f'CREATE TABLE t (id int PRIMARY KEY, "{name}" int)', "INSERT INTO t VALUES (1, 7)")
    for _ in range(2):
        pair.at_source(f'ALTER TABLE t DROP "{name}"', f'ALTER TABLE t ADD "{name}" int')
        pair.evolve(old)
        old = pair.schema()
    assert [len(column.encode()) <= 63 for column in there(pair)] == [True] * 4


def test_generated_column_that_the_stream_leaves_out_is_not_dropped(pair: Pair) -> None:
    pair.at_source("CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED)",
                   "INSERT INTO t VALUES (1, 1)")  # fmt: skip
    old = pair.create()
    pair.copy(old)
    pair.at_source("ALTER TABLE t ALTER twice DROP EXPRESSION", "INSERT INTO t VALUES (2, 1, 5)")
    assert [change.kind for change in pair.evolve(old)] == [ChangeKind.GENERATION]
    pair.at_target("INSERT INTO t VALUES (2, 1, 5)")
    pair.assert_equal(pair.schema())


def test_expression_of_a_generated_column_changes(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)",
                "INSERT INTO t VALUES (4)")  # fmt: skip
    pair.at_source("ALTER TABLE t ALTER twice SET EXPRESSION AS (id * 3)")
    pair.evolve(old)
    pair.assert_equal(pair.schema())


# -- columns that get another name -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "renames",
    [
        ["a TO z"],
        ["a TO tmp", "b TO a", "tmp TO b"],
        ["c TO d", "b TO c", "a TO b"],
        ["a TO tmp", "b TO a", "c TO b", "tmp TO c"],
    ],
    ids=["one", "two that change places", "chain", "ring"],
)
def test_renamed_columns_keep_their_values(pair: Pair, renames: list[str]) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int, b text, c date)",
                "INSERT INTO t VALUES (1, 2, 'x', '2026-01-01'), (2, NULL, NULL, 'infinity')")  # fmt: skip
    pair.at_source(*(f"ALTER TABLE t RENAME {rename}" for rename in renames))
    assert {change.kind for change in pair.evolve(old)} == {ChangeKind.RENAME_COLUMN}
    pair.assert_equal(pair.schema())


def test_key_column_renamed(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    pair.at_source("ALTER TABLE t RENAME id TO ident")
    assert [change.kind for change in pair.evolve(old)] == [ChangeKind.RENAME_COLUMN]
    assert (found := read_target(pair.target, TABLE)) is not None and found.unique_on(["ident"])


def test_rename_to_the_name_of_a_dropped_column(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int, b int)", "INSERT INTO t VALUES (1, 2, 3)")
    pair.at_source("ALTER TABLE t DROP b", "ALTER TABLE t RENAME a TO b", "ALTER TABLE t ADD a int DEFAULT 9")
    pair.evolve(old)
    pair.assert_equal(pair.schema())
    assert pair.at_target("SELECT b_dropped_3 FROM t") == [(3,)]


def test_rename_to_a_name_that_the_target_uses_for_something_else_is_held(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int)", "INSERT INTO t VALUES (1, 2)")
    pair.at_target("ALTER TABLE t ADD own int")
    pair.at_source("ALTER TABLE t RENAME a TO own")
    with pytest.raises(RosettaError, match="column a was renamed to own, and the destination has both"):
        pair.evolve(old)


def test_rename_done_by_hand_before_is_no_error(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int)", "INSERT INTO t VALUES (1, 2)")
    pair.at_target("ALTER TABLE t RENAME a TO b")
    pair.at_source("ALTER TABLE t RENAME a TO b")
    pair.evolve(old)
    pair.assert_equal(pair.schema())
