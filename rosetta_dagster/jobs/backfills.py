"""Jobs for backfills, of the same verbs as `rosetta backfill`; the picker offers `pipeline|schema.table`."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

import time
from collections.abc import Mapping, Sequence
from typing import Any

from dagster import Config, Failure, JobDefinition, MetadataValue, OpExecutionContext, op
from pydantic import Field

from cdc_runner.catalog import backfills
from cdc_runner.catalog.database import session_scope
from cdc_runner.errors import ErrorKind, RosettaError
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import PIPELINES, TABLES, split_table_key
from rosetta_dagster.jobs.verb import table, verb_job
from rosetta_dagster.resources.catalog import catalog_engine

FOLLOW_SECONDS = 2.0
TOLD_SECONDS = 30.0
MAX_RUNTIME_SECONDS = 7 * 86_400
FOLLOWING = {"rosetta/follow": "backfill"}
"""Of runs that last as long as a backfill; dagster.yaml keeps them from taking every place of the queue."""
_COLUMNS = (
    "id", "destination", "table", "mode", "status", "priority", "rows", "total", "percent", "eta_seconds", "changed",
    "deleted", "dead_letters", "seconds", "kept", "note", "error",
)  # fmt: skip
_DESTINATIONS = "Names of destinations of the pipeline; empty: all of them."
_PRIORITY = "-1000 to 1000; higher comes first."


class BackfillConfig(Config):
    """What to copy again of the table."""

    filter: str = Field(
        default="",
        description="Condition on rows of the source as SQL, e.g. region = 'EU', or the builder form as JSON. Empty: "
        "all rows. It is stored in the run.",
    )
    destinations: list[str] = Field(default=[], description=_DESTINATIONS)
    priority: int = Field(default=0, description=_PRIORITY)
    backfill_id: int = Field(
        default=0, description="Follow this backfill, which is queued already; the sensor backfill_queue sets it."
    )


class ResyncConfig(Config):
    """A resync deletes rows at the destination: it is asked for twice."""

    destinations: list[str] = Field(default=[], description=_DESTINATIONS)
    priority: int = Field(default=0, description=_PRIORITY)
    reload: bool = Field(
        default=False,
        description="On: empty the table and load it again; the pipeline's stream waits meanwhile, unless it is large.",
    )
    dry_run: bool = Field(default=True, description="On: only say which targets it would be. Off: do it.")


class RebuildConfig(Config):
    """A rebuild puts a new table in the place of the old one: it is asked for twice."""

    destinations: list[str] = Field(default=[], description=_DESTINATIONS)
    priority: int = Field(default=0, description=_PRIORITY)
    dry_run: bool = Field(
        default=True, description="On: only say which targets it would be, and what stands in the way. Off: do it."
    )


class ConfirmConfig(Config):
    """Which old tables to drop."""

    ids: list[int] = Field(default=[], description="Numbers of rebuilds; empty: see tables.")
    tables: list[str] = Field(
        default=[], description="Patterns schema.table; empty, as the numbers: every old table of the pipeline."
    )
    dry_run: bool = Field(default=True, description="On: only list the old tables that are kept. Off: drop them.")


class CancelConfig(Config):
    """Which backfills to cancel."""

    ids: list[int] = Field(default=[], description="Numbers of backfills; empty: see tables.")
    tables: list[str] = Field(
        default=[], description="Patterns schema.table; empty, as the numbers: every open backfill of the pipeline."
    )


class ListConfig(Config):
    """Which backfills to list."""

    open_only: bool = Field(default=False, description="On: only those that have not ended.")


def _request(name: str, **fields: Any) -> Any:
    from cdc_runner.services.backfill import BackfillRequest

    pipeline, found = split_table_key(name)
    return BackfillRequest(pipeline, (found,), requested_by="dagster", **fields)


def _start(request: Any) -> list[int]:
    """Queue backfills and return those that are to be followed: the new ones, and those that are open already."""
    from cdc_runner.services.backfill import start_backfill

    with engine_outcome(), session_scope(catalog_engine()) as session:
        outcome = start_backfill(session, request)
        ids = [one["id"] for one in outcome.queued]
        if not ids:
            why = "; ".join([*(f"{one} has an open backfill" for one in outcome.open), *outcome.refused.values()])
            raise RosettaError(ErrorKind.CONFLICT, f"nothing was queued: {why}")
        backfills.announce(session, ids)
    return ids


def _shown(ids: Sequence[int]) -> list[dict[str, Any]]:
    with session_scope(catalog_engine()) as session:
        found = [backfills.find(session, one) for one in ids]
    return [one for one in found if one is not None]


def follow(context: OpExecutionContext, ids: Sequence[int]) -> None:
    """Follow backfills until they have ended; the run's log tells how far they are, its metadata how they ended.

    Raises:
        Failure: one has failed or was cancelled.
    """
    told = 0.0
    while True:
        try:
            found = _shown(ids)
        except RosettaError as error:
            if error.kind is not ErrorKind.CONFIG_DATABASE_UNAVAILABLE:
                raise
            context.log.warning(str(error))
            time.sleep(FOLLOW_SECONDS)
            continue
        if all(one["status"] not in backfills.OPEN for one in found):
            break
        if time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            for one in found:
                context.log.info(progress_line(one))
        time.sleep(FOLLOW_SECONDS)
    context.add_output_metadata({"result": "; ".join(progress_line(one) for one in found), **metadata(found)})
    bad = [one for one in found if one["status"] != "COMPLETED"]
    if bad:
        text = "; ".join(f"{one['target']}: {one['status']}: {one['error'] or 'by a person'}" for one in bad)
        raise Failure(text[:2000], metadata(found), allow_retries=False)


def progress_line(one: Mapping[str, Any]) -> str:
    """Return how far a backfill is, in one line."""
    percent = "" if one["percent"] is None else f" ({one['percent']:g} %)"
    left = "" if one["eta_seconds"] is None else f", {one['eta_seconds']} s left"
    note = "" if one["note"] is None else f", {one['note']}"
    return f"{one['target']}: {one['status']}, {one['rows']} of about {one['total']} rows{percent}{left}{note}"


def metadata(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the pages show of backfills."""
    return {
        "rows": MetadataValue.int(sum(one["rows"] for one in found)),
        "rows changed": MetadataValue.int(sum(one["changed"] for one in found)),
        "rows deleted": MetadataValue.int(sum(one["deleted"] for one in found)),
        "backfills": table(list(found), _COLUMNS),
    }


