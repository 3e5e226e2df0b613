"""A few Debezium events to rows without DuckDB, whose statements cost about a millisecond each however few the rows."""

from __future__ import annotations

import json

import pyarrow as pa

from cdc_runner.schema import ReplicaIdentity, TableSchema

TINY_EVENTS = 200
"""Up to so many events of a table the plain loop is the faster way."""


def tiny_rows(schema: TableSchema, data: bytes, marker: str) -> pa.Table | None:
    """Return the rows of `capture.base`, or None when the events need more than a plain loop.

    That is so when values are missing (`marker`), or when an update may change the identity within one event.

    Args:
        schema: the table.
        data: events joined by line feeds.
        marker: stands for a value that is not in the event.
    """
    if marker.encode() in data or (schema.key and schema.replica_identity is ReplicaIdentity.INDEX):
        return None
    names = schema.stream_names
    keyed = bool(schema.key)
    key = frozenset(schema.key)
    ords: list[int] = []
    ops: list[str] = []
    columns: list[list[str | None]] = [[] for _ in names]

    def add(ord_: int, op: str, image: dict[str, str | None] | None, only: frozenset[str] | None) -> None:
        ords.append(ord_)
        ops.append(op)
        for name, column in zip(names, columns, strict=True):
            column.append(None if image is None or (only is not None and name not in only) else image.get(name))

    for number, line in enumerate(data.split(b"\n")):
        event = json.loads(line)
        op, before, after = event["op"], event.get("before"), event.get("after")
        if op == "t":
            add(number * 2, "t", None, None)
        elif keyed:
            add(number * 2, "d" if op == "d" else "u", before if op == "d" else after, key if op == "d" else None)
        else:
            if op in ("u", "d"):
                add(number * 2, "d", before, None)
            if op in ("c", "r", "u"):
                add(number * 2 + 1, "i", after, None)
    arrays = [pa.array(column, pa.string()) for column in columns]
    return pa.table(
        [pa.array(ords, pa.int64()), pa.array(ops, pa.string()), pa.nulls(len(ords), pa.string()), *arrays],
        names=["ord", "op", "x", *(f"c{number}" for number in range(len(names)))],
    )
