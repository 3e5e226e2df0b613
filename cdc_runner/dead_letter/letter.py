"""An entry of the dead-letter queue, and its form in a Redis stream.

An entry has three fields; most of it is one JSON text, for the client parses each field by itself, which took two
thirds of the time of a replay when there were fifteen:

    v          version of this form, "1"
    entry      name of the entry, unique for ever; the destination's mark has the same
    letter     JSON object:
      pipeline   identity of the pipeline
      sync       source and target table
      position   position of the transaction (`cdc_runner.position`)
      commit_at  its commit time at the source, seconds since the epoch
      operation  put, delete or count
      columns    [name, number] of each value's column; numbers outlive a rename
      key        names of the identifying columns
      values     the values as text, null for NULL; of a delete only the key's
      unchanged  null, or one character a column, "1" where the value stays as it is
      count      rows, for operation count
      sqlstate   why the target refused it; null when it waits behind an earlier change of its key
      reason     the same in words, without a value
      stored_at  when it was stored, seconds since the epoch

Values are in `values` and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cdc_runner.destinations.letters import RowChange, RowOperation, Values
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema

VERSION = "1"


@dataclass(frozen=True, slots=True)
class Letter:
    """An entry that was read back.

    Attributes:
        stream_id: place in its stream.
        columns: name and number (0 when unknown) of each value's column.
        edited: whether an operator changed the values.
    """

    stream_id: str
    entry: str
    pipeline: str
    source: TableId
    target: TableId
    position: Position
    commit_time: float
    operation: RowOperation
    columns: tuple[tuple[str, int], ...]
    key_columns: tuple[str, ...]
    values: Values
    unchanged: str | None
    count: int
    sqlstate: str | None
    reason: str | None
    stored_at: float
    edited: bool = False

    def value_of(self) -> dict[str, str | None]:
        """Return the values by column name, without those that stay as they are."""
        marks = self.unchanged or "0" * len(self.columns)
        given = zip(self.columns, self.values, marks, strict=True)
        if self.operation is RowOperation.DELETE:
            return {name: value for (name, _), value, _ in given if name in self.key_columns}
        return {name: value for (name, _), value, mark in given if mark == "0"}

    def with_values(self, changed: Mapping[str, str | None]) -> Letter:
        """Return the entry with other values.

        Raises:
            RosettaError: CONFIG_INVALID for an unknown column, a column of the key, or an entry that has no values.
        """
        if self.operation is RowOperation.DELETE:
            raise RosettaError(ErrorKind.CONFIG_INVALID, f"entry {self.entry} deletes a row: it has no values to edit")
        names = [name for name, _ in self.columns]
        for name in changed:
            if name not in names:
                raise RosettaError(
                    ErrorKind.CONFIG_INVALID,
                    f"entry {self.entry} has no column {name[:63]!r}; known: {', '.join(names)}",
                )
            if name in self.key_columns and self.operation is not RowOperation.COUNT:
                raise RosettaError(
                    ErrorKind.CONFIG_INVALID, f"column {name} tells the row from others and cannot be edited"
                )
        values = tuple(changed.get(name, value) for name, value in zip(names, self.values, strict=True))
        unchanged = self.unchanged
        if unchanged is not None:
            unchanged = "".join("0" if name in changed else mark for name, mark in zip(names, unchanged, strict=True))
        return replace(self, values=values, unchanged=unchanged, edited=True)

    def overlaid(self, values: Values, unchanged: str | None) -> Letter:
        """Return the entry with the values that an operator gave it."""
        return replace(self, values=values, unchanged=unchanged, edited=True)

    def fitted(self, schema: TableSchema) -> tuple[Values, str | None]:
        """Return values and marks in the layout of the table's present schema.

        Columns are found by number, else by name. One that the entry does not know stays as it is.
        """
        by_number = {number: place for place, (_, number) in enumerate(self.columns) if number}
        by_name = {name: place for place, (name, _) in enumerate(self.columns)}
        values: list[str | None] = []
        marks: list[str] = []
        for column in schema.stream_columns:
            place = by_number.get(column.number) if column.number else None
            if place is None:
                place = by_name.get(column.name)
            values.append(None if place is None else self.values[place])
            marks.append("1" if place is None else (self.unchanged or "0" * len(self.columns))[place])
        unchanged = "".join(marks)
        return tuple(values), unchanged if "1" in unchanged and self.operation is RowOperation.PUT else None


def to_fields(
    entry: str, pipeline: str, change: RowChange, position: Position, commit_time: float, now: float
) -> dict[str, str]:
    """Return the fields of a new entry."""
    sync, refusal = change.sync, change.refusal
    letter = {
        "pipeline": pipeline,
        "sync": [sync.source.schema, sync.source.name, sync.target.schema, sync.target.name],
        "position": str(position),
        "commit_at": commit_time,
        "operation": change.operation.value,
        "columns": [[column.name, column.number] for column in change.schema.stream_columns],
        "key": change.schema.key or change.schema.stream_names,
        "values": change.values,
        "unchanged": change.unchanged,
        "count": change.count,
        "sqlstate": refusal.sqlstate if refusal else None,
        "reason": refusal.message if refusal else None,
        "stored_at": round(now, 3),
    }
    text = json.dumps(letter, ensure_ascii=False, separators=(",", ":"))
    return {"v": VERSION, "entry": entry, "letter": text}


def from_fields(stream_id: str, fields: Mapping[str, str]) -> Letter:
    """Return the entry of its fields.

    Raises:
        RosettaError: DEAD_LETTER_UNAVAILABLE when they are not an entry of this version.
    """
    try:
        if fields["v"] != VERSION:
            raise ValueError
        letter = json.loads(fields["letter"])
        names = letter["sync"]
        return Letter(
            stream_id=stream_id,
            entry=fields["entry"],
            pipeline=letter["pipeline"],
            source=TableId(names[0], names[1]),
            target=TableId(names[2], names[3]),
            position=Position.parse(letter["position"]),
            commit_time=float(letter["commit_at"]),
            operation=RowOperation(letter["operation"]),
            columns=tuple((str(name), int(number)) for name, number in letter["columns"]),
            key_columns=tuple(letter["key"]),
            values=tuple(letter["values"]),
            unchanged=letter["unchanged"],
            count=int(letter["count"]),
            sqlstate=letter["sqlstate"],
            reason=letter["reason"],
            stored_at=float(letter["stored_at"]),
        )
    except (KeyError, ValueError, TypeError, IndexError):
        raise RosettaError(
            ErrorKind.DEAD_LETTER_UNAVAILABLE, f"entry {stream_id} of the queue is not one that this version wrote"
        ) from None