@op(name="copy_table_again")
def backfill_op(context: OpExecutionContext, config: BackfillConfig) -> None:
    if config.backfill_id:
        follow(context, [config.backfill_id])
        return
    request = _request(
        context.partition_key,
        filter=config.filter or None,
        destinations=tuple(config.destinations),
        priority=config.priority,
    )
    follow(context, _start(request))


@op(name="make_table_equal")
def resync_op(context: OpExecutionContext, config: ResyncConfig) -> None:
    mode = "reload" if config.reload else "resync"
    request = _request(
        context.partition_key, mode=mode, destinations=tuple(config.destinations), priority=config.priority
    )
    if config.dry_run:
        from cdc_runner.services.backfill import meant_targets

        with engine_outcome(), session_scope(catalog_engine()) as session:
            targets = meant_targets(session, request)
        context.add_output_metadata({"result": f"dry run: {mode} of {', '.join(targets)}"})
        return
    follow(context, _start(request))


@op(name="build_table_anew")
def rebuild_op(context: OpExecutionContext, config: RebuildConfig) -> None:
    request = _request(
        context.partition_key, mode="rebuild", destinations=tuple(config.destinations), priority=config.priority
    )
    if not config.dry_run:
        follow(context, _start(request))
        return
    from cdc_runner.services.backfill import meant_targets, rebuild_obstacles

    with engine_outcome(), session_scope(catalog_engine()) as session:
        targets = meant_targets(session, request)
        reasons = rebuild_obstacles(session, request)
    rows = [{"target": one, "stands in the way": reasons.get(one, "nothing that is known")} for one in targets]
    context.add_output_metadata(
        {
            "result": f"dry run: rebuild of {len(targets) - len(reasons)} targets, {len(reasons)} cannot be",
            "targets": table(rows, ("target", "stands in the way")),
        }
    )


