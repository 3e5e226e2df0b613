"""Compare tables under a pair of snapshots: checksums of buckets first, then the rows of those buckets that differ."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres.target_table import TargetTable
from cdc_runner.destinations.postgres.type_names import SchemaMap
from cdc_runner.errors import RosettaError
from cdc_runner.reconcile import checksum
from cdc_runner.reconcile.checksum import Hash
from cdc_runner.reconcile.plan import NotComparable, Rules, Side, TablePlan, plan_table
from cdc_runner.reconcile.result import Key, KeyDifferences, TableOutcome, TableResult
from cdc_runner.reconcile.session import SnapshotSessions, TableReading, Unreadable
from cdc_runner.schema import TableSchema

LISTED_ROWS = 500_000
"""Rows of differing buckets that are fetched, as key and hash, from each side; bounds memory to about 150 MB."""

Sums = Mapping[int, tuple[int, int]]
"""Bucket to rows and checksum."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One table to compare, with what is known of it on both sides at the fence.

    Attributes:
        result: filled in with names; the outcome is still open.
        present: the source table; None when the source does not have it.
        known: what the destination remembers of it.
        target: the target table; None when it is gone.
        schema_map: source schema to target schema.
        rules: how the target is meant to differ.
    """

    result: TableResult
    present: TableSchema | None
    known: TableState
    target: TargetTable | None
    schema_map: SchemaMap
    rules: Rules = field(default_factory=Rules)


class Comparison:
    """Compares tables of one source with those of one destination, each under its snapshot."""

    def __init__(self, source: SnapshotSessions, target: SnapshotSessions) -> None:
        self._source = source
        self._target = target
        self._hash: Hash = checksum.choose_hash(source.keeper, target.keeper)

    def compare(self, subject: Subject) -> TableResult:
        """Return what one table has differently; failures become outcomes."""
        began = time.monotonic()
        result = subject.result
        try:
            result = self._compare(subject)
        except NotComparable as error:
            result = replace(result, outcome=TableOutcome.NOT_COMPARABLE, reason=str(error))
        except Unreadable as error:
            result = replace(result, outcome=TableOutcome.FAILED, reason=str(error))
        except RosettaError as error:
            result = replace(result, outcome=TableOutcome.FAILED, reason=error.message)
        return replace(result, seconds=time.monotonic() - began)

    def _compare(self, subject: Subject) -> TableResult:
        if subject.present is None:
            return replace(subject.result, outcome=TableOutcome.SKIPPED, reason="the source has dropped the table")
        if subject.target is None or subject.target.kind not in ("r", "p"):
            return replace(subject.result, outcome=TableOutcome.DIFFERENT, reason="the target table is missing")
        plan = plan_table(subject.present, subject.known, subject.target, subject.schema_map, subject.rules)
        with (
            self._source.reading(plan.source.table, partitioned=subject.present.partitioned) as here,
            self._target.reading(plan.target.table, partitioned=subject.target.kind == "p") as there,
            ThreadPoolExecutor(self._source.settings.workers, "verify-source") as one,
            ThreadPoolExecutor(self._target.settings.workers, "verify-target") as two,
        ):
            return self._compare_rows(_Table(plan, here, there, self._hash, (one, two)), subject.result)

    def _compare_rows(self, table: _Table, result: TableResult) -> TableResult:
        plan = table.plan
        result = replace(result, key=plan.key, left_out=plan.left_out)
        source, target = table.sums()
        totals = [sum(count for count, _ in sums.values()) for sums in (source, target)]
        result = replace(result, source_rows=totals[0], target_rows=totals[1])
        differing = sorted(
            bucket for bucket in source.keys() | target.keys() if source.get(bucket) != target.get(bucket)
        )
        if not differing:
            return replace(result, outcome=TableOutcome.EQUAL)
        listed: list[int] = []
        rows = 0
        for bucket in differing:
            rows += max(source.get(bucket, (0, 0))[0], target.get(bucket, (0, 0))[0])
            if listed and rows > LISTED_ROWS:
                break
            listed.append(bucket)
        keys = table.keys(listed)
        keys = replace(keys, complete=len(listed) == len(differing))
        return replace(result, outcome=TableOutcome.DIFFERENT, keys=keys)


class _Table:
    """One table being read on both sides at once, part by part."""

    def __init__(
        self,
        plan: TablePlan,
        here: TableReading,
        there: TableReading,
        hashing: Hash,
        threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor],
    ) -> None:
        self.plan = plan
        self._readings = ((plan.source, here, threads[0]), (plan.target, there, threads[1]))
        self._hash = hashing
        self._buckets = checksum.bucket_count(max(here.rows_estimate, there.rows_estimate))

    def sums(self) -> tuple[Sums, Sums]:
        """Return rows and checksum of each bucket, of both sides."""
        one, two = self._both(None)
        return _added(one), _added(two)

    def keys(self, buckets: Sequence[int]) -> KeyDifferences:
        """Return which rows of some buckets differ."""
        one, two = (_by_key(rows) for rows in self._both(buckets))
        changed, missing, extra = [], [], []
        for key in one.keys() | two.keys():
            here, there = one.get(key, []), two.get(key, [])
            if here == there:
                continue
            if not there:
                missing += [key] * (1 if self.plan.key else len(here))
            elif not here:
                extra += [key] * (1 if self.plan.key else len(there))
            elif self.plan.key:
                changed.append(key)
            else:
                # Rows without a key have their hash as key: the number of such rows differs.
                (missing if len(here) > len(there) else extra).extend([key] * abs(len(here) - len(there)))
        return KeyDifferences(_ordered(changed), _ordered(missing), _ordered(extra))

    def _both(self, buckets: Sequence[int] | None) -> list[list[Any]]:
        work = [
            [
                threads.submit(reading.run, self._statement(side, part.relation, part.pages, buckets), part.size)
                for part in reading.parts
            ]
            for side, reading, threads in self._readings
        ]
        try:
            return [[row for future in futures for row in future.result()] for futures in work]
        except BaseException:
            for futures in work:
                for future in futures:
                    future.cancel()
            raise

    def _statement(self, side: Side, relation: str, pages: str, buckets: Sequence[int] | None) -> str:
        if buckets is None:
            return checksum.sums(side, self._hash, self._buckets, relation, pages)
        return checksum.rows(side, self._hash, self._buckets, relation, pages, buckets)


def _added(rows: Sequence[Any]) -> Sums:
    sums: dict[int, tuple[int, int]] = {}
    for bucket, count, total in rows:
        have = sums.get(bucket, (0, 0))
        sums[bucket] = (have[0] + count, have[1] + int(total))
    return sums


def _by_key(rows: Sequence[Any]) -> dict[Key, list[int]]:
    """Return the sorted hashes of each key's rows; a damaged target may have several for one key."""
    found: defaultdict[Key, list[int]] = defaultdict(list)
    for key, value in rows:
        found[tuple(key)].append(value)
    for values in found.values():
        values.sort()
    return found


def _ordered(keys: list[Key]) -> list[Key]:
    try:
        return sorted(keys, key=lambda key: tuple(int(text) for text in key))
    except ValueError:
        return sorted(keys)
