"""Keys of a source table, its NULLs, and changes of many kinds at once, carried out at the target."""

from __future__ import annotations

import pytest

from cdc_runner.destinations.postgres import ddl
from cdc_runner.destinations.postgres.target_table import read_target
from cdc_runner.errors import RosettaError
from cdc_runner.shaping.evolution import ChangeKind, diff
from tests.integration.ddl.conftest import TABLE, Pair, start

pytestmark = pytest.mark.pg


@pytest.mark.parametrize("drop_columns", [True, False])
def test_primary_key_changes(pair: Pair, drop_columns: bool) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL, b int NOT NULL)",
                "INSERT INTO t VALUES (1, 2, 3), (2, 2, 4)")  # fmt: skip
    pair.at_source("ALTER TABLE t DROP id, ADD PRIMARY KEY (b, a)")
    assert [change.kind for change in pair.evolve(old, drop_columns=drop_columns)] == [
        ChangeKind.DROP_COLUMN,
        ChangeKind.CHANGE_KEY,
    ]
    found = read_target(pair.target, TABLE)
    assert found is not None and found.primary_key is not None and found.primary_key.columns == ("b", "a")


def test_primary_key_dropped(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    pair.at_source("ALTER TABLE t DROP CONSTRAINT t_pkey", "ALTER TABLE t REPLICA IDENTITY FULL",
                   "ALTER TABLE t ALTER id DROP NOT NULL")  # fmt: skip
    pair.evolve(old)
    pair.at_target("INSERT INTO t VALUES (1), (NULL)")


def test_primary_key_that_the_rows_of_the_target_refuse(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL)", "INSERT INTO t VALUES (1, 1)")
    pair.at_target("INSERT INTO t VALUES (2, 1)")
    pair.at_source("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (a)")
    with pytest.raises(RosettaError, match=r"cannot have the key \(a\)"):
        pair.evolve(old)


def test_replica_identity_moves_to_an_index(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL)", "INSERT INTO t VALUES (1, 1)")
    pair.at_source("CREATE UNIQUE INDEX by_a ON t (a)", "ALTER TABLE t REPLICA IDENTITY USING INDEX by_a")
    pair.evolve(old)
    assert (found := read_target(pair.target, TABLE)) is not None
    assert found.unique_on(["a"]) and found.primary_key is not None


def test_not_null_dropped(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL)", "INSERT INTO t VALUES (1, 1)")
    pair.at_source("ALTER TABLE t ALTER a DROP NOT NULL")
    assert [change.kind for change in pair.evolve(old)] == [ChangeKind.NULLABILITY]
    pair.at_target("INSERT INTO t VALUES (2, NULL)")


def test_table_dropped_and_created_again_needs_a_reload(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int)", "INSERT INTO t VALUES (1, 1)")
    pair.at_source("DROP TABLE t", "CREATE TABLE t (id int PRIMARY KEY, b int)")
    with pytest.raises(ddl.ReloadNeeded, match="was dropped and created again"):
        pair.evolve(old)


def test_several_changes_in_one_step(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL, b varchar(5), c text)",
                "INSERT INTO t VALUES (1, 2, 'x', 'y')")  # fmt: skip
    pair.at_source(
        "ALTER TABLE t DROP c", "ALTER TABLE t RENAME b TO c", "ALTER TABLE t ALTER c TYPE text",
        "ALTER TABLE t ALTER a TYPE bigint, ALTER a DROP NOT NULL", "ALTER TABLE t ADD b bool DEFAULT false",
        "ALTER TABLE t RENAME id TO number",
    )  # fmt: skip
    pair.evolve(old)
    pair.assert_equal(pair.schema())


def test_statements_hold_no_value_of_a_row(pair: Pair) -> None:
    old = start(pair, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    pair.at_source("ALTER TABLE t ADD a text DEFAULT 'secret value'")
    new = pair.schema()
    done = ddl.evolve(pair.target, TABLE, diff(old, new), new, pair.schema_map, drop_columns=False)
    assert len(done) == 2
    assert "secret" not in "".join(done)
