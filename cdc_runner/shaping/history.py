"""A table sync in history mode: each change of the table becomes a row of the target, and nothing is taken away.

Events are told apart by position and order, so what comes again after a restart is not written again: the position is
stored with the rows. Values that an update does not carry (large ones that did not change) are NULL, and their columns
are named in `UNCHANGED`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa

from cdc_runner.capture.base import KIND
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import format_lsn
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.columns import ColumnPlan, plan_columns
from cdc_runner.shaping.net import NetChange, NetKind, Origin, transactions_of
from cdc_runner.shaping.source_rows import SourceRows
from cdc_runner.spec import MaskKind, ResolvedSync

Texts = list[str | None]


class HistoryShaper:
    """Makes rows of a history of the events of one table sync. Not thread-safe."""

    takes_events = True

    def __init__(self, sync: ResolvedSync, source: SourceRows) -> None:
        """Args:
        sync: with its shape.
        source: evaluates the filter.
        """
        self.sync = sync
        self.reads: frozenset[TableId] = frozenset({sync.source})
        self._source = source

    def target_schema(self, schema: TableSchema) -> TableSchema:
        """Return what the target of a version of the table looks like.

        Raises:
            RosettaError: see `plan_columns`.
        """
        return plan_columns(self.sync.shape, schema, self.sync.mask_key).target

    def origin_of(self, schema: TableSchema, rows: pa.Table) -> Origin | None:
        """Return where rows that were shaped before come from; they are complete, and never read again."""
        return Origin(schema, lambda _: {})

    def shape(self, change: NetChange, commit_time: float) -> Iterator[NetChange]:
        """Yield the rows that events are for the history.

        Raises:
            RosettaError: CONFIG_INVALID when the shape does not fit the table (any more), and the source kinds.
        """
        if change.kind is not NetKind.EVENTS:
            raise RosettaError(ErrorKind.INTERNAL, "a history is made of events")
        plan = plan_columns(self.sync.shape, change.version.schema, self.sync.mask_key)
        self._source.heed(transactions_of(change.rows))
        events = _events(change.rows, plan)
        if plan.filter is not None and events.operations:
            events = self._filtered(events, plan)
        yield replace(
            change,
            kind=NetKind.MULTISET,
            version=replace(change.version, schema=plan.target),
            rows=events.table(plan),
            partial=False,
            deletes=False,
            origin=Origin(plan.source, lambda _: {}),
        )

    def _filtered(self, events: _Events, plan: ColumnPlan) -> _Events:
        """Return the events that are for the target.

        A delete is, whatever the row was, and an update whose new values do not meet the filter is one. Without a key
        rows are told by all their values, so a row that does not meet it never was at the target.
        """
        self._complete(events, plan)
        keyed = bool(plan.source.key)
        asked = [
            place
            for place, operation in enumerate(events.operations)
            if operation in ("c", "u") or (operation == "d" and not keyed)
        ]
        values = [pa.array([events.values[column][place] for place in asked], pa.string()) for column in plan.deciding]
        passing = self._source.passing(plan.source, plan.filter or "", plan.deciding, values) if asked else []
        meets = {asked[one] for one in passing}
        kept: list[int] = []
        for place, operation in enumerate(events.operations):
            if operation == "t" or (operation == "d" and keyed) or place in meets:
                kept.append(place)
            elif operation == "u" and keyed:
                events.delete(place, plan)
                kept.append(place)
        return events.take(kept)

    def _complete(self, events: _Events, plan: ColumnPlan) -> None:
        """Read what the stream does not say of the columns that decide: present values of the row."""
        unknown = [
            place
            for place, mark in enumerate(events.marks)
            if mark is not None and any(mark[column] == "1" for column in plan.deciding)
        ]
        if not unknown or not plan.source.key:
            return
        keys = [tuple(events.values[column][place] or "" for column in plan.key_places) for place in unknown]
        for place, row in zip(unknown, self._source.fetch(plan.source, keys), strict=True):
            if row is None:
                events.delete(place, plan)
                continue
            for column in plan.deciding:
                events.values[column][place] = row[column]


class _Events:
    """Events in columns: operation, stamps, marks of values that are not told, and the values of the source's table."""

    def __init__(
        self, operations: list[str], stamps: list[Sequence[object]], marks: Texts, values: list[Texts]
    ) -> None:
        self.operations = operations
        self.stamps = stamps
        self.marks = marks
        self.values = values

    def delete(self, place: int, plan: ColumnPlan) -> None:
        """Make an event a delete, of which only the key is told."""
        self.operations[place], self.marks[place] = "d", None
        for column, values in enumerate(self.values):
            if column not in plan.key_places:
                values[place] = None

    def take(self, places: Sequence[int]) -> _Events:
        """Return some of the events."""
        return _Events(
            [self.operations[one] for one in places],
            [self.stamps[one] for one in places],
            [self.marks[one] for one in places],
            [[values[one] for one in places] for values in self.values],
        )

    def table(self, plan: ColumnPlan) -> pa.Table:
        """Return the rows of the target, masked, in the layout of a MULTISET."""
        columns: dict[str, pa.Array] = {"n": pa.array([1] * len(self.operations), pa.int64())}
        whole = not plan.source.key
        for number, (place, mask, kind) in enumerate(zip(plan.places, plan.maskers, plan.masks, strict=True)):
            texts = self.values[place]
            if mask is not None:
                told = plan.source.key and place in plan.key_places
                constant = kind is not None and kind.kind is MaskKind.CONSTANT
                texts = [
                    # Of a delete only the key is told, of a truncate nothing, of an update not every large value.
                    None
                    if operation == "t"
                    or (operation == "d" and not told and not whole)
                    or (marks is not None and marks[place] == "1" and not constant)
                    else mask(text)
                    for text, operation, marks in zip(texts, self.operations, self.marks, strict=True)
                ]
            columns[f"c{number}"] = pa.array(texts, pa.string())
        width = len(plan.places)
        lsns = [format_lsn(int(str(lsn))) for lsn, _, _ in self.stamps]
        times = [datetime.fromtimestamp(float(str(at)), UTC).isoformat() for _, _, at in self.stamps]
        added = (
            list(self.operations),
            lsns,
            [str(order) for _, order, _ in self.stamps],
            times,
            [_unchanged(marks, plan) for marks in self.marks],
        )
        for number, values in enumerate(added):
            columns[f"c{width + number}"] = pa.array(values, pa.string())
        return pa.table(columns)


