"""A table sync with custom SQL at work: changes of its tables to rows of the target, computed for the keys at hand.

The rows are read from the source as they are now, under one snapshot that shows at least the transactions that brought
the change, and the statement runs over just these. So a row of the target is the statement's result at some time not
before the last change that was applied. Whatever changes a row afterwards is still to come in the stream, and its key
leads to that row again:

- of the base table by its key, or, where rows are grouped, by the group that its row went into (`Membership`, kept with
  the target in the same transaction) and the one that it is in now;
- of a joined table by its key, which is all that a row of the base is joined by (`custom_sql.plan`).

In the end the target is the result at the end. Before that it may be ahead of the stream for keys that were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import structlog

from cdc_runner.capture.base import TableVersion
from cdc_runner.custom_sql.plan import CustomPlan
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.sandbox.session import SandboxFailed, SandboxSession, SessionLimits
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.custom_source import CustomSource, Masks, RowKey, SnapshotRows, key_of_text, key_text
from cdc_runner.shaping.custom_statement import OpenLookups, Statement
from cdc_runner.shaping.net import LoadAgain, Lookups, Membership, NetChange, NetKind, Origin
from cdc_runner.spec import PipelineSettings, ResolvedSync

log = structlog.get_logger()

SLICE_ROWS = 20_000
"""So many rows of the base are computed at a time, unless one group has more."""

Write = Callable[[pa.Table], None]


class CustomShaper:
    """Shapes the changes of one table sync by its SQL. Not thread-safe; keeps a process and a session at the source."""

    takes_events = False

    def __init__(
        self,
        sync: ResolvedSync,
        source: CustomSource,
        present: Mapping[TableId, TableSchema],
        masks: Masks,
        settings: PipelineSettings,
        lookups: OpenLookups,
        written: Collection[TableId],
    ) -> None:
        """Args:
        sync: with its SQL.
        source: reads rows.
        present: the tables of the source that are captured.
        masks: of the columns that the statement must not see.
        settings: limits.
        lookups: opens a session at the destination, to look at the tables in which rows are looked up.
        written: the targets of the pipeline at the destination.

        Raises:
            RosettaError: CONFIG_INVALID, the statement cannot be kept right, or does not fit the tables;
                DESTINATION_PERMISSION, it may not read what it is to look up.
        """
        self.sync = sync
        self._source = source
        self._masks = masks
        self._most = settings.custom_sql_max_rows
        self._sandbox = SandboxSession(SessionLimits(settings.custom_sql_seconds, settings.custom_sql_memory_megabytes))
        try:
            self._statement = Statement(sync, present, masks, self._sandbox)
            self._plan = self._statement.bind_first(present, lookups, written)
        except RosettaError as error:
            self.close()
            raise self._of_this_table(error) from None
        self._captured = present[sync.source]
        self.reads = self._statement.reads
        """The tables whose changes reach the target."""
        self.looks_up = self._statement.looks_up
        """Tables of the destination, whose changes alone do not."""

    def close(self) -> None:
        """End the process and the session."""
        self._sandbox.close()
        self._source.close()

    def begin_at(self, captured: TableSchema) -> None:
        """Take the version of the source's table that the target was last made for."""
        self._captured = captured

    def target_schema(self, schema: TableSchema) -> TableSchema:
        """Return what the target looks like for a version of the source's table."""
        target = self._plan.target
        return replace(
            schema,
            columns=target.columns,
            key=target.key,
            primary_key=target.primary_key,
            replica_identity=target.replica_identity,
            partitioned=False,
        )

    def shape(self, change: NetChange, commit_time: float) -> Iterator[NetChange]:
        """Yield what a change of one of the tables is for the target: a change that is computed when it is applied."""
        table = change.version.schema.table
        if change.kind is NetKind.MULTISET:
            raise self._of_this_table(RosettaError(ErrorKind.CONFIG_INVALID, f"table {table} has no key any more"))
        own = table == self.sync.source
        if own:
            self._captured = change.version.schema
        yield replace(
            self._result(_empty(self._plan), truncate=change.truncate and own),
            events=change.events if own else 0,
            compute=lambda members, lookups: self._compute(change, members, lookups),
        )

    def origin_of(self, schema: TableSchema, rows: pa.Table) -> Origin | None:
        """Return None: rows are not read by the target's key."""
        return None

    # -- changes -----------------------------------------------------------------------------------------------------

    def _compute(self, change: NetChange, members: Membership, lookups: Lookups) -> NetChange:
        own = change.version.schema.table == self.sync.source
        if change.version.key_guessed:
            raise LoadAgain(f"what identifies rows of table {change.version.schema.table} changed")
        if change.truncate and not own:
            raise LoadAgain(f"table {change.version.schema.table}, which its SQL joins, was truncated")
        if change.truncate:
            members.clear()
        try:
            result = self._computed_once(change, members, lookups, own=own)
        except RosettaError as error:
            if error.kind is ErrorKind.DESTINATION_PERMISSION:
                raise self._of_this_table(error) from error
            if error.kind is not ErrorKind.CONFIG_INVALID:
                raise
            # A table may have changed between the look at its columns and the read: the next look tells.
            try:
                result = self._computed_once(change, members, lookups, own=own)
            except RosettaError as again:
                raise self._of_this_table(again) from error
        return replace(self._result(result, truncate=change.truncate and own), events=change.events if own else 0)

    def _computed_once(self, change: NetChange, members: Membership, lookups: Lookups, *, own: bool) -> pa.Table:
        with self._source.snapshot(lookups, change.transactions) as rows:
            present = rows.schemas(self.reads)
            looked_up = lookups.schemas(self.looks_up) if self.looks_up else {}
            if not self._plan.same_tables(present, looked_up):
                self._plan = self._statement.bind(present, looked_up)
            return self._rows(rows, change, members, own=own)

    def _rows(self, rows: SnapshotRows, change: NetChange, members: Membership, *, own: bool) -> pa.Table:
        table, plan = change.version.schema.table, self._plan
        keys = _changed_keys(change)
        if own:
            changed = rows.canonical(plan.base.schema, keys)
        else:
            found = rows.touched(plan, plan.place_of(table), keys, self._most)
            if found is None:
                raise LoadAgain(f"a change of table {table}, which its SQL joins, touches more than {self._most} rows")
            changed = found
        if plan.query.group is None:
            return pa.concat_tables([_empty(plan), *self._by_row(rows, plan, changed)])
        return self._by_group(rows, plan, changed, members)

    def _by_row(self, rows: SnapshotRows, plan: CustomPlan, changed: Sequence[RowKey]) -> Iterator[pa.Table]:
        for start in range(0, len(changed), SLICE_ROWS):
            part = changed[start : start + SLICE_ROWS]
            present, result = self._keyed(rows, plan, part)
            gone = [key for key in part if key not in present]
            yield _net(plan, result, gone)

    def _by_group(
        self, rows: SnapshotRows, plan: CustomPlan, changed: Sequence[RowKey], members: Membership
    ) -> pa.Table:
        """Return the groups that changed rows were in, or are in now, computed from all of their rows."""
        known = {key_text(key) for key in changed}
        placed = self._groups(rows, plan, changed)
        affected = set(members.groups_of(sorted(known)).values()) | set(placed.values())
        pending = affected
        while pending:
            stored = members.rows_of(sorted(pending), self._most - len(known))
            if stored is None:
                self._refuse_large(members, pending)
                raise LoadAgain(f"a batch touches groups of more than {self._most} rows")
            fresh = [row for row in stored if row not in known]
            known.update(fresh)
            # A row that is elsewhere by now takes its present group along.
            found = self._groups(rows, plan, [_row_key(row) for row in fresh])
            placed |= found
            pending = set(found.values()) - affected
            affected |= pending
        by_group: dict[str, list[RowKey]] = {}
        for row, group in sorted(placed.items()):
            by_group.setdefault(group, []).append(_row_key(row))
        parts = [_empty(plan)]
        computed: set[str] = set()
        for part in _slices(by_group.values()):
            result = self._grouped(rows, plan, part)
            computed |= {key_text(key) for key in _key_rows(plan, result)}
            parts.append(_net(plan, result, []))
        # Last, so that a second try after a failure finds what was there.
        members.place(known, placed)
        gone = [key_of_text(group) for group in sorted(affected - computed)]
        return pa.concat_tables([*parts, _net(plan, None, gone)])

    def _refuse_large(self, members: Membership, groups: Iterable[str]) -> None:
        if members.largest(sorted(groups)) > self._most:
            raise RosettaError(
                ErrorKind.CONFIG_INVALID,
                f"custom SQL: a group has more than {self._most} rows, which are read anew with each of its changes; "
                "raise custom_sql_max_rows, or group by more columns",
            )

    # -- the statement -----------------------------------------------------------------------------------------------

    def _keyed(
        self, rows: SnapshotRows, plan: CustomPlan, keys: Sequence[RowKey]
    ) -> tuple[dict[RowKey, int], pa.Table]:
        """Run the statement with each row's key first; return the places of keys, and the rows without them."""
        width = len(plan.base.schema.key)
        result = self._run(rows, plan, plan.query.keyed_statement(width), keys)
        own = [result.column(place).to_pylist() for place in range(width)]
        places = {key: place for place, key in enumerate(zip(*own, strict=True))}
        if len(places) < result.num_rows:
            raise RosettaError(ErrorKind.CONFIG_INVALID, "custom SQL: it gives several rows for one row of the table")
        return places, result.select(list(range(width, result.num_columns)))

    def _groups(self, rows: SnapshotRows, plan: CustomPlan, keys: Sequence[RowKey]) -> dict[str, str]:
        """Return the present group of each row that the statement takes, as texts."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), SLICE_ROWS):
            places, groups = self._keyed(rows, plan, keys[start : start + SLICE_ROWS])
            texts = [key_text(group) for group in zip(*(one.to_pylist() for one in groups.columns), strict=True)]
            found |= {key_text(key): texts[place] for key, place in places.items()}
        return found

    def _grouped(self, rows: SnapshotRows, plan: CustomPlan, keys: Sequence[RowKey]) -> pa.Table:
        return self._run(rows, plan, plan.query.statement, keys)

    def _run(
        self, rows: SnapshotRows, plan: CustomPlan, statement: dict[str, object], keys: Sequence[RowKey]
    ) -> pa.Table:
        tables = rows.read(plan, keys, self._masks)
        given = [plan.given(place, one) for place, one in enumerate(tables)]
        try:
            result = self._sandbox.run([statement], given)[0].rows
        except SandboxFailed as error:
            raise RosettaError(ErrorKind.CONFIG_INVALID, f"custom SQL: {error}") from None
        assert result is not None, "a statement that is run has rows"
        return result

    # -- load --------------------------------------------------------------------------------------------------------

    def load(self, source: CustomSource, members: Membership, lookups: Lookups, write: Write) -> None:
        """Compute the whole target.

        Args:
            source: of the load's snapshot.
            members: of the target, empty; written to where rows are grouped.
            lookups: tables of the destination.
            write: takes rows, as texts in the order of the target's columns.

        Raises:
            RosettaError: CONFIG_INVALID when the statement fails, and the source kinds.
        """
        try:
            with source.snapshot(lookups) as rows:
                self._load(rows, members, write)
        except RosettaError as error:
            raise self._of_this_table(error) from error

    def _load(self, rows: SnapshotRows, members: Membership, write: Write) -> None:
        plan = self._plan
        for keys in rows.all_keys(plan.base.schema, SLICE_ROWS):
            if plan.query.group is None:
                write(self._keyed(rows, plan, keys)[1])
            else:
                members.add(self._groups(rows, plan, keys))
        if plan.query.group is None:
            return
        pending: list[RowKey] = []
        last: str | None = None
        for part in members.all_rows(SLICE_ROWS):
            for row, group in part:
                if group != last and len(pending) >= SLICE_ROWS:
                    write(self._grouped(rows, plan, pending))
                    pending = []
                if len(pending) >= self._most:
                    self._refuse_large(members, [group])
                last = group
                pending.append(_row_key(row))
        if pending:
            write(self._grouped(rows, plan, pending))

    # -- results -----------------------------------------------------------------------------------------------------

    def _result(self, rows: pa.Table, *, truncate: bool) -> NetChange:
        return NetChange(
            NetKind.MERGE,
            TableVersion(self.target_schema(self._captured), 0),
            truncate,
            rows,
            partial=False,
            deletes=True,
            events=0,
            origin=Origin(self._captured, lambda _: {}),
        )

    def _of_this_table(self, error: RosettaError) -> RosettaError:
        prefix = f"target {self.sync.target}: "
        if error.message.startswith(prefix):
            return error
        return RosettaError(error.kind, prefix + error.message, error.detail)


def _changed_keys(change: NetChange) -> list[RowKey]:
    """Return the keys of changed rows, old and new."""
    schema, rows = change.version.schema, change.rows
    columns = [f"c{schema.stream_names.index(name)}" for name in schema.key]
    keys = list(zip(*(rows.column(name).to_pylist() for name in columns), strict=True))
    if change.kind is NetKind.MOVE:
        old = [f"k{place}" for place in range(len(schema.key))]
        keys += list(zip(*(rows.column(name).to_pylist() for name in old), strict=True))
    return keys


def _row_key(text: str) -> RowKey:
    return tuple(one or "" for one in key_of_text(text))


def _slices(groups: Iterable[Sequence[RowKey]]) -> Iterator[list[RowKey]]:
    """Yield whole groups, so many that they have about `SLICE_ROWS` rows."""
    part: list[RowKey] = []
    for group in groups:
        if part and len(part) + len(group) > SLICE_ROWS:
            yield part
            part = []
        part = [*part, *group]
    if part:
        yield part


def _key_rows(plan: CustomPlan, result: pa.Table) -> Iterator[tuple[str | None, ...]]:
    names = plan.target.column_names
    yield from zip(*(result.column(names.index(name)).to_pylist() for name in plan.key), strict=True)


def _net(plan: CustomPlan, result: pa.Table | None, gone: Sequence[Sequence[str | None]]) -> pa.Table:
    """Return rows of a result, and keys that are gone, in the layout of a MERGE."""
    count = 0 if result is None else result.num_rows
    columns: dict[str, pa.Array] = {
        "d": pa.array([False] * count + [True] * len(gone), pa.bool_()),
        "x": pa.nulls(count + len(gone), pa.string()),
    }
    for place, name in enumerate(plan.target.column_names):
        values = [] if result is None else result.column(place).to_pylist()
        keys = [key[plan.key.index(name)] for key in gone] if name in plan.key else [None] * len(gone)
        columns[f"c{place}"] = pa.array([*values, *keys], pa.string())
    return pa.table(columns)


def _empty(plan: CustomPlan) -> pa.Table:
    return _net(plan, None, [])
