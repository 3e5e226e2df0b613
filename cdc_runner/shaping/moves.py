"""Changed keys whose other values are not in the stream: completed from the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc_runner.capture.base import STAMPS
from cdc_runner.schema import TableSchema

Fetch = Callable[[TableSchema, Sequence[tuple[str, ...]]], Mapping[tuple[str, ...], tuple[str | None, ...]]]
"""Reads present rows from the source by key; rows that are gone are absent."""


def without_moves(events: pa.Table, schema: TableSchema, fetch: Fetch) -> pa.Table:
    """Return events without `m`: the old key's delete, and the row under its new key as the source has it now.

    What the row has become since is still to come in the stream, and ends in the same state. A row that is gone by now
    is left out: its delete is to come. The delete goes one place before its event, which no other row of the table has:
    an event has an even and an odd place, and an `m` stands on the odd one.

    Args:
        events: layout of `NetKind.EVENTS`.
        schema: of the table.
        fetch: reads rows from the source.
    """
    width = len(schema.stream_columns)
    names = ["op", "x", *(f"c{number}" for number in range(width)), *STAMPS]
    moves = pc.equal(events.column("op"), "m")
    if not pc.any(moves).as_py():
        return events.select(names)
    moved = events.filter(moves).to_pylist()
    keys = [schema.stream_names.index(name) for name in schema.key]
    found = fetch(schema, [tuple(row[f"c{number}"] for number in keys) for row in moved])
    rows: list[dict[str, Any]] = []
    for row in moved:
        stamps = {name: row[name] for name in STAMPS}
        old = {f"c{number}": row[f"k{place}"] for place, number in enumerate(keys)}
        rows.append({"op": "d", "x": None, **old, **stamps, "seq": stamps["seq"] - 1})
        values = found.get(tuple(row[f"c{number}"] for number in keys))
        if values is not None:
            rows.append({"op": "u", "x": None, **{f"c{n}": value for n, value in enumerate(values)}, **stamps})
    plain = events.filter(pc.invert(moves)).select(names)
    arrays = [pa.array([row.get(name) for row in rows], plain.schema.field(name).type) for name in names]
    return pa.concat_tables([plain, pa.table(arrays, schema=plain.schema)])
