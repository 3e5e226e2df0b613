"""Backfills as people ask for them: of tables by pattern, listed, shown and cancelled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from cdc_runner.capture.inspect import matches
from cdc_runner.catalog import backfills
from cdc_runner.catalog.backfills import MODES
from cdc_runner.catalog.models import Pipeline, PipelineDestination, TableSync
from cdc_runner.catalog.repositories import get_pipeline
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.row_filter.form import render_form
from cdc_runner.row_filter.sql import RowFilter, parse_filter
from cdc_runner.schema import TableId


@dataclass(frozen=True, slots=True)
class BackfillRequest:
    """What to copy again.

    Attributes:
        pipeline: its name.
        tables: patterns `schema.table` of source or target tables; empty for every table of the pipeline.
        destinations: names; empty for all.
        mode: backfill writes what differs, resync also deletes what the source does not have, reload empties the table
            and loads it while the stream waits (a large one beside it), rebuild fills a new table aside that takes the
            old one's place.
        filter: condition on rows of the source, as SQL text, or the builder form as a mapping or as JSON text.
        priority: higher comes first, -1000 to 1000.
        requested_by: shown to people.
    """

    pipeline: str
    tables: Sequence[str] = ()
    destinations: Sequence[str] = ()
    mode: str = "backfill"
    filter: str | Mapping[str, Any] | None = None
    priority: int = 0
    requested_by: str | None = None


@dataclass(slots=True)
class Queued:
    """What a request came to.

    Attributes:
        queued: the new backfills, as `list_backfills` shows them.
        open: targets of which one was open already, and was left alone.
        refused: targets that cannot be copied again, with the reason.
    """

    queued: list[dict[str, Any]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the outcome for a JSON document."""
        return {"queued": self.queued, "already_open": self.open, "refused": self.refused}


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    """A table of a destination that a request is about, and the source's table that it is a copy of."""

    row: PipelineDestination
    source: TableId
    table: TableId

    @property
    def name(self) -> str:
        """As people are told of it: `destination: schema.table`."""
        return f"{self.row.destination.name}: {self.table}"


def start_backfill(session: Session, request: BackfillRequest) -> Queued:
    """Queue backfills, one for each target table; the running pipeline does them.

    Raises:
        RosettaError: NOT_FOUND, no such pipeline, destination or table; CONFIG_INVALID, a filter or mode that cannot
            be. Nothing was queued.
    """
    pipeline = get_pipeline(session, request.pipeline)
    mode, condition = _checked(request)
    targets = _targets(pipeline, request)
    if not targets:
        wanted = ", ".join(request.tables) or "any table"
        raise RosettaError(
            ErrorKind.NOT_FOUND,
            f"pipeline {pipeline.name} has no table at its destinations that matches {wanted[:200]}",
        )
    unfit = _unfit(session, pipeline.name, targets) if mode == "REBUILD" else {}
    outcome = Queued()
    for one in targets:
        if one in unfit:
            outcome.refused[one.name] = unfit[one]
            continue
        if one.row.destination.type != "postgres":
            outcome.refused[one.name] = "its type takes no backfills yet: rosetta pipeline refresh copies everything"
            continue
        identifier = backfills.enqueue(
            session,
            pipeline.id,
            pipeline.source_id,
            one.row.id,
            one.source,
            one.table,
            mode=mode,
            filter_sql=None if condition is None else condition.sql,
            priority=request.priority,
            requested_by=request.requested_by,
        )
        if identifier is None:
            outcome.open.append(one.name)
        else:
            session.flush()
            outcome.queued.append(show_backfill(session, identifier))
    return outcome


def _checked(request: BackfillRequest) -> tuple[str, RowFilter | None]:
    """Return mode and filter of a request that can be."""
    mode = request.mode.upper()
    if mode not in MODES:
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"mode must be one of {', '.join(MODES).lower()}")
    if not -1000 <= request.priority <= 1000:
        raise RosettaError(ErrorKind.CONFIG_INVALID, "priority must be between -1000 and 1000")
    condition = parse_backfill_filter(request.filter)
    if condition is not None and mode != "BACKFILL":
        raise RosettaError(
            ErrorKind.CONFIG_INVALID, f"a filter goes with mode backfill only: {mode.lower()} is of whole tables"
        )
    return mode, condition


def _unfit(session: Session, pipeline: str, targets: Sequence[_Target]) -> dict[_Target, str]:
    """Return the targets that cannot be replaced by new tables, with the reason, as far as that is known now."""
    from cdc_runner.services.rebuild import why_not_rebuildable

    found: dict[_Target, str] = {}
    for row in {one.row.id: one.row for one in targets if one.row.destination.type == "postgres"}.values():
        mine = {one.table: one for one in targets if one.row.id == row.id}
        try:
            reasons = why_not_rebuildable(session, pipeline, row.id, list(mine))
        except RosettaError:
            # The pipeline looks again, and says then what is wrong.
            continue
        found |= {mine[table]: reason for table, reason in reasons.items()}
    return found


