"""Jobs that compare a pipeline's source with its destinations, and repair what differs."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    Config,
    DefaultScheduleStatus,
    Failure,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    RunRequest,
    ScheduleEvaluationContext,
    TableColumn,
    TableRecord,
    TableSchema,
    in_process_executor,
    job,
    op,
    schedule,
)
from pydantic import Field

from rosetta_dagster.assets.specs import pipeline_key
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import PIPELINES, one_at_a_time
from rosetta_dagster.resources.catalog import catalog_engine

RECONCILIATION = "reconciliation"
"""Name of the check on a pipeline's asset."""

_COLUMNS = ("destination", "target", "outcome", "source_rows", "target_rows", "changed", "missing", "extra", "reason")
_LISTED_TABLES = 200


class SelectionConfig(Config):
    """What to compare; all of it by default."""

    tables: list[str] = Field(
        default=[], description="Patterns schema.table of source or target tables, e.g. public.orders. Empty: all."
    )
    destinations: list[str] = Field(default=[], description="Names of destinations. Empty: all of the pipeline.")
    wait_seconds: float = Field(
        default=60.0, description="How long to wait for a destination that is behind, in seconds, 1 to 86400."
    )


class RepairConfig(SelectionConfig):
    """What to compare and repair. It writes at the destination: it is asked for twice."""

    dry_run: bool = Field(
        default=True,
        description="On: compare, and only say which rows would be fetched again. Off: fetch them, delete rows that "
        "the source does not have, and compare again.",
    )


def compare_now(pipeline: str, config: SelectionConfig | None = None) -> Mapping[str, Any]:
    """Compare a pipeline's sides and return the report as the command line prints it with --json."""
    from cdc_runner.services.verify import verify_pipeline

    with engine_outcome():
        return verify_pipeline(catalog_engine(), _request(pipeline, config or SelectionConfig())).as_json()


def _request(pipeline: str, config: SelectionConfig) -> Any:
    from cdc_runner.services.verify import Request

    # The launchpad does not check bounds.
    if not 1 <= config.wait_seconds <= 86_400:
        raise Failure("wait_seconds must be between 1 and 86400", allow_retries=False)
    return Request(pipeline, tuple(config.tables), tuple(config.destinations), config.wait_seconds)


def report_metadata(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the pages show of a report: numbers, tables, keys; never values of rows."""
    tables: Sequence[Mapping[str, Any]] = report["tables"]
    worst = sorted(tables, key=lambda one: one["outcome"] == "EQUAL")[:_LISTED_TABLES]
    records = [
        TableRecord({name: str(one[name] if one[name] is not None else "") for name in _COLUMNS}) for one in worst
    ]
    keys = {
        f"{one['destination']}: {one['target']}": {"key": one["key"], **one["samples"], "ranges": one["ranges"]}
        for one in tables
        if one["samples"]
    }
    return {
        "position": report["position"] or "none",
        "rows compared": sum(one["source_rows"] or 0 for one in tables),
        "rows changed": sum(one["changed"] for one in tables),
        "rows missing": sum(one["missing"] for one in tables),
        "rows extra": sum(one["extra"] for one in tables),
        "seconds": float(report["seconds"]),
        "tables": MetadataValue.table(
            records, schema=TableSchema(columns=[TableColumn(name, "string") for name in _COLUMNS])
        ),
        **({"differing keys": MetadataValue.json(keys)} if keys else {}),
        **({"PROBLEM": report["problem"]} if report["problem"] else {}),
    }


def summary(report: Mapping[str, Any]) -> str:
    """Return a report in one sentence."""
    tables: Sequence[Mapping[str, Any]] = report["tables"]
    different = [one["target"] for one in tables if one["outcome"] == "DIFFERENT"]
    if different:
        return f"{len(different)} of {len(tables)} tables differ: {', '.join(different[:5])}"
    left = [f"{one['target']}: {one['reason']}" for one in tables if one["outcome"] not in ("EQUAL", "SKIPPED")]
    if report["problem"] or left:
        return f"not everything could be compared: {report['problem'] or '; '.join(left[:3])}"
    return f"{len(tables)} tables are equal at {report['position']}"


def severity(report: Mapping[str, Any]) -> AssetCheckSeverity:
    """Return how bad a failed comparison is: rows that differ need a hand, an impossible comparison needs a look."""
    return AssetCheckSeverity.ERROR if report["outcome"] == "DIFFERENT" else AssetCheckSeverity.WARN


def _evaluation(pipeline: str, report: Mapping[str, Any]) -> AssetCheckEvaluation:
    return AssetCheckEvaluation(
        asset_key=pipeline_key(pipeline),
        check_name=RECONCILIATION,
        passed=report["outcome"] == "EQUAL",
        description=summary(report),
        severity=severity(report),
        metadata=report_metadata(report),
    )


@op(name="compare")
def verify_op(context: OpExecutionContext, config: SelectionConfig) -> None:
    name = context.partition_key
    report = compare_now(name, config)
    if not config.tables and not config.destinations:
        # A part of a pipeline says nothing about the whole.
        context.instance.report_runless_asset_event(_evaluation(name, report))
    context.add_output_metadata({"result": summary(report), **report_metadata(report)})
    if report["outcome"] != "EQUAL":
        raise Failure(summary(report), report_metadata(report), allow_retries=False)


@op(name="repair_rows")
def repair_op(context: OpExecutionContext, config: RepairConfig) -> None:
    from cdc_runner.services.verify import repair_pipeline

    request = _request(context.partition_key, config)
    with engine_outcome():
        report = repair_pipeline(catalog_engine(), request, dry_run=config.dry_run).as_json()
    planned = sum(report["planned_keys"].values())
    done = f"{report['upserted_rows']} rows written, {report['deleted_rows']} deleted"
    last = report["after"] or report["before"]
    context.add_output_metadata(
        {
            "result": f"dry run: {planned} rows would be fetched again" if config.dry_run else done,
            "planned": MetadataValue.json(report["planned_keys"]),
            **({"NOT REPAIRED": MetadataValue.json(report["refused"])} if report["refused"] else {}),
            **report_metadata(last),
        }
    )
    if not config.dry_run and report["outcome"] != "EQUAL":
        raise Failure(f"after the repair: {summary(last)}", report_metadata(last), allow_retries=False)


_TAGS = {"dagster/max_runtime": "86400"}


@job(
    partitions_def=PIPELINES,
    config=one_at_a_time(PIPELINES, "compare"),
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Compares every row of a pipeline's source and destinations at one position while the stream flows; "
    "the run fails when something differs or could not be compared. The same as `rosetta verify`.",
)
def verify() -> None:
    verify_op()


@job(
    partitions_def=PIPELINES,
    config=one_at_a_time(PIPELINES, "compare"),
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Fetches rows that differ again from the source, deletes those that it does not have, and compares "
    "again, while the stream flows. A dry run unless told otherwise. The same as `rosetta repair`.",
)
def repair() -> None:
    repair_op()


@schedule(
    name="verify_daily",
    job=verify,
    cron_schedule="30 2 * * *",
    default_status=DefaultScheduleStatus.STOPPED,
    description="Each night at 02:30 UTC the job verify for every pipeline. Off until it is turned on: it reads every "
    "table on both sides.",
)
def verify_daily(context: ScheduleEvaluationContext) -> Iterator[RunRequest]:
    stamp = context.scheduled_execution_time.date().isoformat()
    for name in PIPELINES.get_partition_keys(dynamic_partitions_store=context.instance):
        yield RunRequest(run_key=f"{stamp} {name}", partition_key=name)


RECONCILE_JOBS: list[JobDefinition] = [verify, repair]
