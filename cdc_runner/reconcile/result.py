"""What a comparison found. Names tables, columns and keys, never another value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cdc_runner.position import format_lsn
from cdc_runner.schema import TableId

Key = tuple[str, ...]


class TableOutcome(StrEnum):
    """How the comparison of one target table ended."""

    EQUAL = "EQUAL"
    DIFFERENT = "DIFFERENT"
    BEHIND = "BEHIND"
    """The destination has not reached the fence: nothing is known."""
    SKIPPED = "SKIPPED"
    """Left out on purpose: its content is not meant to be that of the source table."""
    NOT_COMPARABLE = "NOT_COMPARABLE"
    """The two sides write their values in ways that cannot be compared."""
    FAILED = "FAILED"
    """Something was in the way; trying again may help."""


class Outcome(StrEnum):
    """How a whole comparison ended."""

    EQUAL = "EQUAL"
    DIFFERENT = "DIFFERENT"
    INCOMPLETE = "INCOMPLETE"


@dataclass(frozen=True, slots=True)
class KeyDifferences:
    """Keys whose rows differ, in the target's key columns' texts. A table without a key has digests of rows instead.

    Attributes:
        changed: both sides have the row, with other values.
        missing: the target lacks the row.
        extra: the source does not have the row.
        complete: all are listed; else more rows differ than are looked at one by one.
    """

    changed: Sequence[Key] = ()
    missing: Sequence[Key] = ()
    extra: Sequence[Key] = ()
    complete: bool = True

    @property
    def all(self) -> list[Key]:
        """Every key."""
        return [*self.changed, *self.missing, *self.extra]


@dataclass(frozen=True, slots=True)
class TableResult:
    """What was found in one target table.

    Attributes:
        pipeline_destination_id: the destination within its pipeline.
        destination: its name.
        source: the source table.
        target: the target table.
        outcome: how it ended.
        reason: why it was not compared.
        source_rows: rows at the source that the target is to hold.
        target_rows: rows at the target.
        key: names of the key's columns; empty for a table without one.
        keys: which rows differ.
        left_out: columns that were not compared, with the reason.
        seconds: how long it took.
    """

    pipeline_destination_id: int
    destination: str
    source: TableId
    target: TableId
    outcome: TableOutcome
    reason: str | None = None
    source_rows: int | None = None
    target_rows: int | None = None
    key: tuple[str, ...] = ()
    keys: KeyDifferences = field(default_factory=KeyDifferences)
    left_out: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def details(self, samples: int) -> dict[str, Any]:
        """Return sample keys, the ranges they lie in and columns left out, for a JSON document."""
        keys = self.keys
        return {
            "key": list(self.key),
            "samples": {
                name: [list(key) for key in listed[:samples]]
                for name, listed in (("changed", keys.changed), ("missing", keys.missing), ("extra", keys.extra))
                if listed
            },
            "ranges": [one.as_json() for one in key_ranges(keys.all)] if self.key else [],
            "all_listed": keys.complete,
            "left_out_columns": dict(self.left_out),
        }

    def as_json(self, samples: int) -> dict[str, Any]:
        """Return the result for a JSON document, with at most so many keys of each class."""
        return {
            "destination": self.destination,
            "source": str(self.source),
            "target": str(self.target),
            "outcome": self.outcome.value,
            "reason": self.reason,
            "source_rows": self.source_rows,
            "target_rows": self.target_rows,
            "changed": len(self.keys.changed),
            "missing": len(self.keys.missing),
            "extra": len(self.keys.extra),
            **self.details(samples),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """A whole comparison.

    Attributes:
        pipeline: its name.
        lsn: the position at which both sides were compared; None when there was none.
        tables: one result a target table.
        seconds: how long it took.
        problem: why nothing, or not everything, was compared.
    """

    pipeline: str
    lsn: int | None
    tables: Sequence[TableResult]
    seconds: float
    problem: str | None = None

    @property
    def outcome(self) -> Outcome:
        """`DIFFERENT` as soon as one table differs, `EQUAL` only when all that is to be equal was compared."""
        found = {one.outcome for one in self.tables}
        if TableOutcome.DIFFERENT in found:
            return Outcome.DIFFERENT
        if self.problem or found - {TableOutcome.EQUAL, TableOutcome.SKIPPED}:
            return Outcome.INCOMPLETE
        return Outcome.EQUAL

    def as_json(self, samples: int = 20) -> dict[str, Any]:
        """Return the report for a JSON document."""
        return {
            "pipeline": self.pipeline,
            "outcome": self.outcome.value,
            "position": None if self.lsn is None else format_lsn(self.lsn),
            "problem": self.problem,
            "seconds": round(self.seconds, 3),
            "tables": [one.as_json(samples) for one in self.tables],
        }


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys that lie close together."""

    first: Key
    last: Key
    keys: int

    def as_json(self) -> dict[str, Any]:
        """Return the range for a JSON document."""
        return {"from": list(self.first), "to": list(self.last), "keys": self.keys}


def key_ranges(keys: Sequence[Key], most: int = 16) -> list[KeyRange]:
    """Return the keys as at most so many ranges, cut at the widest gaps; keys that are not numbers give one range."""
    if not keys:
        return []
    try:
        numbered = sorted((int(key[0]), key) for key in keys)
    except ValueError:
        ordered = sorted(keys)
        return [KeyRange(ordered[0], ordered[-1], len(ordered))]
    gaps = sorted(
        ((numbered[place + 1][0] - numbered[place][0], place) for place in range(len(numbered) - 1)), reverse=True
    )
    cuts = sorted(place for gap, place in gaps[: most - 1] if gap > 1)
    ranges = []
    start = 0
    for end in [*cuts, len(numbered) - 1]:
        ranges.append(KeyRange(numbered[start][1], numbered[end][1], end - start + 1))
        start = end + 1
    return ranges
