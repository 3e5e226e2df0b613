"""Jobs that start, pause, refresh and remove a pipeline; the launchpad's partition picker offers the names."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from dagster import Config, JobDefinition, MetadataValue, OpExecutionContext, in_process_executor, job, op
from pydantic import Field

from cdc_runner.catalog.pipelines import DesiredStatus
from cdc_runner.catalog.repositories import get_pipeline
from rosetta_dagster.assets.events import pipeline_summary
from rosetta_dagster.assets.specs import pipeline_key
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import PIPELINES, one_at_a_time
from rosetta_dagster.resources.catalog import catalog_session
from rosetta_dagster.resources.pipeline_health import PipelineHealth, read_health

_LISTED_TABLES = 200


class RefreshConfig(Config):
    """A refresh copies every table again: it is asked for twice."""

    dry_run: bool = Field(
        default=True,
        description="On: only say what would be copied again. Off: copy every table of the pipeline again, from a new "
        "snapshot of the source, and continue the change stream from there.",
    )


class RemoveConfig(Config):
    """A removal drops the slot at the source: it is asked for twice."""

    dry_run: bool = Field(
        default=True, description="On: only say what would be removed. Off: remove the pipeline; it must be paused."
    )
    keep_slot: bool = Field(
        default=False,
        description="On: leave slot and publication at the source, and list them. A slot that nobody reads keeps WAL "
        "until it is dropped.",
    )


def _change_status(context: OpExecutionContext, status: DesiredStatus) -> None:
    from cdc_runner.services import pipeline as service

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        changed = service.change_status(session, name, status)
    with engine_outcome(), catalog_session() as session:
        health = next(one for one in read_health(session) if one.pipeline == name)
    context.add_output_metadata(
        {
            "result": f"{name} is set to {status}" if changed else f"{name} was set to {status} already",
            "state now": pipeline_summary(health),
            "pipeline": MetadataValue.asset(pipeline_key(name)),
        }
    )


def _health_of(name: str) -> PipelineHealth:
    with engine_outcome(), catalog_session() as session:
        get_pipeline(session, name)
        return next(one for one in read_health(session) if one.pipeline == name)


def _table_list(health: PipelineHealth) -> MetadataValue:
    lines = [f"- `{one.target_schema}.{one.target_table}` in {one.destination}" for one in health.tables]
    rest = [f"- and {len(lines) - _LISTED_TABLES} more"] if len(lines) > _LISTED_TABLES else []
    return MetadataValue.md("\n".join(lines[:_LISTED_TABLES] + rest) or "none known yet")


@op(name="start")
def start_op(context: OpExecutionContext) -> None:
    _change_status(context, "START")


@op(name="pause")
def pause_op(context: OpExecutionContext) -> None:
    _change_status(context, "PAUSE")


@op(name="restart")
def restart_op(context: OpExecutionContext) -> None:
    from cdc_runner.services import pipeline as service

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        service.restart_pipeline(session, name)
    result = f"{name} ends after its present batch and goes on within seconds in a new process"
    context.add_output_metadata({"result": result, "pipeline": MetadataValue.asset(pipeline_key(name))})


@op(name="refresh")
def refresh_op(context: OpExecutionContext, config: RefreshConfig) -> None:
    if not config.dry_run:
        _change_status(context, "REFRESH")
        return
    health = _health_of(context.partition_key)
    result = f"dry run: {len(health.tables)} tables would be copied again; nothing was changed"
    context.add_output_metadata({"result": result, "tables": _table_list(health)})


@op(name="remove")
def remove_op(context: OpExecutionContext, config: RemoveConfig) -> None:
    name = context.partition_key
    if config.dry_run:
        health = _health_of(name)
        slot = "stay" if config.keep_slot else "are dropped"
        result = f"dry run: {name} would be removed; slot and publication {slot}, the tables below stay as they are"
        context.add_output_metadata({"result": result, "tables": _table_list(health)})
        return
    from cdc_runner.services import pipeline as service

    with engine_outcome(), catalog_session() as session:
        removal = service.remove_pipeline(session, name, keep_slot=config.keep_slot)
    context.add_output_metadata(
        {
            "result": f"{name} is removed; {len(removal.left_over)} things are left over",
            "removed": MetadataValue.json(removal.removed),
            "LEFT OVER": MetadataValue.json(removal.left_over),
            "kept": MetadataValue.json(removal.kept),
        }
    )


# Only one run of a pipeline at a time: dagster.yaml limits runs of one partition.
_TAGS = {"dagster/max_runtime": "120"}


@job(
    partitions_def=PIPELINES,
    config=one_at_a_time(PIPELINES, "change"),
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Lets a pipeline replicate. The runner starts it within seconds; one in ERROR is tried again.",
)
def start_pipeline() -> None:
    start_op()


@job(
    partitions_def=PIPELINES,
    config=one_at_a_time(PIPELINES, "change"),
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Stops a pipeline after its present batch; it continues where it was. Its slot keeps WAL at the source "
    "meanwhile.",
)
def pause_pipeline() -> None:
    pause_op()


@job(
    partitions_def=PIPELINES,
    config=one_at_a_time(PIPELINES, "change"),
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Ends a pipeline's process after its present batch and starts another; nothing is copied again.",
)
def restart_pipeline() -> None:
    restart_op()


@job(
    partitions_def=PIPELINES,
    config=one_at_a_time(PIPELINES, "change"),
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Copies every table of a pipeline again from a new snapshot. A dry run unless told otherwise.",
)
def refresh_pipeline() -> None:
    refresh_op()


@job(
    partitions_def=PIPELINES,
    config=one_at_a_time(PIPELINES, "change"),
    executor_def=in_process_executor,
    tags=_TAGS,
    description="Removes a paused pipeline with its slot and publication at the source; target tables stay. A dry run "
    "unless told otherwise.",
)
def remove_pipeline() -> None:
    remove_op()


PIPELINE_JOBS: list[JobDefinition] = [
    start_pipeline, pause_pipeline, restart_pipeline, refresh_pipeline, remove_pipeline,
]  # fmt: skip
