"""What applying a configuration file would change: one entry an object, with its differing fields.

A secret is never in a plan: it is shown as `(secret)`, and a differing one as changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Action = Literal["create", "change", "remove", "nothing", "left alone"]
Kind = Literal["source", "destination", "pipeline", "pipeline destination", "channel", "preset"]

SECRET = "(secret)"


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field and its values before and after, as text; None where there is none."""

    name: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        if self.new == SECRET:
            return f"{self.name}: {SECRET}{' changed' if self.old is not None else ''}"
        if self.old is None:
            return f"{self.name}: {self.new}"
        return f"{self.name}: {self.old} -> {self.new if self.new is not None else '(none)'}"


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to one object.

    Attributes:
        kind: what it is.
        name: its name; `pipeline/destination` for a destination of a pipeline.
        action: create, change, remove, nothing, or left alone because the file does not name it.
        fields: differing fields.
    """

    kind: Kind
    name: str
    action: Action
    fields: tuple[FieldChange, ...] = ()


@dataclass(slots=True)
class Plan:
    """All objects of the file and of the config database.

    Attributes:
        changes: one an object.
        left_over: statements to run on a server by hand, as Rosetta could not; filled in by the execution.
    """

    changes: list[Change] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    @property
    def changes_anything(self) -> bool:
        """Whether anything is created, changed or removed."""
        return any(change.action in ("create", "change", "remove") for change in self.changes)

    def as_json(self) -> dict[str, object]:
        """Return the plan for machines."""
        return {
            "changes": [
                {
                    "kind": change.kind,
                    "name": change.name,
                    "action": change.action,
                    "fields": [{"name": one.name, "old": one.old, "new": one.new} for one in change.fields],
                }
                for change in self.changes
            ],
            "left_over": list(self.left_over),
        }

    def as_text(self) -> str:
        """Return the plan for a person."""
        signs = {"create": "+", "change": "~", "remove": "-", "nothing": "=", "left alone": "."}
        lines: list[str] = []
        for change in self.changes:
            note = "  (not in the file; left alone)" if change.action == "left alone" else ""
            lines.append(f"{signs[change.action]} {change.kind} {change.name}{note}")
            lines.extend(f"    {one}" for one in change.fields)
        counts = {action: sum(change.action == action for change in self.changes) for action in signs}
        lines.append(
            f"{counts['create']} to create, {counts['change']} to change, {counts['remove']} to remove,"
            f" {counts['nothing']} unchanged, {counts['left alone']} left alone"
        )
        return "\n".join(lines)


def differences(old: Mapping[str, str | None], new: Mapping[str, str | None]) -> tuple[FieldChange, ...]:
    """Return the fields of which the values differ."""
    return tuple(
        FieldChange(name, old.get(name), new.get(name))
        for name in sorted({*old, *new}, key=list({**new, **old}).index)
        if old.get(name) != new.get(name)
    )


def action_of(created: bool, fields: tuple[FieldChange, ...]) -> Action:
    """Return what is done to an object that is new, or that has differing fields."""
    if created:
        return "create"
    return "change" if fields else "nothing"
