"""A table sync's shape for destinations that keep every event: events of the source's table to events of the target.

A row that does not meet the filter becomes a delete of its key, whether or not the target has it. A row that does meet
it is whole: what an update left out is read from the source, for the target may not have had the row. That is the
source's present row; its later changes are still to come and end in the same state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from cdc_runner.capture.base import STAMPS, TableVersion
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableSchema
from cdc_runner.shaping.columns import ColumnPlan, plan_columns, shaped_marks
from cdc_runner.shaping.moves import without_moves
from cdc_runner.shaping.net import NetChange, Origin, transactions_of
from cdc_runner.shaping.source_rows import SourceRows
from cdc_runner.spec import ResolvedSync, SyncMode

Row = tuple[str | None, ...]


def event_plan(sync: ResolvedSync, schema: TableSchema) -> ColumnPlan | None:
    """Return how a sync shapes a version of its table for a destination that keeps events; None for a plain copy.

    What becomes of rows that are gone is up to the destination, so the mode adds no column here.

    Raises:
        RosettaError: see `plan_columns`.
    """
    if sync.shape.plain:
        return None
    if sync.shape.mode is SyncMode.SOFT_DELETE:
        plan_columns(sync.shape, schema, sync.mask_key)
    return plan_columns(replace(sync.shape, mode=SyncMode.MIRROR), schema, sync.mask_key)


class EventShaper:
    """Shapes the events of one table sync. Not thread-safe."""

    def __init__(self, sync: ResolvedSync, source: SourceRows) -> None:
        """Args:
        sync: with its shape.
        source: answers what the stream does not say.
        """
        self._sync = sync
        self._source = source
        self._versions: dict[int, tuple[TableSchema, ColumnPlan]] = {}

    def shape(self, change: NetChange) -> NetChange:
        """Return what events of the source's table are for the target.

        Raises:
            RosettaError: CONFIG_INVALID when the shape does not fit the table (any more), and the source kinds.
        """
        plan = self._plan(change.version)
        self._source.heed(transactions_of(change.rows))
        rows = without_moves(change.rows, plan.source, self._fetch)
        if plan.filter is not None and rows.num_rows:
            rows = self._filtered(rows, plan) if plan.source.key else self._passing(rows, plan)
        version = TableVersion(plan.target, change.version.number)
        return replace(change, version=version, rows=_projected(rows, plan), origin=Origin(plan.source, _no_rows))

    def _plan(self, version: TableVersion) -> ColumnPlan:
        known = self._versions.get(version.number)
        if known is None or known[0] is not version.schema:
            plan = event_plan(self._sync, version.schema)
            assert plan is not None, "made for a sync with a shape"
            known = self._versions[version.number] = version.schema, plan
        return known[1]

    def _fetch(self, schema: TableSchema, keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], Row]:
        found = self._source.fetch(schema, keys)
        return {key: row for key, row in zip(keys, found, strict=True) if row is not None}

    def _passing(self, rows: pa.Table, plan: ColumnPlan) -> pa.Table:
        """Return the events of rows without a key that meet the filter, and truncates."""
        kept = set(self._meeting(rows, plan))
        emptied = pc.indices_nonzero(pc.equal(rows.column("op"), "t")).to_pylist()
        return rows.take(pa.array(sorted(kept.union(emptied)), pa.int64()))

    def _filtered(self, rows: pa.Table, plan: ColumnPlan) -> pa.Table:
        """Return events with a delete in place of each row that is not for the target."""
        rows = self._completed(rows, plan)
        puts = pc.equal(rows.column("op"), "u")
        present = pc.indices_nonzero(puts)
        meeting = self._meeting(rows.take(present), plan)
        kept = set(present.take(pa.array(meeting, pa.int64())).to_pylist())
        operations = [
            "d" if one == "u" and place not in kept else one for place, one in enumerate(rows.column("op").to_pylist())
        ]
        return rows.set_column(rows.schema.get_field_index("op"), "op", pa.array(operations, pa.string()))

    def _completed(self, rows: pa.Table, plan: ColumnPlan) -> pa.Table:
        """Return events of which each update is whole; one of a row that is gone becomes its delete."""
        partial = pc.and_(pc.equal(rows.column("op"), "u"), pc.is_valid(rows.column("x")))
        places = pc.indices_nonzero(partial).to_pylist()
        if not places:
            return rows
        taken = rows.take(pa.array(places, pa.int64()))
        keys = list(zip(*(taken.column(f"c{place}").to_pylist() for place in plan.key_places), strict=True))
        found = dict(zip(places, self._source.fetch(plan.source, keys), strict=True))
        gone = {place for place, row in found.items() if row is None}
        operations = ["d" if place in gone else one for place, one in enumerate(rows.column("op").to_pylist())]
        marks = [None if place in found else one for place, one in enumerate(rows.column("x").to_pylist())]
        columns = {name: rows.column(name) for name in rows.column_names}
        columns |= {"op": pa.array(operations, pa.string()), "x": pa.array(marks, pa.string())}
        for number in range(len(plan.source.stream_columns)):
            texts = rows.column(f"c{number}").to_pylist()
            for place, row in found.items():
                if row is not None:
                    texts[place] = row[number]
            columns[f"c{number}"] = pa.array(texts, pa.string())
        return pa.table(columns)

    def _meeting(self, rows: pa.Table, plan: ColumnPlan) -> list[int]:
        """Return the places of rows that meet the filter."""
        if not rows.num_rows:
            return []
        values = [rows.column(f"c{place}") for place in plan.deciding]
        return self._source.passing(plan.source, plan.filter or "", plan.deciding, values)


def _projected(rows: pa.Table, plan: ColumnPlan) -> pa.Table:
    """Return events with the target's columns, masked."""
    columns = {"op": rows.column("op"), "x": shaped_marks(rows.column("x"), plan)}
    operations = rows.column("op").to_pylist() if any(mask is not None for mask in plan.maskers) else []
    for number, (place, mask) in enumerate(zip(plan.places, plan.maskers, strict=True)):
        column = rows.column(f"c{place}")
        if mask is not None:
            # Of a delete only the key has values, of a truncate none; without a key a delete has all of them.
            whole = {"u", "i"} if plan.source.key and place not in plan.key_places else {"u", "i", "d"}
            texts = zip(column.to_pylist(), operations, strict=True)
            column = pa.array([mask(text) if one in whole else None for text, one in texts], pa.string())
        columns[f"c{number}"] = column
    return pa.table(columns | {name: rows.column(name) for name in STAMPS})


def _no_rows(keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], Row]:
    raise RosettaError(ErrorKind.INTERNAL, "a destination that keeps events asks for no rows")
