"""Compare a pipeline's source with its destinations at one position, while the stream flows; repair what differs."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from sqlalchemy import Engine

from cdc_runner.catalog import reconciliations
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.leases import current_holder
from cdc_runner.catalog.pipelines import load_pipeline
from cdc_runner.catalog.repositories import get_pipeline
from cdc_runner.catalog.settings import all_settings
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.reconcile.fenced import Fenced, fenced
from cdc_runner.reconcile.result import Key, KeyDifferences, Outcome, Report, TableOutcome, TableResult
from cdc_runner.reconcile.session import Settings
from cdc_runner.reconcile.standing import standing
from cdc_runner.reconcile.tables import Selection, by_patterns, by_targets, compare_destination
from cdc_runner.schema import TableId
from cdc_runner.spec import DestinationSpec, PipelineSpec

ATTEMPTS = 3
"""Fences tried for tables that something transient was in the way of."""
REPAIRED_KEYS = 100_000
"""Most rows of one table that are fetched by key; beyond that copying the table again is faster."""
KEYS_AT_ONCE = 10_000
"""Rows fetched at one fence, which holds the stream of that destination for about a second."""
SAMPLES = 20

Place = tuple[int, TableId]
"""Pipeline destination and target table."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare.

    Attributes:
        pipeline: its name.
        tables: patterns `schema.table` of source or target tables; empty for all.
        destinations: names; empty for all.
        wait_seconds: how long to wait for a destination that is behind.
    """

    pipeline: str
    tables: Sequence[str] = ()
    destinations: Sequence[str] = ()
    wait_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair found and did.

    Attributes:
        before: what was found.
        dry_run: nothing was written.
        upserted_rows: rows written from the source.
        deleted_rows: rows deleted that the source does not have.
        planned: keys to be fetched again, by `destination: table`.
        refused: tables that a repair cannot put right, with the reason.
        after: the repaired tables compared again; None for a dry run, or when there was nothing to repair.
        seconds: how long all of it took.
    """

    before: Report
    dry_run: bool
    planned: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    upserted_rows: int = 0
    deleted_rows: int = 0
    after: Report | None = None
    seconds: float = 0.0

    @property
    def outcome(self) -> Outcome:
        """How both sides stand now."""
        if self.after is None:
            return self.before.outcome
        if self.refused or self.after.outcome is Outcome.DIFFERENT:
            return Outcome.DIFFERENT
        known = {TableOutcome.EQUAL, TableOutcome.SKIPPED, TableOutcome.DIFFERENT}
        whole = self.before.problem is None and all(one.outcome in known for one in self.before.tables)
        return self.after.outcome if whole else Outcome.INCOMPLETE

    def as_json(self) -> dict[str, Any]:
        """Return the report for a JSON document."""
        return {
            "outcome": self.outcome.value,
            "dry_run": self.dry_run,
            "planned_keys": self.planned,
            "refused": self.refused,
            "upserted_rows": self.upserted_rows,
            "deleted_rows": self.deleted_rows,
            "before": self.before.as_json(SAMPLES),
            "after": None if self.after is None else self.after.as_json(SAMPLES),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class _Subject:
    spec: PipelineSpec
    destinations: Sequence[DestinationSpec]
    settings: Settings
    running: bool


def verify_pipeline(catalog: Engine, request: Request, keyring: Keyring | None = None) -> Report:
    """Compare both sides and keep the result in the history. Changes no row on either side.

    Raises:
        RosettaError: NOT_FOUND or CREDENTIAL_*; whatever else is in the way is the report's problem.
    """
    subject = _subject(catalog, request, keyring)
    report = _compare(catalog, request, subject, by_patterns(request.tables))
    _record(catalog, subject, report, "VERIFY")
    return report


def repair_pipeline(
    catalog: Engine, request: Request, keyring: Keyring | None = None, *, dry_run: bool = True
) -> RepairReport:
    """Compare both sides, fetch the rows that differ again, and compare the tables concerned once more.

    Rows are written by the running pipeline at a position where both sides stand, so the stream goes on exactly there.

    Raises:
        RosettaError: as `verify_pipeline`, or RUNNER_FAILED when the pipeline could not write.
    """
    began = time.monotonic()
    subject = _subject(catalog, request, keyring)
    before = _compare(catalog, request, subject, by_patterns(request.tables))
    _record(catalog, subject, before, "VERIFY")
    wanted: list[tuple[int, TableId, Key]] = []
    planned: dict[str, int] = {}
    refused: dict[str, str] = {}
    for one in before.tables:
        if one.outcome is not TableOutcome.DIFFERENT:
            continue
        name = f"{one.destination}: {one.target}"
        reason = _irreparable(one)
        if reason is not None:
            refused[name] = reason
            continue
        planned[name] = len(one.keys.all)
        wanted += [(one.pipeline_destination_id, one.target, key) for key in one.keys.all]
    report = RepairReport(before, dry_run, planned, refused)
    if wanted and not dry_run:
        report = _write(catalog, request, subject, report, wanted)
        if report.after is not None:
            _record(catalog, subject, report.after, "REPAIR")
    return replace(report, seconds=time.monotonic() - began)


def _subject(catalog: Engine, request: Request, keyring: Keyring | None) -> _Subject:
    with session_scope(catalog) as session:
        pipeline = get_pipeline(session, request.pipeline)
        spec = load_pipeline(session, pipeline.id, keyring)
        running = current_holder(session, pipeline.id) is not None
        values = all_settings(session)
    unknown = set(request.destinations) - {one.name for one in spec.destinations}
    if unknown:
        known = ", ".join(one.name for one in spec.destinations)
        raise RosettaError(
            ErrorKind.NOT_FOUND, f"pipeline {spec.name} has no destination {sorted(unknown)[0]}; it has {known}"
        )
    settings = Settings(
        workers=int(values["verify_workers"]),
        statement_seconds=int(values["verify_statement_seconds"]),
        bytes_per_second=int(values["verify_megabytes_per_second"]) * 1_000_000,
    )
    chosen = [one for one in spec.destinations if not request.destinations or one.name in request.destinations]
    return _Subject(spec, chosen, settings, running)


def _compare(catalog: Engine, request: Request, subject: _Subject, selected: Selection) -> Report:
    """Compare at one position; what failed for the moment is tried at another, what differs is looked at once more."""
    began = time.monotonic()
    found: dict[Place, TableResult] = {}
    lsn: int | None = None
    problem: str | None = None
    confirmed: set[Place] = set()
    for _ in range(ATTEMPTS):
        try:
            with session_scope(catalog) as session:
                since = reconciliations.now(session)
            with _fence(catalog, request, subject) as fence:
                lsn = fence.lsn if lsn is None else lsn
                results, missing = compare_at(subject.spec, subject.destinations, fence, selected)
            problem = problem or missing
            with session_scope(catalog) as session:
                busy = reconciliations.loaded_since(session, subject.spec.id, since)
            for one in results:
                place = (one.pipeline_destination_id, one.target)
                found[place] = confirm(found.get(place), _beside_loads(one, busy))
        except RosettaError as error:
            problem = problem or f"{error.message} - {error.policy.solution}"
            break
        failed = {place for place, one in found.items() if one.outcome is TableOutcome.FAILED}
        different = {place for place, one in found.items() if one.outcome is TableOutcome.DIFFERENT}
        again = failed | (different - confirmed)
        if not again:
            break
        confirmed |= different
        selected = by_targets(again)
    tables = sorted(found.values(), key=lambda one: (one.destination, one.target))
    return Report(subject.spec.name, lsn, tables, time.monotonic() - began, problem)


def confirm(first: TableResult | None, second: TableResult) -> TableResult:
    """Return what is still different at a second position of what was different at the first.

    A row that the engine had to fetch from the source by key, after an interrupted load, is ahead of the stream for a
    moment; nothing else is. And a row that the stream has brought right meanwhile needs no hand.
    """
    if first is None or TableOutcome.DIFFERENT not in (first.outcome, second.outcome):
        return second
    if second.outcome is TableOutcome.FAILED or first.outcome is TableOutcome.FAILED:
        return second if first.outcome is TableOutcome.FAILED else first
    seconds = first.seconds + second.seconds
    if second.outcome is TableOutcome.DIFFERENT and first.keys.complete and second.keys.complete and second.key:
        known = set(first.keys.all)
        found = second.keys
        changed, missing, extra = (
            [key for key in listed if key in known] for listed in (found.changed, found.missing, found.extra)
        )
        keys = KeyDifferences(changed, missing, extra)
        outcome = TableOutcome.DIFFERENT if keys.all else TableOutcome.EQUAL
        return replace(second, keys=keys, outcome=outcome, seconds=seconds)
    return replace(second, seconds=seconds)


def _beside_loads(one: TableResult, busy: Collection[tuple[int | None, TableId]]) -> TableResult:
    """Say nothing of rows that differ while a backfill of the table is at work."""
    if one.outcome is TableOutcome.DIFFERENT and any(
        destination in (None, one.pipeline_destination_id) and table == one.source for destination, table in busy
    ):
        return replace(one, outcome=TableOutcome.BEHIND, keys=KeyDifferences(), reason="a backfill of it is at work")
    return one


def _fence(catalog: Engine, request: Request, subject: _Subject, keys: Any = None) -> Any:
    if not subject.running:
        if keys:
            raise RosettaError(
                ErrorKind.RUNNER_FAILED,
                f"pipeline {subject.spec.name} does not run; rows are written by the running pipeline only: start it",
            )
        return standing(subject.spec, subject.destinations, subject.settings)
    wait = request.wait_seconds
    return fenced(catalog, subject.spec, subject.destinations, subject.settings, wait_seconds=wait, keys=keys)


def compare_at(
    spec: PipelineSpec, destinations: Sequence[DestinationSpec], fence: Fenced, selected: Selection
) -> tuple[list[TableResult], str | None]:
    """Compare the selected tables of destinations at a fence; also return which destinations were not there."""
    results: list[TableResult] = []
    for destination in destinations:
        if destination.id in fence.targets or destination.id in fence.lakes:
            results += compare_destination(spec.identity, fence, destination, selected)
    names = {one.id: one.name for one in destinations}
    problem = "; ".join(f"destination {names[place]}: {reason}" for place, reason in fence.problems.items())
    return results, problem or None


def _irreparable(one: TableResult) -> str | None:
    if one.reason is not None:
        return one.reason
    if not one.key:
        return "it has no key by which rows could be fetched: copy it again"
    if not one.keys.complete or len(one.keys.all) > REPAIRED_KEYS:
        return f"more than {REPAIRED_KEYS} rows differ: copy it again"
    return None


def _write(
    catalog: Engine,
    request: Request,
    subject: _Subject,
    report: RepairReport,
    wanted: Sequence[tuple[int, TableId, Key]],
) -> RepairReport:
    began = time.monotonic()
    selected = by_targets({(destination, target) for destination, target, _ in wanted})
    upserted = deleted = 0
    slices = list(_slices(wanted))
    after: Report | None = None
    for number, part in enumerate(slices, 1):
        keys: dict[int, dict[TableId, list[Key]]] = {}
        for destination, target, key in part:
            keys.setdefault(destination, {}).setdefault(target, []).append(key)
        with _fence(catalog, request, subject, keys) as fence:
            upserted += fence.upserted_rows
            deleted += fence.deleted_rows
            if fence.problems or number == len(slices):
                # At the same fence: the snapshots hold what was written there.
                tables, problem = compare_at(subject.spec, subject.destinations, fence, selected)
                after = Report(subject.spec.name, fence.lsn, tables, time.monotonic() - began, problem)
                break
    return replace(report, upserted_rows=upserted, deleted_rows=deleted, after=after)


def _slices(wanted: Sequence[tuple[int, TableId, Key]]) -> Iterator[list[tuple[int, TableId, Key]]]:
    left = iter(wanted)
    while part := list(islice(left, KEYS_AT_ONCE)):
        yield part


def _record(catalog: Engine, subject: _Subject, report: Report, purpose: reconciliations.Purpose) -> None:
    tables = [
        {
            "pipeline_destination_id": one.pipeline_destination_id,
            "source_table": str(one.source),
            "target_table": str(one.target),
            "outcome": one.outcome.value,
            "reason": one.reason,
            "source_rows": one.source_rows,
            "target_rows": one.target_rows,
            "changed_rows": len(one.keys.changed),
            "missing_rows": len(one.keys.missing),
            "extra_rows": len(one.keys.extra),
            "details": one.details(SAMPLES),
            "seconds": one.seconds,
        }
        for one in report.tables
    ]
    with session_scope(catalog) as session:
        reconciliations.record(
            session,
            subject.spec.id,
            purpose,
            outcome=report.outcome.value,
            lsn=report.lsn,
            seconds=report.seconds,
            tables=tables,
        )
