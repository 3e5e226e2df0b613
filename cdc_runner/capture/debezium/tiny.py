"""A few Debezium events to rows without DuckDB, whose statements cost about a millisecond each however few the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa

from cdc_runner.schema import ReplicaIdentity, TableSchema

TINY_EVENTS = 200
"""Up to so many events of a table the plain loop is the faster way."""


def tiny_rows(schema: TableSchema, data: bytes, marker: str) -> pa.Table | None:
    """Return the rows of `capture.base`, or None when the events need more than a plain loop.

    That is so when the identity may change within one event, or changes in an event that leaves values out.

    Args:
        schema: the table.
        data: events joined by line feeds.
        marker: stands for a value that is not in the event.
    """
    if schema.key and schema.replica_identity is ReplicaIdentity.INDEX:
        return None
    may_leave_out = marker.encode() in data
    rows = _Rows(schema)
    for number, line in enumerate(data.split(b"\n")):
        event = json.loads(line)
        op, before, after = event["op"], event.get("before"), event.get("after")
        marks = _fill(schema.stream_names, before, after, marker) if may_leave_out and after is not None else None
        if op == "t":
            rows.add(number * 2, "t", None)
        elif schema.key:
            if op == "c" and marks is not None:
                return None  # the second half of a changed key
            if op == "d":
                rows.add(number * 2, "d", {name: before[name] for name in schema.key})
            else:
                rows.add(number * 2, "u", after, marks)
        else:
            if op in ("u", "d"):
                rows.add(number * 2, "d", before)
            if op in ("c", "r", "u"):
                rows.add(number * 2 + 1, "i", after, marks)
    return rows.table()


class _Rows:
    """Columns that grow."""

    def __init__(self, schema: TableSchema) -> None:
        self._names = schema.stream_names
        self._ords: list[int] = []
        self._ops: list[str] = []
        self._marks: list[str | None] = []
        self._columns: list[list[str | None]] = [[] for _ in self._names]

    def add(self, ord_: int, op: str, image: dict[str, str | None] | None, marks: str | None = None) -> None:
        self._ords.append(ord_)
        self._ops.append(op)
        self._marks.append(marks)
        for name, column in zip(self._names, self._columns, strict=True):
            column.append(None if image is None else image.get(name))

    def table(self) -> pa.Table:
        arrays = [pa.array(column, pa.string()) for column in self._columns]
        fixed = [
            pa.array(self._ords, pa.int64()),
            pa.array(self._ops, pa.string()),
            pa.array(self._marks, pa.string()),
        ]
        return pa.table([*fixed, *arrays], names=["ord", "op", "x", *(f"c{number}" for number in range(len(arrays)))])


def _fill(
    names: Sequence[str], before: dict[str, str | None] | None, after: dict[str, str | None], marker: str
) -> str | None:
    """Put old values in place of markers; return which values stay unknown, None when none does."""
    unknown = False
    marks = []
    for name in names:
        missing = after.get(name) == marker
        if missing:
            # REPLICA IDENTITY FULL puts the old value beside a placeholder.
            after[name] = before.get(name) if before is not None else None
            missing = after[name] is None
        unknown = unknown or missing
        marks.append("1" if missing else "0")
    return "".join(marks) if unknown else None
