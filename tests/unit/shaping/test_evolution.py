"""What `diff` makes of two versions of a table."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.shaping.evolution import ChangeKind, diff


def column(name: str, number: int = 0, type_text: str = "integer", **more: object) -> Column:
    return Column(name, type_text, type_text, number=number, **more)  # type: ignore[arg-type]


def table(*columns: Column, key: tuple[str, ...] = ("id",), oid: int = 1) -> TableSchema:
    return TableSchema(TableId("public", "t"), columns, key, key, ReplicaIdentity.DEFAULT, oid=oid)


def seen(old: TableSchema, new: TableSchema) -> list[tuple[ChangeKind, str | None, str | None]]:
    return [
        (change.kind, change.before.name if change.before else None, change.column.name if change.column else None)
        for change in diff(old, new)
    ]


ID = column("id", 1)


def test_order_of_columns_and_their_values_for_old_rows_are_no_change() -> None:
    a, b = column("a", 2), column("b", 3)
    assert seen(table(ID, a, b), table(b, replace(a, missing_value="1", default="2"), ID)) == []


def test_same_number_with_another_name_is_a_rename() -> None:
    assert seen(table(ID, column("a", 2)), table(ID, column("b", 2))) == [(ChangeKind.RENAME_COLUMN, "a", "b")]


def test_same_name_with_another_number_was_dropped_and_added() -> None:
    assert seen(table(ID, column("a", 2)), table(ID, column("a", 3, "text"))) == [
        (ChangeKind.DROP_COLUMN, "a", None),
        (ChangeKind.ADD_COLUMN, None, "a"),
    ]


def test_names_that_changed_places_are_two_renames() -> None:
    old = table(ID, column("a", 2), column("b", 3))
    assert seen(old, table(ID, column("b", 2), column("a", 3))) == [
        (ChangeKind.RENAME_COLUMN, "a", "b"),
        (ChangeKind.RENAME_COLUMN, "b", "a"),
    ]


def test_names_decide_where_a_number_is_unknown() -> None:
    old = table(ID, column("a", 2), column("b"))
    assert seen(old, table(ID, column("a"), column("c"))) == [
        (ChangeKind.DROP_COLUMN, "b", None),
        (ChangeKind.ADD_COLUMN, None, "c"),
    ]


def test_type_null_and_name_may_change_together() -> None:
    old = table(ID, column("a", 2, not_null=True))
    assert seen(old, table(ID, column("b", 2, "text"))) == [
        (ChangeKind.RENAME_COLUMN, "a", "b"),
        (ChangeKind.CHANGE_TYPE, "a", "b"),
        (ChangeKind.NULLABILITY, "a", "b"),
    ]


def test_key_whose_column_was_renamed_is_the_same_key() -> None:
    assert seen(table(ID), table(column("ident", 1), key=("ident",))) == [(ChangeKind.RENAME_COLUMN, "id", "ident")]


def test_key_on_other_columns_and_key_of_a_replaced_column_are_changes() -> None:
    old = table(ID, column("a", 2))
    assert (ChangeKind.CHANGE_KEY, None, None) in seen(old, table(ID, column("a", 2), key=("a",)))
    assert (ChangeKind.CHANGE_KEY, None, None) in seen(old, table(column("id", 3), column("a", 2)))
    assert seen(old, table(ID, column("a", 2), key=())) == [(ChangeKind.CHANGE_KEY, None, None)]


def test_generated_column_that_the_stream_leaves_out_is_no_change() -> None:
    generated = column("g", 2, generated=True, expression="(id * 2)")
    assert seen(table(ID, generated), table(ID)) == []
    assert seen(table(ID, generated), table(ID, column("g", 2))) == [(ChangeKind.GENERATION, "g", "g")]
    assert seen(table(ID, generated), table(ID, replace(generated, expression="id"))) == [
        (ChangeKind.GENERATION, "g", "g")
    ]


def test_another_oid_is_another_table() -> None:
    assert seen(table(ID), table(column("x", 1), oid=2)) == [(ChangeKind.RECREATE_TABLE, None, None)]
    assert seen(table(ID, oid=0), table(ID, oid=2)) == []


def test_new_column_tells_whether_the_table_was_written_anew() -> None:
    for before, after, expected in ((7, 7, False), (7, 8, True), (0, 8, None), (7, 0, None)):
        (change,) = diff(replace(table(ID), filenode=before), replace(table(ID, column("a", 2)), filenode=after))
        assert change.rewritten is expected
    assert diff(replace(table(ID), filenode=1), replace(table(ID), filenode=2)) == []


def test_texts_name_columns_and_types() -> None:
    (change,) = diff(table(ID, column("a", 2)), table(ID, column("a", 2, "text")))
    assert change.text == "column a changed its type from integer to text"
    (change,) = diff(table(ID), table(ID, key=()))
    assert change.text == "the key changed from (id) to the whole row"


names = st.lists(st.sampled_from("abcdef"), unique=True)


@given(names, names, st.randoms())
def test_changes_lead_from_the_old_names_to_the_new_ones(before: list[str], after: list[str], random) -> None:
    """Carried out on names alone, drops, renames and additions give the new columns, and keep numbers with values."""
    old = table(*(column(name, number) for number, name in enumerate(before, 1)), key=())
    kept = random.sample(range(1, len(before) + 1), random.randint(0, min(len(before), len(after))))
    numbers = [*kept, *range(100, 100 + len(after) - len(kept))]
    new = table(*(column(name, number) for name, number in zip(after, numbers, strict=True)), key=())
    state = {one.name: one.number for one in old.columns}
    changes = diff(old, new)
    for change in changes:
        if change.kind is ChangeKind.DROP_COLUMN and change.before:
            del state[change.before.name]
    renames = {
        c.before.name: c.column.name for c in changes if c.kind is ChangeKind.RENAME_COLUMN and c.before and c.column
    }
    state = {renames.get(name, name): number for name, number in state.items()}
    for change in changes:
        if change.kind is ChangeKind.ADD_COLUMN and change.column:
            assert change.column.name not in state
            state[change.column.name] = change.column.number
    assert state == {one.name: one.number for one in new.columns}
