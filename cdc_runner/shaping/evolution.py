"""What changed between two versions of a source table, found by column number where both sides know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cdc_runner.schema import Column, TableSchema


class ChangeKind(StrEnum):
    """Kinds of schema changes; the values are what the schema history holds."""

    NEW_TABLE = "INITIAL_LOAD"
    DROP_TABLE = "DROP TABLE"
    RECREATE_TABLE = "RECREATE TABLE"
    ADD_COLUMN = "NEW COLUMN"
    DROP_COLUMN = "DROP COLUMN"
    RENAME_COLUMN = "RENAME COLUMN"
    CHANGE_TYPE = "CHANGES TYPE"
    CHANGE_KEY = "CHANGES KEY"
    NULLABILITY = "CHANGES NULLABILITY"
    GENERATION = "CHANGES GENERATION"


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """One change of a table.

    Attributes:
        kind: what happened.
        column: the column after the change; None for a dropped one and for changes of the whole table.
        before: the column before the change; None for a new one and for changes of the whole table.
        text: one line for the history and for people.
        rewritten: of a new column, whether the source has written the table anew since the version before, so that
            older rows may hold a value of their own in it; None when unknown.
    """

    kind: ChangeKind
    column: Column | None
    before: Column | None
    text: str
    rewritten: bool | None = None


def diff(old: TableSchema, new: TableSchema) -> list[SchemaChange]:
    """Return the changes that lead from one version of a table to the next, in the order they are to be carried out.

    A column is the same column when it has the same number (so a rename, or two names that changed places, is seen as
    such, and a column that was dropped and added again under its name is two changes); by name where a number is
    unknown. The order of columns is no change. A generated column that the new version does not mention is taken as
    unchanged, for change streams leave generated columns out. A table with another oid is another table.
    """
    if old.oid and new.oid and old.oid != new.oid:
        text = f"table {new.table} was dropped and created again"
        return [SchemaChange(ChangeKind.RECREATE_TABLE, None, None, text)]
    pairs, dropped, added = _pair(old.columns, new.columns)
    changes = [_drop(column) for column in dropped if not column.generated]
    changes += [
        SchemaChange(ChangeKind.RENAME_COLUMN, after, before, f"column {before.name} was renamed to {after.name}")
        for before, after in pairs
        if before.name != after.name
    ]
    for before, after in pairs:
        changes += _column_changes(before, after)
    rewritten = old.filenode != new.filenode if old.filenode and new.filenode else None
    changes += [_add(column, rewritten) for column in added]
    if _key_changed(old, new, pairs):
        changes.append(SchemaChange(ChangeKind.CHANGE_KEY, None, None, _key_text(old, new)))
    return changes


def _pair(
    old: Sequence[Column], new: Sequence[Column]
) -> tuple[list[tuple[Column, Column]], list[Column], list[Column]]:
    """Return columns that both versions have as pairs, then those of the old one alone, then those of the new one."""
    by_number = {column.number: column for column in new if column.number}
    by_name = {column.name: column for column in new}
    pairs: list[tuple[Column, Column]] = []
    dropped: list[Column] = []
    for before in old:
        after = by_number.get(before.number) if before.number else None
        if after is None:
            after = by_name.get(before.name)
            if after is not None and before.number and after.number:
                after = None
        if after is None:
            dropped.append(before)
        else:
            pairs.append((before, after))
    taken = {after.name for _, after in pairs}
    return pairs, dropped, [column for column in new if column.name not in taken]


def _column_changes(before: Column, after: Column) -> list[SchemaChange]:
    changes = []
    name = after.name
    if _type(before) != _type(after):
        text = f"column {name} changed its type from {before.type_text} to {after.type_text}"
        changes.append(SchemaChange(ChangeKind.CHANGE_TYPE, after, before, text))
    if before.generated != after.generated:
        text = f"column {name} is {'now' if after.generated else 'no longer'} generated"
        changes.append(SchemaChange(ChangeKind.GENERATION, after, before, text))
    elif after.generated and before.expression and before.expression != after.expression:
        text = f"generated column {name} has another expression"
        changes.append(SchemaChange(ChangeKind.GENERATION, after, before, text))
    if before.not_null != after.not_null:
        text = f"column {name} {'must not be null any more' if after.not_null else 'may be null now'}"
        changes.append(SchemaChange(ChangeKind.NULLABILITY, after, before, text))
    return changes


def _type(column: Column) -> tuple[str, str, str]:
    return column.type_schema, column.type_name, column.type_text


def _drop(column: Column) -> SchemaChange:
    return SchemaChange(ChangeKind.DROP_COLUMN, None, column, f"column {column.name} was dropped")


def _add(column: Column, rewritten: bool | None) -> SchemaChange:
    text = f"column {column.name} {column.type_text} was added"
    return SchemaChange(ChangeKind.ADD_COLUMN, column, None, text, rewritten)


def _key_changed(old: TableSchema, new: TableSchema, pairs: Sequence[tuple[Column, Column]]) -> bool:
    """Tell whether the primary key or the identifying columns are others, a rename apart. Order matters to neither."""
    names = {before.name: after.name for before, after in pairs}
    for before, after in ((old.primary_key, new.primary_key), (old.key, new.key)):
        if {names.get(name, "") for name in before} != set(after):
            return True
    return False


def _key_text(old: TableSchema, new: TableSchema) -> str:
    def of(schema: TableSchema) -> str:
        if schema.primary_key and schema.primary_key != schema.key:
            return f"primary key ({', '.join(schema.primary_key)}), identity ({', '.join(schema.key) or 'whole row'})"
        return f"({', '.join(schema.key)})" if schema.key else "the whole row"

    return f"the key changed from {of(old)} to {of(new)}"
