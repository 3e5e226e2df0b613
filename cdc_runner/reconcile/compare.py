"""Compare tables under a pair of snapshots: checksums of buckets first, then the rows of those buckets that differ."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres.target_table import TargetTable
from cdc_runner.destinations.postgres.type_names import SchemaMap
from cdc_runner.errors import RosettaError
from cdc_runner.reconcile import checksum
from cdc_runner.reconcile.checksum import Hash, Hashing
from cdc_runner.reconcile.plan import NotComparable, Rules, Side, plan_table
from cdc_runner.reconcile.result import Key, KeyDifferences, TableOutcome, TableResult
from cdc_runner.reconcile.session import Part, SnapshotSessions, TableReading, Unreadable
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


def judged(result: TableResult, compare: Callable[[], TableResult]) -> TableResult:
    """Return what a comparison gives, with its time; its failures become outcomes of the result."""
    began = time.monotonic()
    try:
        result = compare()
    except NotComparable as error:
        result = replace(result, outcome=TableOutcome.NOT_COMPARABLE, reason=str(error))
    except Unreadable as error:
        result = replace(result, outcome=TableOutcome.FAILED, reason=str(error))
    except RosettaError as error:
        result = replace(result, outcome=TableOutcome.FAILED, reason=error.message)
    return replace(result, seconds=time.monotonic() - began)


class Comparison:
    """Compares tables of one source with those of one destination, each under its snapshot."""

    def __init__(self, source: SnapshotSessions, target: SnapshotSessions) -> None:
        self._source = source
        self._target = target
        self._hash: Hash = checksum.choose_hash(source.keeper, target.keeper)

    def compare(self, subject: Subject) -> TableResult:
        """Return what one table has differently; failures become outcomes."""
        return judged(subject.result, lambda: self._compare(subject))

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
            readings = (
                ServerReading(plan.source, here, self._hash, one),
                ServerReading(plan.target, there, self._hash, two),
            )
            return compare_rows(*readings, replace(subject.result, key=plan.key, left_out=plan.left_out))


class Reading(Protocol):
    """One side of a table that is being read."""

    @property
    def rows_estimate(self) -> float:
        """About how many rows it has."""
        ...

    def start(self, buckets: int, wanted: Sequence[int] | None) -> list[Future[list[Any]]]:
        """Begin to read rows and checksum of each bucket, or key texts and hash of the rows of some; part by part."""
        ...


class ServerReading:
    """A table of a PostgreSQL server, read in parts."""

    def __init__(self, side: Side, reading: TableReading, hashing: Hashing, threads: ThreadPoolExecutor) -> None:
        self._side = side
        self._reading = reading
        self._hash = hashing
        self._threads = threads
        self.rows_estimate = reading.rows_estimate

    def start(self, buckets: int, wanted: Sequence[int] | None) -> list[Future[list[Any]]]:
        """See `Reading.start`."""
        return [
            self._threads.submit(self._reading.run, self._statement(buckets, wanted, part), part.size)
            for part in self._reading.parts
        ]

    def _statement(self, buckets: int, wanted: Sequence[int] | None, part: Part) -> str:
        if wanted is None:
            return checksum.sums(self._side, self._hash, buckets, part.relation, part.pages)
        return checksum.rows(self._side, self._hash, buckets, part.relation, part.pages, wanted)


def compare_rows(source: Reading, target: Reading, result: TableResult) -> TableResult:
    """Return what one table has differently.

    Args:
        source: the source table.
        target: its target.
        result: what is known of it, with the names of the key's columns.
    """
    buckets = checksum.bucket_count(max(source.rows_estimate, target.rows_estimate))
    here, there = map(_added, _both(source, target, buckets, None))
    totals = [sum(count for count, _ in sums.values()) for sums in (here, there)]
    result = replace(result, source_rows=totals[0], target_rows=totals[1])
    differing = sorted(bucket for bucket in here.keys() | there.keys() if here.get(bucket) != there.get(bucket))
    if not differing:
        return replace(result, outcome=TableOutcome.EQUAL)
    listed: list[int] = []
    rows = 0
    for bucket in differing:
        rows += max(here.get(bucket, (0, 0))[0], there.get(bucket, (0, 0))[0])
        if listed and rows > LISTED_ROWS:
            break
        listed.append(bucket)
    keys = _differences(*map(_by_key, _both(source, target, buckets, listed)), keyed=bool(result.key))
    keys = replace(keys, complete=len(listed) == len(differing))
    return replace(result, outcome=TableOutcome.DIFFERENT, keys=keys)


def _differences(
    here: Mapping[Key, Sequence[int]], there: Mapping[Key, Sequence[int]], *, keyed: bool
) -> KeyDifferences:
    changed: list[Key] = []
    missing: list[Key] = []
    extra: list[Key] = []
    for key in here.keys() | there.keys():
        one, two = here.get(key, []), there.get(key, [])
        if one == two:
            continue
        if not two:
            missing += [key] * (1 if keyed else len(one))
        elif not one:
            extra += [key] * (1 if keyed else len(two))
        elif keyed:
            changed.append(key)
        else:
            # Rows without a key have their hash as key: the number of such rows differs.
            (missing if len(one) > len(two) else extra).extend([key] * abs(len(one) - len(two)))
    return KeyDifferences(_ordered(changed), _ordered(missing), _ordered(extra))


def _both(source: Reading, target: Reading, buckets: int, wanted: Sequence[int] | None) -> list[list[Any]]:
    work = [side.start(buckets, wanted) for side in (source, target)]
    try:
        return [[row for future in futures for row in future.result()] for futures in work]
    except BaseException:
        for futures in work:
            for future in futures:
                future.cancel()
        raise


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
