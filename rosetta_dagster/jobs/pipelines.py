"""Jobs that start, pause and refresh a pipeline; the launchpad's partition picker offers the names."""

# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from dagster import Config, JobDefinition, MetadataValue, OpExecutionContext, in_process_executor, job, op
from pydantic import Field

from cdc_runner.catalog.pipelines import DesiredStatus, set_status
from rosetta_dagster.assets.events import pipeline_summary
from rosetta_dagster.assets.specs import pipeline_key
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import PIPELINES
from rosetta_dagster.resources.catalog import catalog_session, find_pipeline, read_health


class RefreshConfig(Config):
    """A refresh copies every table again: it is asked for twice."""

    dry_run: bool = Field(
        default=True,
        description="On: only say what would be copied again. Off: copy every table of the pipeline again, from a new "
        "snapshot of the source, and continue the change stream from there.",
    )


def _change_status(context: OpExecutionContext, status: DesiredStatus) -> None:
    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        changed = set_status(session, find_pipeline(session, name).id, status)
        health = next(one for one in read_health(session) if one.pipeline == name)
    context.add_output_metadata(
        {
            "result": f"{name} is set to {status}" if changed else f"{name} was set to {status} already",
            "state now": pipeline_summary(health),
            "pipeline": MetadataValue.asset(pipeline_key(name)),
        }
    )


@op(name="start")
def start_op(context: OpExecutionContext) -> None:
    _change_status(context, "START")


@op(name="pause")
def pause_op(context: OpExecutionContext) -> None:
    _change_status(context, "PAUSE")


@op(name="refresh")
def refresh_op(context: OpExecutionContext, config: RefreshConfig) -> None:
    if not config.dry_run:
        _change_status(context, "REFRESH")
        return
    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        find_pipeline(session, name)
        tables = next(one.tables for one in read_health(session) if one.pipeline == name)
    lines = [f"- `{one.target_schema}.{one.target_table}` in {one.destination}" for one in tables]
    context.add_output_metadata(
        {
            "result": f"dry run: {len(tables)} tables would be copied again; nothing was changed",
            "tables": MetadataValue.md("\n".join(lines) or "none known yet"),
        }
    )


# A tag and its limit in dagster.yaml keep two changes of one pipeline from running at once.
_TAGS = {"dagster/max_runtime": "120"}


@job(
    partitions_def=PIPELINES,
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Lets a pipeline replicate. The runner starts it within seconds; one in ERROR is tried again.",
)
def start_pipeline() -> None:
    start_op()


@job(
    partitions_def=PIPELINES,
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Stops a pipeline after its present batch; it continues where it was. Its slot keeps WAL at the source "
    "meanwhile.",
)
def pause_pipeline() -> None:
    pause_op()


@job(
    partitions_def=PIPELINES,
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Copies every table of a pipeline again from a new snapshot. A dry run unless told otherwise.",
)
def refresh_pipeline() -> None:
    refresh_op()


PIPELINE_JOBS: list[JobDefinition] = [start_pipeline, pause_pipeline, refresh_pipeline]
