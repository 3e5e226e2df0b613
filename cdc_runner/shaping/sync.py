"""A table sync's shape at work: net changes of the source's table to net changes of the target.

Rows that do not meet the filter are deleted by key, rows that do are written, so a row that leaves goes and one that
enters comes. What the stream does not say (an unchanged TOAST value that the filter reads, the old row of a changed
key) is read from the source: its present row. Later changes of that row are still to come and end in the same state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from cdc_runner.capture.base import TableVersion
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.columns import ColumnPlan, plan_columns, shaped_marks
from cdc_runner.shaping.events import EventShaper
from cdc_runner.shaping.net import NetChange, NetKind, Origin
from cdc_runner.shaping.source_rows import SourceRows
from cdc_runner.spec import ResolvedSync, SyncMode

Row = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class _Version:
    """A version of the table under the shape."""

    plan: ColumnPlan
    target: TableVersion


class TableShaper(Protocol):
    """Makes changes of one table sync's source those of its target."""

    takes_events: bool
    """Whether it is given every event in place of net changes."""
    reads: frozenset[TableId]
    """The tables of the source whose changes it takes."""

    def target_schema(self, schema: TableSchema) -> TableSchema:
        """Return what the target of a version of the source's table looks like."""
        ...

    def shape(self, change: NetChange, commit_time: float) -> Iterator[NetChange]:
        """Yield what a change is for the target, in order."""
        ...

    def origin_of(self, schema: TableSchema, rows: pa.Table) -> Origin | None:
        """Return where rows that were shaped before come from; None where they do not tell."""
        ...


