from __future__ import annotations

from dataclasses import replace

import pytest

from cdc_runner.dead_letter.fold import fold
from cdc_runner.dead_letter.letter import Letter, from_fields, to_fields
from cdc_runner.destinations.letters import Refusal, RowChange, RowOperation
from cdc_runner.errors import RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.spec import ResolvedSync

SCHEMA = TableSchema(
    TableId("public", "t"),
    (
        Column("id", "integer", "int4", number=1),
        Column("a", "text", "text", number=2),
        Column("b", "text", "text", number=3),
    ),
    ("id",),
    ("id",),
    ReplicaIdentity.DEFAULT,
)
PUT, DELETE = RowOperation.PUT, RowOperation.DELETE
SYNC = ResolvedSync(None, SCHEMA.table, TableId("copy", "t"))


def letter(change: RowChange) -> Letter:
    return from_fields("1-1", to_fields("e", "shop", change, Position(5), 1.5, 2.5))


def put(*values: str | None, unchanged: str | None = None) -> Letter:
    return letter(RowChange(SYNC, SCHEMA, RowOperation.PUT, values, unchanged))


GONE = letter(RowChange(SYNC, SCHEMA, RowOperation.DELETE, ("1", None, None)))


def test_an_entry_comes_back_as_it_was_stored() -> None:
    refusal = Refusal("23514", "a CHECK")
    found = letter(RowChange(SYNC, SCHEMA, PUT, ("1", "\ud800 ü\n", None), "001", refusal=refusal))
    assert (found.values, found.unchanged, found.sqlstate) == (("1", "\ud800 ü\n", None), "001", "23514")
    assert found.value_of() == {"id": "1", "a": "\ud800 ü\n"}
    assert (found.source, found.target, found.position) == (SYNC.source, SYNC.target, Position(5))


def test_what_is_not_an_entry_is_named() -> None:
    with pytest.raises(RosettaError, match="9-9"):
        from_fields("9-9", {"v": "2"})


@pytest.mark.parametrize(
    ("letters", "operation", "values", "unchanged"),
    [
        ([put("1", "x", "y")], PUT, ("1", "x", "y"), None),
        ([put("1", "x", "y"), put("1", None, "z", unchanged="010")], PUT, ("1", "x", "z"), None),
        ([put("1", "x", None, unchanged="001"), put("1", None, None, unchanged="010")], PUT, ("1", "x", None), None),
        ([put("1", None, "y", unchanged="010"), put("1", None, "z", unchanged="010")], PUT, ("1", None, "z"), "010"),
        ([put("1", "x", "y"), GONE], DELETE, ("1", None, None), None),
        ([put("1", "x", "y"), GONE, put("1", "n", None)], PUT, ("1", "n", None), None),
    ],
)  # fmt: skip
def test_the_entries_of_a_key_are_folded_in_order(letters, operation, values, unchanged) -> None:
    change = fold(letters, SYNC, SCHEMA)
    assert change is not None
    assert (change.operation, change.values, change.unchanged) == (operation, values, unchanged)


def test_rows_without_a_key_are_counted() -> None:
    keyless = replace(SCHEMA, key=(), primary_key=())
    rows = [letter(RowChange(SYNC, keyless, RowOperation.COUNT, ("1", "x", None), count=n)) for n in (3, -1)]
    change = fold(rows, SYNC, keyless)
    assert change is not None
    assert change.count == 2
    assert fold([rows[1], replace(rows[0], count=1)], SYNC, keyless) is None


def test_columns_are_found_by_number_and_new_ones_stay_as_they_are() -> None:
    wider = replace(
        SCHEMA,
        columns=(SCHEMA.columns[0], replace(SCHEMA.columns[1], name="renamed"), Column("c", "text", "text", number=4)),
    )
    change = fold([put("1", "x", "y")], SYNC, wider)
    assert change is not None
    assert (change.values, change.unchanged) == (("1", "x", None), "001")