def _events(rows: pa.Table, plan: ColumnPlan) -> _Events:
    """Return events with their operations.

    A changed key is a delete and an insert, each with an order of its own: that is all that Debezium tells of it.
    """
    width = len(plan.source.stream_columns)
    ops, kinds = rows.column("op").to_pylist(), rows.column(KIND).to_pylist()
    marks = rows.column("x").to_pylist()
    stamps = list(zip(*(rows.column(name).to_pylist() for name in ("lsn", "seq", "at")), strict=True))
    values = [rows.column(f"c{number}").to_pylist() for number in range(width)]
    old_keys = [rows.column(f"k{number}").to_pylist() for number in range(len(plan.key_places))] if "m" in ops else []
    found = _Events([], [], [], [[] for _ in range(width)])
    keyed = bool(plan.source.key)
    for place, op in enumerate(ops):
        lsn, order, at = stamps[place]
        row = [column[place] for column in values]
        if op == "m":
            key: dict[int, str | None] = {
                column: old[place] for column, old in zip(plan.key_places, old_keys, strict=True)
            }
            _append(found, "d", (lsn, order - 1, at), None, [key.get(column) for column in range(width)])
        moved = op == "m" or (keyed and place > 0 and kinds[place] == "u" and _is_second(ops, stamps, place))
        operation = op if op in ("d", "t") else "c" if moved or kinds[place] == "c" else "u"
        _append(found, operation, (lsn, order, at), marks[place], row)
    return found


def _is_second(ops: Sequence[str], stamps: Sequence[tuple[int, int, float]], place: int) -> bool:
    """Tell whether a row is the new one of an update whose old one went just before."""
    (before, first, _), (lsn, order, _) = stamps[place - 1], stamps[place]
    return ops[place - 1] == "d" and before == lsn and first + 1 == order and order % 2 == 1


def _append(events: _Events, operation: str, stamp: Sequence[object], mark: str | None, row: Texts) -> None:
    events.operations.append(operation)
    events.stamps.append(stamp)
    events.marks.append(mark)
    for column, value in zip(events.values, row, strict=True):
        column.append(value)


def _unchanged(marks: str | None, plan: ColumnPlan) -> str | None:
    """Return the target's names of the columns whose value was not told, as an array's text."""
    if marks is None or "1" not in marks:
        return None
    names = plan.target.stream_names
    told = [
        names[number]
        for number, (place, mask) in enumerate(zip(plan.places, plan.masks, strict=True))
        if marks[place] == "1" and (mask is None or mask.kind.value not in ("null", "constant"))
    ]
    quoted = ('"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in told)
    return "{" + ",".join(quoted) + "}" if told else None
