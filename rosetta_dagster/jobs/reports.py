"""Jobs that only look: state of everything, of one pipeline and its tables, rows by day, sources, destinations."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from collections.abc import Mapping, Sequence
from typing import Any

from dagster import Config, MetadataValue, OpExecutionContext, op
from pydantic import Field

from cdc_runner.catalog.environment import read_environment
from cdc_runner.catalog.settings import get_setting
from rosetta_dagster.assets.specs import pipeline_key
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import PIPELINES
from rosetta_dagster.jobs.verb import fields, table, verb_job
from rosetta_dagster.resources.catalog import catalog_session

_DESTINATIONS = (
    "pipeline", "destination", "state", "load", "lag ms", "lag bytes", "rows applied", "dead letters", "last error",
)  # fmt: skip


class FlowConfig(Config):
    """How far back."""

    days: int = Field(default=7, description="The present day and those before it, 30 at most.")


def destination_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each destination of `rosetta status`, those with an error first."""
    rows = [
        {
            "pipeline": pipeline["pipeline"],
            "destination": one["destination"],
            "state": one["state"],
            "load": _load(one["load"]),
            "lag ms": one["lag_ms"],
            "lag bytes": one["lag_bytes"],
            "rows applied": one["rows_applied"],
            "dead letters": one["dead_letters"],
            "last error": one["last_error"] if one["state"] == "ERROR" else None,
        }
        for pipeline in report["pipelines"]
        for one in pipeline["destinations"]
    ]
    return sorted(rows, key=lambda row: (row["state"] != "ERROR", row["pipeline"], row["destination"]))


def _load(load: Mapping[str, Any]) -> str:
    done, tables = load["tables"]["streaming"], load["tables"]
    wanted = sum(tables.values()) - tables["excluded"]
    percent = "" if load["percent"] is None or done == wanted else f", {load['percent']} %"
    return f"{done} of {wanted} tables{percent}"


def _table_errors(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"pipeline": pipeline["pipeline"], "destination": one["destination"], **error}
        for pipeline in report["pipelines"]
        for one in pipeline["destinations"]
        for error in one["table_errors"]
    ]


@op(name="read_status")
def status_op(context: OpExecutionContext) -> None:
    from cdc_runner.sandbox.turns import preview_queue
    from cdc_runner.services.status import read_status

    with engine_outcome(), catalog_session() as session:
        report = read_status(session)
        queue = preview_queue(read_environment().home, int(get_setting(session, "preview_at_once")))
    rows = destination_rows(report)
    bad = sum(row["state"] == "ERROR" for row in rows)
    context.add_output_metadata(
        {
            "result": f"{len(report['pipelines'])} pipelines, {len(rows)} destinations, {bad} of them in error",
            "destinations": table(rows, _DESTINATIONS),
            "table errors": table(_table_errors(report), ("pipeline", "destination", "table", "error")),
            "previews on this host": f"{queue.running} run, {queue.waiting} wait for their turn",
            "runners": table(report["runners"], ("runner", "host", "pid", "state", "heartbeat_at", "last_error")),
        }
    )


@op(name="read_pipeline")
def show_pipeline_op(context: OpExecutionContext) -> None:
    from cdc_runner.services.pipeline import describe_pipeline
    from cdc_runner.services.status import read_status

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        found = describe_pipeline(session, name)
        report = read_status(session, name)
    context.add_output_metadata(
        {
            "result": f"{name} is {found['state']}, set to {found['status']}",
            "pipeline": MetadataValue.asset(pipeline_key(name)),
            **fields({field: found[field] for field in ("source", "settings", "last_refresh_at", "last_error")}),
            "destinations": table(destination_rows(report), _DESTINATIONS[1:]),
            "declared": table(
                _of_destinations(found, "declared_tables"), ("destination", "table", "target", "shape", "tags")
            ),
            "tables": table(
                _of_destinations(found, "tables"),
                ("destination", "source", "target", "state", "loaded_rows", "applied_rows", "reason", "error"),
            ),
        }
    )


def _of_destinations(found: Mapping[str, Any], part: str) -> Sequence[Mapping[str, Any]]:
    return [{"destination": one["destination"], **row} for one in found["destinations"] for row in one[part]]


@op(name="read_flow")
def show_flow_op(context: OpExecutionContext, config: FlowConfig) -> None:
    from cdc_runner.services.flow import read_flow

    with engine_outcome(), catalog_session() as session:
        flow = read_flow(session, context.partition_key, config.days)
    days = sorted({day for one in flow for day in one["days"]}, reverse=True)
    rows = [
        {"table": one["table"], "destination": one["destination"], "last 5 min": one["last_5_minutes"],
         **{day: one["days"].get(day, 0) for day in days}}
        for one in flow
    ]  # fmt: skip
    total = sum(one["rows"] for one in flow)
    context.add_output_metadata(
        {
            "result": f"{total} rows of {len(flow)} tables in {config.days} days",
            "rows by day": table(rows, ("table", "destination", "last 5 min", *days)),
        }
    )


@op(name="read_sources")
def list_sources_op(context: OpExecutionContext) -> None:
    from cdc_runner.services.source import describe_sources

    with engine_outcome(), catalog_session() as session:
        rows = describe_sources(session)
    columns = ("name", "host", "port", "database", "slot", "tables", "capture_engine", "pipelines", "last_error")
    context.add_output_metadata({"result": f"{len(rows)} sources", "sources": table(rows, columns)})


@op(name="read_destinations")
def list_destinations_op(context: OpExecutionContext) -> None:
    from cdc_runner.services.destination import describe_destinations

    with engine_outcome(), catalog_session() as session:
        found = describe_destinations(session)
    known = {"name", "type", "stored_secrets", "pipelines", "last_checked_at", "last_error"}
    rows = [{**one, "options": ", ".join(f"{key}={one[key]}" for key in one if key not in known)} for one in found]
    columns = ("name", "type", "options", "pipelines", "last_checked_at", "last_error")
    context.add_output_metadata({"result": f"{len(rows)} destinations", "destinations": table(rows, columns)})


status = verb_job(
    status_op,
    name="status",
    description="Shows the state of every pipeline and destination: load, lag, rows, dead letters, errors; and the "
    "runners.",
)
show_pipeline = verb_job(
    show_pipeline_op,
    name="show_pipeline",
    picker=PIPELINES,
    description="Shows a pipeline: what it is to copy and how, and where each of its destinations and tables stands.",
)
show_flow = verb_job(
    show_flow_op,
    name="show_flow",
    picker=PIPELINES,
    description="Shows how many rows of each table a pipeline has applied, by day.",
)
list_sources = verb_job(list_sources_op, name="list_sources", description="Lists the sources.")
list_destinations = verb_job(list_destinations_op, name="list_destinations", description="Lists the destinations.")

REPORT_JOBS = [status, show_pipeline, show_flow, list_sources, list_destinations]