class SyncShaper:
    """Shapes the changes of one table sync. Not thread-safe; those of one thread may share a session at the source."""

    takes_events = False

    def __init__(self, sync: ResolvedSync, source: SourceRows) -> None:
        """Args:
        sync: with its shape.
        source: answers what the stream does not say.
        """
        self.sync = sync
        self.reads = frozenset({sync.source})
        self._source = source
        self._events = EventShaper(sync, source)
        self._versions: dict[int, tuple[TableSchema, _Version]] = {}
        self._soft = sync.shape.mode is SyncMode.SOFT_DELETE

    def target_schema(self, schema: TableSchema) -> TableSchema:
        """Return what the target of a version of the table looks like.

        Raises:
            RosettaError: see `plan_columns`.
        """
        return plan_columns(self.sync.shape, schema, self.sync.mask_key).target

    def shape(self, change: NetChange, commit_time: float) -> Iterator[NetChange]:
        """Yield what a change of the source's table is for the target, in order.

        Args:
            change: of the source's table.
            commit_time: of the last transaction that it may come from, seconds since the epoch.

        Raises:
            RosettaError: CONFIG_INVALID when the shape does not fit the table (any more), and the source kinds.
        """
        if change.kind is NetKind.EVENTS:
            yield self._events.shape(change)
            return
        self._source.heed(change.transactions)
        version = self._version(change.version)
        plan = version.plan
        if change.kind is NetKind.MULTISET:
            yield self._multiset(change, version)
            return
        if change.kind is NetKind.MERGE:
            shaped = [self._merge(change, version)]
        elif plan.filter is None and not self._soft:
            shaped = [self._moved(change, version)]
        else:
            shaped = self._move(change, version)
        for one in shaped:
            yield _soft(one, len(plan.places), commit_time) if self._soft else one

    def _version(self, version: TableVersion) -> _Version:
        known = self._versions.get(version.number)
        if known is None or known[0] is not version.schema:
            plan = plan_columns(self.sync.shape, version.schema, self.sync.mask_key)
            known = version.schema, _Version(plan, TableVersion(plan.target, version.number))
            self._versions[version.number] = known
        return known[1]

    # -- rows with a key ---------------------------------------------------------------------------------------------

    def _merge(self, change: NetChange, version: _Version) -> NetChange:
        plan, rows = version.plan, change.rows
        if plan.filter is not None and rows.num_rows:
            rows = self._filtered(rows, plan)
        shaped = self._projected(rows, plan)
        partial = change.partial and shaped.column("x").null_count < shaped.num_rows
        deletes = change.deletes if plan.filter is None else bool(pc.any(shaped.column("d")).as_py())
        origin = self._origin(plan, rows.filter(pc.invert(rows.column("d"))) if partial else rows.slice(0, 0))
        # With a filter a row that is updated may not be at the target yet.
        updates = change.updates and plan.filter is None and not self._soft
        return replace(
            change,
            version=version.target,
            rows=shaped,
            partial=partial,
            deletes=deletes,
            updates=updates,
            origin=origin,
        )

    def _filtered(self, rows: pa.Table, plan: ColumnPlan) -> pa.Table:
        """Return the rows with those that are not for the target as deletes."""
        gone: list[bool] = rows.column("d").to_pylist()
        marks: list[str | None] = rows.column("x").to_pylist()
        unknown = [
            place
            for place, mark in enumerate(marks)
            if mark is not None
            and not gone[place]
            # A row that is kept after it left the filter has missed updates: its other values are not the present ones.
            and (self._soft or any(mark[one] == "1" for one in plan.deciding))
        ]
        if unknown:
            rows = self._completed(rows, plan, unknown)
            gone, marks = rows.column("d").to_pylist(), rows.column("x").to_pylist()
        present = pa.array([place for place, one in enumerate(gone) if not one], pa.int64())
        condition = plan.filter or ""
        values = [rows.column(f"c{place}").take(present) for place in plan.deciding]
        passing = self._source.passing(plan.source, condition, plan.deciding, values) if len(present) else []
        places = present.to_pylist()
        keep = {places[one] for one in passing}
        marks = [mark if place in keep else None for place, mark in enumerate(marks)]
        deleted = pa.array([place not in keep for place in range(rows.num_rows)], pa.bool_())
        rows = rows.set_column(rows.schema.get_field_index("d"), "d", deleted)
        return rows.set_column(rows.schema.get_field_index("x"), "x", pa.array(marks, pa.string()))

    def _completed(self, rows: pa.Table, plan: ColumnPlan, places: Sequence[int]) -> pa.Table:
        """Return the rows with some of them as they are at the source now; one that is gone becomes a delete."""
        keys = _keys(rows, plan, places)
        found = dict(zip(places, self._source.fetch(plan.source, keys), strict=True))
        width = len(plan.source.stream_columns)
        columns: dict[str, pa.Array] = {
            "d": pa.array(
                [
                    found[place] is None if place in found else one
                    for place, one in enumerate(rows.column("d").to_pylist())
                ],
                pa.bool_(),
            ),
            "x": pa.array(
                [None if place in found else one for place, one in enumerate(rows.column("x").to_pylist())], pa.string()
            ),
        }
        for number in range(width):
            texts = rows.column(f"c{number}").to_pylist()
            for place, row in found.items():
                if row is not None:
                    texts[place] = row[number]
            columns[f"c{number}"] = pa.array(texts, pa.string())
        return pa.table(columns)

    def _projected(self, rows: pa.Table, plan: ColumnPlan) -> pa.Table:
        """Return the rows with the target's columns, masked."""
        columns = {"d": rows.column("d"), "x": shaped_marks(rows.column("x"), plan)}
        deleted = rows.column("d")
        for number, (place, mask) in enumerate(zip(plan.places, plan.maskers, strict=True)):
            column = rows.column(f"c{place}")
            if mask is not None:
                keyed = place in plan.key_places
                texts = zip(column.to_pylist(), deleted.to_pylist(), strict=True)
                # Of a delete only the key has values.
                column = pa.array([None if gone and not keyed else mask(text) for text, gone in texts], pa.string())
            columns[f"c{number}"] = column
        return pa.table(columns)

    def _origin(self, plan: ColumnPlan, partial: pa.Table) -> Origin:
        """Return where the change comes from, able to read the rows of `partial` that the target turns out to lack."""
        width = len(plan.places)

        def fetch(keys: Sequence[tuple[str, ...]]) -> Mapping[tuple[str, ...], Row]:
            own = _keys(partial, plan, range(partial.num_rows))
            at_target = {tuple(self._key_at_target(key, plan)): key for key in own}
            wanted = [(key, at_target[key]) for key in keys if key in at_target]
            found = self._source.fetch(plan.source, [key for _, key in wanted])
            present = [(key, row) for (key, _), row in zip(wanted, found, strict=True) if row is not None]
            table = _as_merge([row for _, row in present], plan)
            if plan.filter is not None and present:
                table = self._filtered(table, plan)
            shaped = self._projected(table, plan)
            gone = shaped.column("d").to_pylist()
            rows = list(zip(*(shaped.column(f"c{place}").to_pylist() for place in range(width)), strict=True))
            return {key: rows[place] for place, (key, _) in enumerate(present) if not gone[place]}

        return Origin(plan.source, fetch)

    def origin_of(self, schema: TableSchema, rows: pa.Table) -> Origin | None:
        """Return where rows that were shaped before come from; None where masked keys do not tell.

        Args:
            schema: the table's at the source.
            rows: shaped, in the layout of a MERGE.
        """
        plan = plan_columns(self.sync.shape, schema, self.sync.mask_key)
        places = [plan.places.index(place) for place in plan.key_places]
        if any(plan.maskers[place] is not None for place in places):
            return None
        keys = {f"c{at}": rows.column(f"c{place}") for at, place in zip(plan.key_places, places, strict=True)}
        return self._origin(plan, pa.table(keys))

    def _key_at_target(self, key: Sequence[str], plan: ColumnPlan) -> Iterator[str]:
        for text, place in zip(key, plan.key_places, strict=True):
            mask = plan.maskers[plan.places.index(place)]
            yield text if mask is None else mask(text) or ""

    # -- keys that change --------------------------------------------------------------------------------------------

    def _moved(self, change: NetChange, version: _Version) -> NetChange:
        """Return a key change with the target's columns."""
        plan, rows = version.plan, change.rows
        columns = {"x": shaped_marks(rows.column("x"), plan, always=True)}
        for number, (place, mask) in enumerate(zip(plan.places, plan.maskers, strict=True)):
            columns[f"c{number}"] = _masked(rows.column(f"c{place}"), mask)
        for number, place in enumerate(plan.key_places):
            columns[f"k{number}"] = _masked(rows.column(f"k{number}"), plan.maskers[plan.places.index(place)])
        return replace(
            change, version=version.target, rows=pa.table(columns), origin=self._origin(plan, rows.slice(0, 0))
        )

    def _move(self, change: NetChange, version: _Version) -> list[NetChange]:
        """Return a key change as a delete of the old key, and the row under the new one as the source has it now."""
        plan, rows = version.plan, change.rows
        width = len(plan.source.stream_columns)
        old: list[Row] = []
        for row in zip(*(rows.column(f"k{place}").to_pylist() for place in range(len(plan.key_places))), strict=True):
            values = dict(zip(plan.key_places, row, strict=True))
            old.append(tuple(values.get(place) for place in range(width)))
        gone = replace(change, kind=NetKind.MERGE, rows=_as_merge(old, plan, gone=True), partial=False, deletes=True)
        marked = rows.select(["x", *(f"c{place}" for place in range(width))])
        new = marked.add_column(0, "d", pa.array([False] * rows.num_rows, pa.bool_()))
        entered = self._completed(new, plan, range(rows.num_rows))
        come = replace(gone, truncate=False, rows=entered, events=0)
        return [self._merge(gone, version), self._merge(come, version)]

    # -- rows without a key ------------------------------------------------------------------------------------------

    def _multiset(self, change: NetChange, version: _Version) -> NetChange:
        """Return the counted rows that are for the target; rows that look the same there are counted together."""
        plan, rows = version.plan, change.rows
        if plan.filter is not None and rows.num_rows:
            values = [rows.column(f"c{place}") for place in plan.deciding]
            rows = rows.take(
                pa.array(self._source.passing(plan.source, plan.filter, plan.deciding, values), pa.int64())
            )
        names = [f"c{number}" for number in range(len(plan.places))]
        columns = [
            _masked(rows.column(f"c{place}"), mask) for place, mask in zip(plan.places, plan.maskers, strict=True)
        ]
        shaped = pa.Table.from_arrays([rows.column("n"), *columns], names=["n", *names])
        counted = shaped.group_by(names, use_threads=False).aggregate([("n", "sum")])
        counted = counted.rename_columns([*names, "n"]).select(["n", *names])
        counted = counted.filter(pc.not_equal(counted.column("n"), 0))
        origin = self._origin(plan, rows.slice(0, 0))
        return replace(change, version=version.target, rows=counted, origin=origin)


