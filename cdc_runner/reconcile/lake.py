"""Compare source tables with their targets at Snowflake, which stand at the position of the source's snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cdc_runner.capture.inspect import read_tables
from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.snowflake.held import HeldTargets, MergedBeyond
from cdc_runner.destinations.snowflake.rows import Shape
from cdc_runner.errors import RosettaError
from cdc_runner.reconcile.compare import ServerReading, compare_rows, judged
from cdc_runner.reconcile.lake_plan import (
    SOURCE_HASH,
    SUM_COLUMNS,
    FramedSide,
    key_columns,
    lake_rows,
    lake_sums,
    plan_lake_table,
)
from cdc_runner.reconcile.plan import Rules
from cdc_runner.reconcile.result import TableOutcome, TableResult
from cdc_runner.reconcile.session import SnapshotSessions, Unreadable
from cdc_runner.reconcile.shape import sync_of
from cdc_runner.schema import TableSchema
from cdc_runner.spec import DestinationSpec, ResolvedSync, TableShape

Known = Callable[[TableState, TableSchema | None], TableResult | Rules]
"""What is known of a table without reading it: an outcome, or how its target is meant to differ."""


def compare_lake(
    source: SnapshotSessions,
    held: HeldTargets,
    destination: DestinationSpec,
    selected: Callable[[TableState], bool],
    known: Known,
) -> Iterator[TableResult]:
    """Yield what each selected table has differently, one after the other; its merges go on as soon as it is done."""
    states = held.states()
    wanted = [one for one in states if selected(one)]
    if len(wanted) < len(states):
        held.release_others([one.sync.target for one in wanted])
    present = {one.table: one for one in read_tables(source.keeper, tables={one.sync.source for one in wanted})}
    for one in wanted:
        rules = known(one, present.get(one.sync.source))
        if isinstance(rules, TableResult):
            yield rules
        else:
            result = TableResult(
                destination.id, destination.name, one.sync.source, one.sync.target, TableOutcome.FAILED
            )
            yield _Comparison(source, held, destination, one, rules).compare(present.get(one.sync.source), result)
        # Who waits for the merges of this table need not wait for the others; the end of the hold lets go of all.
        with suppress(RosettaError):
            held.release(one.sync.target)


class _Comparison:
    """Compares one table."""

    def __init__(
        self, source: SnapshotSessions, held: HeldTargets, destination: DestinationSpec, known: TableState, rules: Rules
    ) -> None:
        self._source = source
        self._held = held
        self._known = known
        self._rules = rules
        configured = sync_of(destination, known)
        shape = TableShape() if configured is None else configured.shape
        self._sync = replace(known.sync, shape=shape)

    def compare(self, present: TableSchema | None, result: TableResult) -> TableResult:
        """Return what the table has differently; failures become outcomes."""
        return judged(result, lambda: self._compare(present, result))

    def _compare(self, present: TableSchema | None, result: TableResult) -> TableResult:
        if present is None:
            return replace(result, outcome=TableOutcome.SKIPPED, reason="the source has dropped the table")
        held, sync = self._held, self._sync
        columns = held.columns(sync.target)
        if not columns:
            return replace(result, outcome=TableOutcome.DIFFERENT, reason="the target table is missing")
        shape = held.shape(self._known, sync)
        plan = plan_lake_table(present, self._known, shape, columns, self._rules)
        merged = self._settled(shape)
        with (
            self._source.reading(plan.source.table, partitioned=present.partitioned) as here,
            ThreadPoolExecutor(self._source.settings.workers, "verify-source") as one,
            ThreadPoolExecutor(1, "verify-target") as two,
        ):
            limit = float(self._source.settings.statement_seconds)
            there = _LakeReading(plan.target, held, sync, merged, limit, two, here.rows_estimate)
            source = ServerReading(plan.source, here, SOURCE_HASH, one)
            return compare_rows(source, there, replace(result, key=plan.key, left_out=plan.left_out))

    def _settled(self, shape: Shape) -> str:
        try:
            return self._held.settle(self._sync, shape)
        except MergedBeyond as error:
            raise Unreadable(f"destination: {error}") from None


class _LakeReading:
    """A target at Snowflake, read in one statement."""

    def __init__(
        self,
        side: FramedSide,
        held: HeldTargets,
        sync: ResolvedSync,
        merged: str,
        limit_seconds: float,
        threads: ThreadPoolExecutor,
        rows_estimate: float,
    ) -> None:
        self._side = side
        self._held = held
        self._sync = sync
        self._merged = merged
        self._limit_seconds = limit_seconds
        self._threads = threads
        self.rows_estimate = rows_estimate

    def start(self, buckets: int, wanted: Sequence[int] | None) -> list[Future[list[Any]]]:
        """See `Reading.start`."""
        relation = self._held.target(self._sync)
        if wanted is None:
            query = lake_sums(self._side, buckets, relation)
            return [self._threads.submit(lambda: [tuple(map(_number, row)) for row in self._read(query, SUM_COLUMNS)])]
        query = lake_rows(self._side, buckets, relation, wanted)
        names = key_columns(self._side)
        return [self._threads.submit(lambda: [(row[:-1], _number(row[-1])) for row in self._read(query, names)])]

    def _read(self, query: str, columns: Sequence[str]) -> list[list[str | None]]:
        try:
            return self._held.read(self._sync, self._merged, query, columns, limit_seconds=self._limit_seconds)
        except MergedBeyond as error:
            raise Unreadable(f"destination: {error}") from None


def _number(text: str | None) -> int:
    return int(text or 0)
