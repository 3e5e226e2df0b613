"""The net change of a few events without DuckDB, whose statements cost about a millisecond each however few the rows.

A batch of single rows in many tables would pay for each table.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from cdc_runner.capture.base import TableChanges

TINY_ROWS = 400
"""Up to so many changes of a table the plain loop is the faster way."""

TINY_BYTES = 1 << 20
"""Up to so many bytes of them: it copies each value a few times."""


def tiny_net(changes: TableChanges) -> tuple[pa.Table, bool, bool] | None:
    """Return the rows of a net change, whether some leave values as they are, and whether some take something away.

    None when it takes more than a plain loop: a truncate, or a move.
    """
    rows, schema = changes.rows, changes.version.schema
    ops = rows.column("op").to_pylist()
    if "t" in ops or "m" in ops:
        return None
    rows = rows.select(["x", *(f"c{number}" for number in range(len(schema.stream_columns)))])
    complete = rows.column("x").null_count == rows.num_rows
    if not schema.key:
        return (_multiset(rows, ops), False, "d" in ops) if complete else None
    keys = [schema.stream_names.index(name) for name in schema.key]
    net = _last(rows, ops, keys) if complete else _filled(rows, ops, keys)
    return net, net.column("x").null_count < net.num_rows, "d" in ops


def _last(rows: pa.Table, ops: list[str], keys: list[int]) -> pa.Table:
    """Events that carry every value: the last one of each key counts."""
    identities = zip(*(rows.column(f"c{number}").to_pylist() for number in keys), strict=True)
    last = {identity: place for place, identity in enumerate(identities)}
    if len(last) < rows.num_rows:
        rows = rows.take(pa.array(last.values(), pa.int64()))
        ops = [ops[place] for place in last.values()]
    deleted = pa.array([op == "d" for op in ops], pa.bool_())
    return rows.add_column(0, "d", deleted)


def _filled(rows: pa.Table, ops: list[str], keys: list[int]) -> pa.Table:
    """Events that may leave values out: each value is the last one known since the row came to be."""
    columns = [column.to_pylist() for column in rows.columns]
    net: dict[tuple[Any, ...], tuple[bool, list[Any], list[str]]] = {}
    for op, marks, *values in zip(ops, *columns, strict=True):
        identity = tuple(values[number] for number in keys)
        before = net.get(identity)
        unknown = ["0"] * len(values) if marks is None else list(marks)
        if op == "u" and marks is not None and before is not None and not before[0]:
            for number, mark in enumerate(marks):
                if mark == "1":
                    values[number], unknown[number] = before[1][number], before[2][number]
        net[identity] = (op == "d", values, unknown)
    marked = [None if gone or "1" not in unknown else "".join(unknown) for gone, _, unknown in net.values()]
    images = zip(*(values for _, values, _ in net.values()), strict=True)
    return pa.table(
        [
            pa.array([gone for gone, _, _ in net.values()], pa.bool_()),
            pa.array(marked, pa.string()),
            *(pa.array(image, pa.string()) for image in images),
        ],
        names=["d", *rows.column_names],
    )


def _multiset(rows: pa.Table, ops: list[str]) -> pa.Table:
    """A table without a key: how many rows of each look came or went."""
    columns = [column.to_pylist() for column in rows.columns[1:]]
    counts: Counter[tuple[Any, ...]] = Counter()
    for op, *values in zip(ops, *columns, strict=True):
        counts[tuple(values)] += 1 if op == "i" else -1
    left = [(count, values) for values, count in counts.items() if count]
    images = zip(*(values for _, values in left), strict=True) if left else [()] * len(columns)
    return pa.table(
        [pa.array([count for count, _ in left], pa.int64()), *(pa.array(image, pa.string()) for image in images)],
        names=["n", *rows.column_names[1:]],
    )
