from __future__ import annotations

import struct

import pytest

from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres.target_table import TargetColumn, TargetTable
from cdc_runner.position import Position
from cdc_runner.reconcile.checksum import MAX_BUCKETS, bucket_count
from cdc_runner.reconcile.plan import NotComparable, TablePlan, plan_table
from cdc_runner.reconcile.result import KeyDifferences, Outcome, Report, TableOutcome, TableResult, key_ranges
from cdc_runner.reconcile.standing import pending_tables
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.services.verify import confirm
from cdc_runner.spec import ResolvedSync

HERE, THERE = TableId("public", "orders"), TableId("shop", "orders")
ID = Column("id", "integer", "int4", number=1)


def schema(*columns: Column, key: tuple[str, ...] = ("id",)) -> TableSchema:
    return TableSchema(HERE, columns, key, key, ReplicaIdentity.DEFAULT)


def plan(present: TableSchema, known: TableSchema, *target: Column) -> TablePlan:
    state = TableState(ResolvedSync(None, HERE, THERE), True, Position(1), known)
    columns = {column.name: TargetColumn(column, "", False, None) for column in target}
    return plan_table(present, state, TargetTable(THERE, 1, "r", False, columns, ()), lambda schema: schema)


def test_equal_types_are_compared_as_their_text():
    note = Column('no"te', "text", "text", number=2)
    found = plan(schema(ID, note), schema(ID, note), ID, note)
    assert found.source.columns == ('t."id"::text', 't."no""te"::text')
    assert found.target.columns == found.source.columns
    assert (found.source.table, found.target.table, found.key) == (HERE, THERE, ("id",))
    assert found.source.identity == 't."id"::text'


def test_another_type_is_compared_as_the_text_that_travels_cast_as_the_apply_does():
    source, target = Column("ok", "boolean", "bool", number=2), Column("ok", "text", "text", number=2)
    found = plan(schema(ID, source), schema(ID, source), ID, target)
    assert found.source.columns[1] == '(CASE WHEN num_nulls(t."ok") = 0 THEN concat(t."ok") END)::text::text'
    assert found.target.columns[1] == 't."ok"::text'


def test_names_of_objects_and_foreign_types_are_left_out_with_a_reason():
    reference = Column("kind", "regclass", "regclass", number=2)
    point = Column("spot", "point", "point", number=3)
    other = Column("spot", "shop.place", "place", "shop", "c", number=3)
    found = plan(schema(ID, reference, point), schema(ID, reference, point), ID, reference, other)
    assert set(found.left_out) == {"kind", "spot"}
    assert len(found.source.columns) == 1


def test_schema_changes_that_are_still_on_their_way_are_no_difference():
    renamed = Column("remark", "text", "text", number=2)
    added = Column("late", "integer", "int4", number=4)
    known = schema(ID, Column("note", "text", "text", number=2), Column("gone", "text", "text", number=3))
    found = plan(schema(ID, renamed, added), known, ID, known.column("note"), known.column("gone"))
    assert found.source.columns == ('t."id"::text', 't."remark"::text')
    assert found.target.columns == ('t."id"::text', 't."note"::text')
    assert set(found.left_out) == {"gone", "late"}


def test_a_lost_target_column_and_a_changed_key_cannot_be_compared():
    note = Column("note", "text", "text", number=2)
    with pytest.raises(NotComparable, match="no column note"):
        plan(schema(ID, note), schema(ID, note), ID)
    with pytest.raises(NotComparable, match="key"):
        plan(schema(ID, note, key=("note",)), schema(ID, note), ID, note)


def test_a_table_without_a_key_is_identified_by_its_whole_rows():
    found = plan(schema(ID, key=()), schema(ID, key=()), ID)
    assert found.source.identity == found.source.row == 'ROW(t."id"::text)::text'


@pytest.mark.parametrize(("rows", "buckets"), [(0, 64), (100_000, 256), (10**9, MAX_BUCKETS)])
def test_buckets_are_a_bounded_power_of_two(rows: int, buckets: int):
    assert bucket_count(rows) == buckets


def test_keys_are_grouped_at_the_widest_gaps():
    keys = [(str(n),) for n in (5, 1, 2, 100, 101, 1000)]
    assert [(one.first, one.last, one.keys) for one in key_ranges(keys, most=3)] == [
        (("1",), ("5",), 3),
        (("100",), ("101",), 2),
        (("1000",), ("1000",), 1),
    ]
    assert [one.keys for one in key_ranges([("b",), ("a",)])] == [2]
    assert key_ranges([]) == []


def test_only_what_differs_at_a_second_position_too_is_a_difference():
    def found(*keys: str, outcome: TableOutcome = TableOutcome.DIFFERENT) -> TableResult:
        listed = KeyDifferences(changed=[(key,) for key in keys])
        return TableResult(1, "warehouse", HERE, THERE, outcome, key=("id",), keys=listed)

    both = confirm(found("1", "2"), found("2", "3"))
    assert (both.outcome, both.keys.all) == (TableOutcome.DIFFERENT, [("2",)])
    assert confirm(found("1"), found("2")).outcome is TableOutcome.EQUAL
    assert confirm(found("1"), found(outcome=TableOutcome.EQUAL)).outcome is TableOutcome.EQUAL
    assert confirm(found("1"), found(outcome=TableOutcome.FAILED)).keys.all == [("1",)]
    assert confirm(found(outcome=TableOutcome.FAILED), found("2")).keys.all == [("2",)]
    assert confirm(None, found("1")).keys.all == [("1",)]


def test_tables_of_waiting_transactions_are_told_by_the_messages_of_the_slot():
    def relation(oid: int, name: str) -> bytes:
        return b"R" + struct.pack("!I", oid) + b"public\0" + name.encode() + b"\0" + b"d" + struct.pack("!H", 0)

    def commit(end: int) -> bytes:
        return b"C\0" + struct.pack("!QQQ", end - 8, end, 0)

    messages = [
        b"B" + bytes(20), relation(1, "orders"), b"I" + struct.pack("!I", 1), commit(100),
        b"B" + bytes(20), relation(2, "pair"), b"U" + struct.pack("!I", 2), commit(200),
        b"B" + bytes(20), relation(3, "log"), b"T" + struct.pack("!IBII", 2, 0, 3, 2), commit(300),
    ]  # fmt: skip
    assert pending_tables(messages, Position(300)) == frozenset()
    assert {table.name for table in pending_tables(messages, Position(200))} == {"pair", "log"}
    assert {table.name for table in pending_tables(messages, Position(50))} == {"orders", "pair", "log"}


def result(outcome: TableOutcome) -> TableResult:
    return TableResult(1, "warehouse", HERE, THERE, outcome, keys=KeyDifferences(changed=[("1",)]))


@pytest.mark.parametrize(
    ("tables", "problem", "outcome"),
    [
        ([TableOutcome.EQUAL, TableOutcome.SKIPPED], None, Outcome.EQUAL),
        ([TableOutcome.EQUAL, TableOutcome.BEHIND], None, Outcome.INCOMPLETE),
        ([TableOutcome.EQUAL], "a destination is away", Outcome.INCOMPLETE),
        ([TableOutcome.BEHIND, TableOutcome.DIFFERENT], "a destination is away", Outcome.DIFFERENT),
    ],
)
def test_what_was_not_compared_is_never_called_equal(tables, problem, outcome):
    report = Report("shop", 1, [result(one) for one in tables], 0.1, problem)
    assert report.outcome is outcome
    assert report.as_json()["outcome"] == outcome.value
