"""The net change of everything that waits for one key, in the order of the stream."""

from __future__ import annotations

from collections.abc import Iterable

from cdc_runner.dead_letter.letter import Letter
from cdc_runner.destinations.letters import RowChange, RowOperation
from cdc_runner.schema import TableSchema
from cdc_runner.spec import ResolvedSync


def fold(letters: Iterable[Letter], sync: ResolvedSync, schema: TableSchema) -> RowChange | None:
    """Return the change that has the effect of all of a key's entries, one after the other.

    Args:
        letters: a key's entries in order.
        sync: source and target.
        schema: the table's present schema.

    Returns:
        None when there is nothing to do: rows that came and went.
    """
    change: RowChange | None = None
    for letter in letters:
        values, unchanged = letter.fitted(schema)
        new = RowChange(sync, schema, letter.operation, values, unchanged, letter.count)
        if change is None or new.operation is RowOperation.DELETE or new.unchanged is None:
            if new.operation is RowOperation.COUNT and change is not None:
                new = RowChange(sync, schema, RowOperation.COUNT, values, None, change.count + new.count)
            change = new
        elif change.operation is RowOperation.PUT:
            change = _filled(change, new)
        else:
            change = new
    if change is not None and change.operation is RowOperation.COUNT and change.count == 0:
        return None
    return change


def _filled(older: RowChange, newer: RowChange) -> RowChange:
    """Return the newer change with the values that it leaves out, where the older one has them."""
    marks = newer.unchanged or ""
    known = older.unchanged or "0" * len(older.values)
    values = tuple(
        old if mark == "1" else new for old, new, mark in zip(older.values, newer.values, marks, strict=True)
    )
    left = "".join("1" if mark == "1" and old == "1" else "0" for mark, old in zip(marks, known, strict=True))
    unchanged = left if "1" in left else None
    return RowChange(newer.sync, newer.schema, RowOperation.PUT, values, unchanged)