@op(name="drop_old_tables")
def confirm_op(context: OpExecutionContext, config: ConfirmConfig) -> None:
    from cdc_runner.services.rebuild import confirm_rebuilds, kept_of

    with engine_outcome(), session_scope(catalog_engine()) as session:
        if config.dry_run:
            kept = kept_of(session, context.partition_key)
            context.add_output_metadata({"result": f"dry run: {len(kept)} old tables are kept", "kept": _kept(kept)})
            return
        found = confirm_rebuilds(session, context.partition_key, tuple(config.ids), tuple(config.tables))
    context.add_output_metadata({"result": f"{len(found)} old tables dropped", "dropped": _kept(found)})


def _kept(found: Sequence[Mapping[str, Any]]) -> MetadataValue:
    return table(list(found), ("id", "destination", "target", "kept", "dropped", "finished_at"))


@op(name="cancel")
def cancel_op(context: OpExecutionContext, config: CancelConfig) -> None:
    from cdc_runner.services.backfill import cancel_backfills

    with engine_outcome(), session_scope(catalog_engine()) as session:
        found = cancel_backfills(session, context.partition_key, tuple(config.ids), tuple(config.tables))
    context.add_output_metadata({"result": f"{len(found)} backfills cancelled", "backfills": table(found, _COLUMNS)})


@op(name="list_queue")
def list_op(context: OpExecutionContext, config: ListConfig) -> None:
    from cdc_runner.services.backfill import list_backfills

    with engine_outcome(), session_scope(catalog_engine()) as session:
        found = list_backfills(session, context.partition_key, open_only=config.open_only)
    waiting = sum(one["status"] in backfills.OPEN for one in found)
    context.add_output_metadata({"result": f"{waiting} open, {len(found)} in all", "backfills": table(found, _COLUMNS)})


backfill_table = verb_job(
    backfill_op,
    name="backfill_table",
    description="Copies a table again beside the running stream: rows that are missing or different at its targets are "
    "written. The run follows the backfill to its end; ending the run leaves the backfill at work, which the job "
    "cancel_backfills ends. The same as `rosetta backfill start`.",
    picker=TABLES,
    max_runtime_seconds=MAX_RUNTIME_SECONDS,
    tags=FOLLOWING,
)

BACKFILL_JOBS: list[JobDefinition] = [
    backfill_table,
    verb_job(
        resync_op,
        name="resync_table",
        description="The same, and deletes rows that the source does not have. A dry run unless told otherwise. The "
        "same as `rosetta backfill start --mode resync`.",
        picker=TABLES,
        max_runtime_seconds=MAX_RUNTIME_SECONDS,
        tags=FOLLOWING,
    ),
    verb_job(
        rebuild_op,
        name="rebuild_table",
        description="Fills a new table beside the old one while the stream writes both, compares it with the source "
        "and puts it in the old one's place in one transaction; the old one is kept until confirm_rebuild drops it. A "
        "dry run unless told otherwise. The same as `rosetta backfill start --mode rebuild`.",
        picker=TABLES,
        max_runtime_seconds=MAX_RUNTIME_SECONDS,
        tags=FOLLOWING,
    ),
    verb_job(
        confirm_op,
        name="confirm_rebuild",
        description="Drops the old tables of a pipeline that rebuilds have replaced. A dry run, which lists them, "
        "unless told otherwise. The same as `rosetta backfill confirm`.",
        picker=PIPELINES,
    ),
    verb_job(
        cancel_op,
        name="cancel_backfills",
        description="Cancels open backfills of a pipeline; rows that they have written stay. The same as `rosetta "
        "backfill cancel`.",
        picker=PIPELINES,
    ),
    verb_job(
        list_op,
        name="list_backfills",
        description="The queue and the history of a pipeline's backfills. The same as `rosetta backfill list`.",
        picker=PIPELINES,
    ),
]