def rebuild_obstacles(session: Session, request: BackfillRequest) -> dict[str, str]:
    """Return what stands in the way of a rebuild, by `destination: schema.table`. Queues nothing.

    Raises:
        RosettaError: NOT_FOUND.
    """
    pipeline = get_pipeline(session, request.pipeline)
    unfit = _unfit(session, pipeline.name, _targets(pipeline, request))
    return {one.name: reason for one, reason in unfit.items()}


def meant_targets(session: Session, request: BackfillRequest) -> list[str]:
    """Return the targets that a request is about, as `destination: schema.table`. Queues nothing.

    Raises:
        RosettaError: NOT_FOUND.
    """
    return [one.name for one in _targets(get_pipeline(session, request.pipeline), request)]


def parse_backfill_filter(value: str | Mapping[str, Any] | None) -> RowFilter | None:
    """Return a checked filter of a request; None for no filter.

    Raises:
        RosettaError: CONFIG_INVALID, naming what is wrong; never a value.
    """
    if value is None or value == "" or value == {}:
        return None
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            raise RosettaError(ErrorKind.CONFIG_INVALID, "filter: it is neither a condition nor JSON") from None
    return parse_filter(value if isinstance(value, str) else render_form(value))


def list_backfills(session: Session, pipeline: str | None = None, *, open_only: bool = False) -> list[dict[str, Any]]:
    """Return backfills, the open ones first, then the newest.

    Raises:
        RosettaError: NOT_FOUND.
    """
    identifier = None if pipeline is None else get_pipeline(session, pipeline).id
    return backfills.listed(session, pipeline_id=identifier, open_only=open_only)


def show_backfill(session: Session, backfill_id: int) -> dict[str, Any]:
    """Return one backfill.

    Raises:
        RosettaError: NOT_FOUND.
    """
    found = backfills.find(session, backfill_id)
    if found is None:
        raise RosettaError(ErrorKind.NOT_FOUND, f"there is no backfill {backfill_id}")
    return found


def cancel_backfills(
    session: Session, pipeline: str, ids: Sequence[int] = (), tables: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Cancel open backfills by id or by pattern; neither means all of the pipeline. Return those that were open.

    What they have written stays: it is what the source has.

    Raises:
        RosettaError: NOT_FOUND, no such pipeline, or no open backfill of it is meant.
    """
    row = get_pipeline(session, pipeline)
    listed = backfills.listed(session, pipeline_id=row.id, open_only=True, limit=10_000)
    chosen = [
        one["id"]
        for one in listed
        if (not ids or one["id"] in ids) and (not tables or _meant(tables, one["table"], one["target"]))
    ]
    cancelled = backfills.cancel(session, row.id, chosen) if chosen else []
    if not cancelled:
        raise RosettaError(ErrorKind.NOT_FOUND, f"pipeline {pipeline} has no open backfill that is meant")
    session.expire_all()
    return [show_backfill(session, one) for one in sorted(cancelled)]


def _destinations(pipeline: Pipeline, request: BackfillRequest) -> list[PipelineDestination]:
    known = {row.destination.name: row for row in pipeline.destinations}
    unknown = sorted(set(request.destinations) - set(known))
    if unknown:
        raise RosettaError(
            ErrorKind.NOT_FOUND,
            f"pipeline {pipeline.name} has no destination {unknown[0][:80]}; it has {', '.join(known)}",
        )
    return [row for name, row in known.items() if not request.destinations or name in request.destinations]


def _targets(pipeline: Pipeline, request: BackfillRequest) -> list[_Target]:
    """Return what a request is about, destination by destination, in order of the source's tables."""
    return [
        one
        for row in _destinations(pipeline, request)
        for one in sorted(_targets_at(row, request.tables), key=lambda one: (one.source, one.table))
    ]


def _targets_at(row: PipelineDestination, patterns: Sequence[str]) -> Iterator[_Target]:
    for sync in row.table_syncs:
        if sync.origin == "RESOLVED" and sync.load_state != "EXCLUDED":
            source, table = _ids(sync)
            if not patterns or matches(source, patterns) or matches(table, patterns):
                yield _Target(row, source, table)


def _ids(sync: TableSync) -> tuple[TableId, TableId]:
    return (
        TableId(sync.source_schema or "", sync.source_table or ""),
        TableId(sync.target_schema or "", sync.target_table or ""),
    )


def _meant(patterns: Sequence[str], *names: str | None) -> bool:
    return any(matches(TableId(*name.split(".", 1)), patterns) for name in names if name is not None and "." in name)
