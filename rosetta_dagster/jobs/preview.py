"""The job that shows what a SELECT gives over sampled rows of a source."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

import csv
import sys
from typing import Any

from dagster import Config, DagsterEventType, Failure, MetadataValue, OpExecutionContext, op
from pydantic import Field

from cdc_runner.catalog.environment import read_environment
from cdc_runner.catalog.settings import get_setting
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import SOURCES
from rosetta_dagster.jobs.verb import table, verb_job
from rosetta_dagster.resources.catalog import catalog_session

_SHOWN_COLUMNS = 50
_SHOWN_CHARACTERS = 200


class PreviewConfig(Config):
    """A SELECT. It stays in the run for ever: write no secret into it."""

    sql: str = Field(
        description="One SELECT in DuckDB's dialect; the source's tables stand without schema, e.g. SELECT region, "
        "count(*) FROM orders GROUP BY region. Masked columns are masked."
    )
    sample_rows: int = Field(default=1000, description="Rows read of each table that it names, 10,000 at most.")
    use_cache: bool = Field(default=True, description="On: a result of the last five minutes will do.")


@op(name="run_statement")
def preview_op(context: OpExecutionContext, config: PreviewConfig) -> None:
    from cdc_runner.services.preview import plan_preview
    from cdc_runner.services.preview_run import PreviewRequest, run_preview

    with engine_outcome():
        environment = read_environment()
        with catalog_session() as session:
            plan = plan_preview(session, context.partition_key)
            at_once = int(get_setting(session, "preview_at_once"))
        request = PreviewRequest(
            plan, config.sql, config.sample_rows, config.use_cache, at_once, environment.home, environment.redis_url
        )
        # A termination of the run is an exception here, which ends the statement.
        outcome = run_preview(request, lambda before: context.log.info(f"{before} statements are before this one"))
    _report(context, outcome.as_json())


def _report(context: OpExecutionContext, found: dict[str, Any]) -> None:
    """Show a result, or end the run with the reason why there is none.

    Raises:
        Failure: it did not complete.
    """
    facts = {
        "state": found["state"],
        "tables": ", ".join(found["tables"]) or "none",
        "seconds": found["seconds"],
        "peak megabytes": round(found["peak_bytes"] / 1024**2),
        "seconds waited": found["waited_seconds"],
        "cache": _cache(found),
    }
    if found["state"] != "COMPLETED":
        raise Failure(f"{found['state']}: {found['reason']}", facts, allow_retries=False)
    count = f"{len(found['rows'])} rows{', more were cut off' if found['truncated'] else ''}"
    context.add_output_metadata(
        {
            "result": f"{count} of {len(found['columns'])} columns",
            "rows": _rows(found),
            "columns": table(found["columns"], ("name", "type")),
            **_csv(context, found),
            **facts,
        }
    )


def _cache(found: dict[str, Any]) -> str:
    if found["cached_seconds"] is not None:
        return f"computed {found['cached_seconds']:.0f} s ago, and kept for five minutes"
    if found["cache_problem"]:
        return f"none: {found['cache_problem']}"
    return "computed now"


def _rows(found: dict[str, Any]) -> MetadataValue:
    # Two columns of one name would be one: the place tells them apart.
    names = [column["name"] for column in found["columns"][:_SHOWN_COLUMNS]]
    shown = [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, 1)]
    rows = [
        {name: "NULL" if value is None else value[:_SHOWN_CHARACTERS] for name, value in zip(shown, row, strict=False)}
        for row in found["rows"]
    ]
    return table(rows, shown)


def _csv(context: OpExecutionContext, found: dict[str, Any]) -> dict[str, MetadataValue]:
    """Write the rows to the operation's output, which the pages offer for download, and return the link to it."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(column["name"] for column in found["columns"])
    writer.writerows(found["rows"])
    sys.stdout.flush()
    captured = context.instance.all_logs(context.run_id, of_type=DagsterEventType.LOGS_CAPTURED)
    if not captured:
        return {}
    key = captured[-1].get_dagster_event().logs_captured_data.file_key
    logs = context.instance.compute_log_manager.get_log_metadata([context.run_id, "compute_logs", key])
    if logs.stdout_download_url:
        return {"CSV": MetadataValue.url(logs.stdout_download_url)}
    return {"CSV": MetadataValue.path(logs.stdout_location)} if logs.stdout_location else {}


preview = verb_job(
    preview_op,
    name="preview",
    picker=SOURCES,
    description="Shows what a SELECT gives over the first rows of a source's tables, in a process that can reach "
    "nothing else; nothing is changed. Terminate the run to cancel it.",
    tags={"rosetta/sandbox": "preview", "dagster/priority": "-1"},
)

PREVIEW_JOBS = [preview]
