"""What differs between two versions of a table's schema, as the config database keeps them. Pure.

Columns are told apart by their number, which stays when one is renamed; where a number is not known, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

INITIAL_LOAD = "INITIAL_LOAD"
NEW_COLUMN = "NEW COLUMN"
DROP_COLUMN = "DROP COLUMN"
RENAME_COLUMN = "RENAME COLUMN"
CHANGES_TYPE = "CHANGES TYPE"
CHANGES_NULLABILITY = "CHANGES NULLABILITY"
CHANGES_DEFAULT = "CHANGES DEFAULT"
CHANGES_GENERATION = "CHANGES GENERATION"
CHANGES_KEY = "CHANGES KEY"
CHANGES_IDENTITY = "CHANGES REPLICA IDENTITY"
RENAME_TABLE = "RENAME TABLE"
DROP_TABLE = "DROP TABLE"
OTHER = "OTHER CHANGE"

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: what kind, of which column (empty for the table), before and after."""

    kind: str
    column: str = ""
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        parts = [self.kind, self.column]
        if self.before or self.after:
            parts.append(f"{self.before or '-'} → {self.after or '-'}")
        return " ".join(part for part in parts if part)


def differences(old: Schema | None, new: Schema | None) -> list[Difference]:
    """Return what changed from one version to the next, in the order of the columns; nothing when they are equal."""
    if old is None:
        return [] if new is None else [Difference(INITIAL_LOAD)]
    if new is None:
        return [Difference(DROP_TABLE)]
    if old == new:
        return []
    found = _columns(old, new)
    for kind, field in ((CHANGES_KEY, "primary_key"), (CHANGES_KEY, "key"), (CHANGES_IDENTITY, "replica_identity")):
        before, after = _shown(old.get(field)), _shown(new.get(field))
        if before != after and not any(one.kind == kind for one in found):
            found.append(Difference(kind, "", before, after))
    names = [f"{one.get('schema')}.{one.get('table')}" for one in (old, new)]
    if names[0] != names[1]:
        found.append(Difference(RENAME_TABLE, "", *names))
    return found or [Difference(OTHER)]


def is_passed(old: Schema, new: Schema, stored: Sequence[Schema]) -> bool:
    """Tell whether the last of some versions is beyond a step, which is told late.

    It is when what the step changes is so there already. It is, too, when the step begins at an earlier version, unless
    the step brings a column with a number that none of them has, or drops one that is still there.

    Args:
        old: where the step begins; not the last version.
        new: where it ends; not the last version.
        stored: versions in their order, at least one.
    """
    before, after, last = _by_number(old), _by_number(new), _by_number(stored[-1])
    columns = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    fields = [key for key in old.keys() | new.keys() if key != "columns" and old.get(key) != new.get(key)]
    is_so = [after.get(key) == last.get(key) for key in columns]
    if all(is_so + [new.get(key) == stored[-1].get(key) for key in fields]):
        return True
    if old not in stored:
        return False
    highest = max((_number(column) for version in stored for column in version.get("columns", ())), default=0)
    comes = any(_number(column) > highest for column in after.values())
    return not comes and not (before.keys() - after.keys()) & last.keys()


def change_names(found: list[Difference]) -> str:
    """Return the kinds of some differences, each once: `NEW COLUMN, CHANGES TYPE`."""
    return ", ".join(dict.fromkeys(one.kind for one in found))


def _columns(old: Schema, new: Schema) -> list[Difference]:
    before, after = list(old.get("columns", ())), list(new.get("columns", ()))
    known = {_number(column): column for column in before if _number(column)}
    by_name = {column["name"]: column for column in before}
    found: list[Difference] = []
    kept: set[str] = set()
    for column in after:
        same = known.get(_number(column)) if _number(column) and known else by_name.get(column["name"])
        if same is None:
            found.append(Difference(NEW_COLUMN, column["name"], "", column["type_text"]))
            continue
        kept.add(same["name"])
        if same["name"] != column["name"]:
            found.append(Difference(RENAME_COLUMN, column["name"], same["name"], column["name"]))
        found += _facts(same, column)
    dropped = [column for column in before if column["name"] not in kept]
    return found + [Difference(DROP_COLUMN, column["name"], column["type_text"]) for column in dropped]


_FACTS = (
    (CHANGES_TYPE, "type_text"),
    (CHANGES_NULLABILITY, "not_null"),
    (CHANGES_DEFAULT, "default"),
    (CHANGES_GENERATION, "expression"),
)


def _facts(old: dict[str, Any], new: dict[str, Any]) -> list[Difference]:
    return [
        Difference(kind, new["name"], _shown(old.get(field)), _shown(new.get(field)))
        for kind, field in _FACTS
        if old.get(field) != new.get(field)
    ]


def _by_number(schema: Schema) -> dict[int | str, dict[str, Any]]:
    return {_number(column) or column["name"]: column for column in schema.get("columns", ())}


def _number(column: dict[str, Any]) -> int:
    return int(column.get("number") or 0)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return {True: "NOT NULL", False: "NULL"}[value] if isinstance(value, bool) else str(value)
