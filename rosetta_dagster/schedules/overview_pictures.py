"""The pictures of the overview, drawn each hour, and whenever the job is launched."""

# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from datetime import timedelta

from dagster import (
    AssetMaterialization,
    DefaultScheduleStatus,
    MetadataValue,
    OpExecutionContext,
    ScheduleDefinition,
    in_process_executor,
    job,
    op,
)

from rosetta_dagster.assets.overview import PICTURES_KEY
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.monitoring.history import read_history
from rosetta_dagster.resources.catalog import catalog_session, record_job
from rosetta_dagster.resources.dagster_storage import thin_events

_KEPT = 6
"""Newest drawings; of older ones the last of each day stays. The asset's page loads all of a week."""


@op(name="draw")
def draw_op(context: OpExecutionContext) -> None:
    from rosetta_dagster.assets import pictures

    with engine_outcome(), catalog_session() as session:
        history = read_history(session)
    drawn = {
        "rows per day": pictures.rows_per_day(history),
        "lag": pictures.lag_over_time(history),
        "slot WAL": pictures.wal_over_time(history),
        "credits per day": pictures.credits_per_day(history),
    }
    metadata = {name: MetadataValue.md(picture) for name, picture in drawn.items() if picture is not None}
    result = f"{len(metadata)} pictures" if metadata else "nothing was observed yet"
    context.log_event(AssetMaterialization(asset_key=PICTURES_KEY, description=result, metadata=metadata))
    thin_events(context.instance, [PICTURES_KEY], kept=_KEPT, then_one_each=timedelta(days=1))
    context.add_output_metadata({"result": result, "pictures": MetadataValue.asset(PICTURES_KEY)})
    with engine_outcome(), catalog_session() as session:
        record_job(session, "overview_pictures")


@job(
    name="overview_pictures",
    executor_def=in_process_executor,
    tags={"dagster/max_runtime": "300"},
    description="Draws the pictures of the asset overview_pictures: rows and credits by day, lag and WAL over a day.",
)
def overview_pictures_job() -> None:
    draw_op()


overview_pictures = ScheduleDefinition(
    name="overview_pictures",
    job=overview_pictures_job,
    cron_schedule="5 * * * *",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Each hour, at five minutes past.",
)
