"""What is compared of a table at Snowflake."""

from __future__ import annotations

from dataclasses import replace

import duckdb
import pytest
import sqlglot

from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.snowflake.rows import Shape
from cdc_runner.position import Position
from cdc_runner.reconcile.lake_plan import LAKE_HASH, LakePlan, Text, plan_lake_table
from cdc_runner.reconcile.plan import NOTHING, NotComparable, Rules
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.spec import ResolvedSync, SyncMode

HERE, THERE = TableId("public", "orders"), TableId("SHOP", "orders")
ID = Column("id", "integer", "int4", number=1)
NOTE = Column("note", "text", "text", number=2)


def schema(*columns: Column, key: tuple[str, ...] = ("id",)) -> TableSchema:
    return TableSchema(HERE, columns, key, key, ReplicaIdentity.DEFAULT)


def plan(present: TableSchema, known: TableSchema, rules: Rules | None = None, *, soft: bool = False) -> LakePlan:
    state = TableState(ResolvedSync(None, HERE, THERE), True, Position(1), known)
    keeps = SyncMode.SOFT_DELETE if soft else SyncMode.MIRROR
    shape = Shape(known, {name: name.upper() for name in known.stream_names}, keeps)
    return plan_lake_table(present, state, shape, list(shape.columns.values()), rules or Rules())


def test_what_has_no_common_text_is_left_out_with_a_reason():
    columns = [
        Column("ratio", "double precision", "float8", number=3),
        Column("data", "jsonb", "jsonb", number=4),
        Column("tags", "text[]", "_text", type_category="A", element="text", number=5),
    ]
    found = plan(schema(ID, NOTE, *columns), schema(ID, NOTE, *columns))
    assert set(found.left_out) == {"ratio", "data", "tags"}
    assert "floating point" in found.left_out["ratio"]
    assert (len(found.source.columns), len(found.target.columns)) == (2, 2)
    with pytest.raises(NotComparable, match="key"):
        plan(schema(ID, *columns, key=("ratio",)), schema(ID, *columns, key=("ratio",)))


def test_a_type_that_the_stream_has_not_told_of_is_left_out():
    wider = replace(NOTE, type_text="character varying", type_name="varchar")
    found = plan(schema(ID, wider), schema(ID, NOTE), Rules(origins={"note": NOTE}))
    assert set(found.left_out) == {"note"}


def test_filters_masks_and_marks_of_gone_rows_are_kept_apart():
    rules = Rules(where="note <> ''", fixed={"note": NOTHING})
    found = plan(schema(ID, NOTE), schema(ID, NOTE), rules, soft=True)
    assert (found.source.where, found.target.where) == ("note <> ''", 'NOT t."_ROSETTA_DELETED"')
    assert "NULL::text" in found.source.columns[1]
    constant = plan(schema(ID, NOTE, key=()), schema(ID, NOTE, key=()), Rules(fixed={"id": "'1'::text"}))
    assert "mask" in constant.left_out["id"]


ROWS = [
    (None, None), (None, ""), ("", None), ("", ""), ("!", None), (None, "!"), ("1:a", None), ("a", "1:"), ("a1", ":"),
    ("0:", ""), ("x" * 2000, ""), ("x" * 2001, ""), ("|", "|"), ("é", "😀"), ("😀", "é"), ("a|", "b"), ("a", "|b"),
]  # fmt: skip


def test_no_two_rows_have_one_text_and_hashes_are_numbers_of_18_digits():
    columns = [Text(f't."{name}"', True, "MD5({})").framed for name in ("A", "B")]
    row = " || ".join(columns)
    statement = f"SELECT {row} AS R, {LAKE_HASH.of(row, 1)} AS H FROM t"
    (translated,) = sqlglot.transpile(statement, read="snowflake", write="duckdb")
    with duckdb.connect() as connection:
        connection.execute('CREATE TABLE t ("A" VARCHAR, "B" VARCHAR)')
        connection.executemany("INSERT INTO t VALUES (?, ?)", ROWS)
        found = connection.execute(translated).fetchall()
    assert len({text for text, _ in found}) == len({number for _, number in found}) == len(ROWS)
    assert all(len(text) < 100 for text, _ in found)
    assert all(0 <= number < 10**18 for _, number in found)
