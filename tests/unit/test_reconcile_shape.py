from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import SecretStr

from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres.target_table import TargetColumn, TargetTable
from cdc_runner.position import Position
from cdc_runner.reconcile.plan import NotComparable, TablePlan, plan_table
from cdc_runner.reconcile.shape import Outdated, rules_of
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.shaping.columns import plan_columns
from cdc_runner.spec import (
    DestinationSpec,
    Mask,
    MaskKind,
    PostgresAddress,
    ResolvedSync,
    SyncMode,
    TableShape,
    TableSync,
)

HERE, THERE = TableId("public", "person"), TableId("shop", "people")
ID = Column("id", "integer", "int4", number=1)
NAME = Column("name", "text", "text", number=2)
CITY = Column("city", "text", "text", number=3)
SECRET = Column("secret", "text", "text", number=4)
PLACE = PostgresAddress("localhost", 5432, "shop", "rosetta", SecretStr(""))


def schema(*columns: Column) -> TableSchema:
    return TableSchema(HERE, columns, ("id",), ("id",), ReplicaIdentity.DEFAULT)


CAPTURED = schema(ID, NAME, CITY, SECRET)
SHAPE = TableShape(
    filter="(\"secret\" = 'a')",
    filter_columns=("secret",),
    exclude=("secret",),
    rename=(("name", "full_name"),),
    masks=(("city", Mask(MaskKind.CONSTANT, text="it's")),),
    mode=SyncMode.SOFT_DELETE,
)


def destination(shape: TableShape) -> DestinationSpec:
    return DestinationSpec(1, 1, "warehouse", "postgres", PLACE, "shop", (
        TableSync(1, "public.*"), TableSync(2, "public.person", "people", shape)))  # fmt: skip


def known(shape: TableShape) -> TableState:
    target = plan_columns(shape, CAPTURED, None).target
    return TableState(ResolvedSync(None, HERE, THERE), True, Position(1), target, CAPTURED, shape.fingerprint)


def plan(shape: TableShape, present: TableSchema, *target: Column) -> TablePlan:
    state = known(shape)
    columns = {column.name: TargetColumn(column, "", False, None) for column in target or state.schema.columns}
    there = TargetTable(THERE, 1, "r", False, columns, ())
    return plan_table(present, state, there, lambda schema: schema, rules_of(destination(shape), state, present))


def test_the_source_is_filtered_and_the_target_without_its_marked_rows():
    found = plan(SHAPE, CAPTURED)
    assert (found.source.where, found.target.where) == (SHAPE.filter, 'NOT t."_rosetta_deleted"')
    assert found.source.columns == ('t."id"::text', 't."name"::text', "'it''s'::text")
    assert found.target.columns == ('t."id"::text', 't."full_name"::text', 't."city"::text')
    assert found.left_out == {}


def test_changes_of_columns_that_the_shape_does_not_name_are_no_difference():
    shape = replace(SHAPE, rename=())
    late = Column("late", "text", "text", number=5)
    found = plan(shape, schema(ID, replace(NAME, name="called"), CITY, SECRET, late))
    assert found.source.columns[1] == 't."called"::text'
    assert found.target.columns[1] == 't."name"::text'
    assert list(found.left_out) == ["late"]


@pytest.mark.parametrize("column", [NAME, CITY, SECRET])
def test_a_named_column_that_is_gone_or_another_one_makes_nothing_of_the_table_comparable(column: Column):
    others = [one for one in (ID, NAME, CITY, SECRET) if one is not column]
    with pytest.raises(NotComparable, match=f"names {column.name}"):
        plan(SHAPE, schema(*others, replace(column, name="renamed")))
    with pytest.raises(NotComparable, match=f"column {column.name} is another one"):
        plan(SHAPE, schema(*others, replace(column, name="renamed"), replace(column, number=9)))


def test_masks_whose_texts_cannot_be_told_are_left_out():
    varchar = Column("city", "character varying(2)", "varchar", number=3)
    assert set(plan(replace(SHAPE, rename=(), mode=SyncMode.MIRROR), CAPTURED, ID, NAME, varchar).left_out) == {"city"}
    truncated = replace(SHAPE, masks=(("city", Mask(MaskKind.TRUNCATE, length=1)), ("name", Mask(MaskKind.NULL))))
    found = plan(truncated, CAPTURED)
    assert list(found.left_out) == ["city"]
    assert found.source.columns[1:] == ("NULL::text",)


def test_targets_that_are_no_rows_of_their_source_are_passed_over_with_the_reason():
    history = TableShape(mode=SyncMode.HISTORY)
    assert "history" in str(rules_of(destination(history), known(history), CAPTURED).skipped)
    computed = TableShape(custom_sql="SELECT 1")
    assert "custom SQL" in str(rules_of(destination(computed), known(SHAPE), CAPTURED).skipped)
    forgotten = replace(destination(SHAPE), syncs=())
    assert "no sync" in str(rules_of(forgotten, known(SHAPE), CAPTURED).skipped)


@pytest.mark.parametrize(("made_under", "asked_for"), [(SHAPE, TableShape()), (replace(SHAPE, exclude=()), SHAPE)])
def test_nothing_is_known_of_a_target_that_waits_for_another_shape(made_under: TableShape, asked_for: TableShape):
    with pytest.raises(Outdated, match="loads it again"):
        rules_of(destination(asked_for), known(made_under), CAPTURED)