def _soft(change: NetChange, width: int, commit_time: float) -> NetChange:
    """Return a change with its deletes as marks on rows that stay.

    Args:
        change: shaped, without the columns of the marks.
        width: how many columns it has.
        commit_time: when the deletes are said to have happened, seconds since the epoch.
    """
    rows, at = change.rows, datetime.fromtimestamp(commit_time, UTC).isoformat()
    gone: list[bool] = rows.column("d").to_pylist()
    names = change.version.schema.stream_names
    kept = "".join("0" if name in change.version.schema.key else "1" for name in names[:width]) + "00"
    marks = [
        kept if deleted else mark and mark + "00"
        for deleted, mark in zip(gone, rows.column("x").to_pylist(), strict=True)
    ]
    rows = rows.set_column(0, "d", pa.array([False] * len(gone), pa.bool_()))
    rows = rows.set_column(1, "x", pa.array(marks, pa.string()))
    rows = rows.append_column(f"c{width}", pa.array(["true" if one else "false" for one in gone], pa.string()))
    rows = rows.append_column(f"c{width + 1}", pa.array([at if one else None for one in gone], pa.string()))
    return replace(
        change,
        rows=rows,
        partial=any(mark is not None for mark in marks),
        deletes=False,
        emptied_at=at if change.truncate else None,
        marks_deletes=True,
    )


def _keys(rows: pa.Table, plan: ColumnPlan, places: Sequence[int] | range) -> list[tuple[str, ...]]:
    taken = rows.take(pa.array(list(places), pa.int64()))
    return list(zip(*(taken.column(f"c{place}").to_pylist() for place in plan.key_places), strict=True))


def _as_merge(rows: Sequence[Row], plan: ColumnPlan, *, gone: bool = False) -> pa.Table:
    """Return rows of the source's columns in the layout of a MERGE."""
    columns: dict[str, pa.Array] = {
        "d": pa.array([gone] * len(rows), pa.bool_()),
        "x": pa.array([None] * len(rows), pa.string()),
    }
    for place in range(len(plan.source.stream_columns)):
        columns[f"c{place}"] = pa.array([row[place] for row in rows], pa.string())
    return pa.table(columns)


def _masked(column: pa.ChunkedArray, mask: object) -> pa.Array | pa.ChunkedArray:
    if mask is None:
        return column
    assert callable(mask), "a mask is a function"
    return pa.array([mask(text) for text in column.to_pylist()], pa.string())
