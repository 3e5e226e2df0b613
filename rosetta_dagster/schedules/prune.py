"""The daily removal of old ticks, events, runs, files and observations."""

# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from dagster import (
    Config,
    DefaultScheduleStatus,
    In,
    MetadataValue,
    Nothing,
    OpExecutionContext,
    ScheduleDefinition,
    in_process_executor,
    job,
    op,
)
from pydantic import Field

from rosetta_dagster.assets.snapshot import snapshot_of_rows
from rosetta_dagster.assets.specs import asset_specs
from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.monitoring.retention import ROWS_AT_ONCE, SERIES, prune_series
from rosetta_dagster.resources import dagster_storage
from rosetta_dagster.resources.catalog import catalog_session, record_job
from rosetta_dagster.resources.catalog_rows import read_catalog_rows


class PruneConfig(Config):
    """How old things may grow. Observations in the config database have settings of their own."""

    event_days: int = Field(
        default=3, ge=1, description="Asset events, beyond the newest 60 of each asset; older ones are thinned."
    )
    run_days: int = Field(default=30, ge=1, description="Finished runs with their events.")
    tick_days: int = Field(default=31, ge=1, description="Ticks of sensors and schedules that exist no more.")
    file_days: int = Field(default=14, ge=1, description="Files that runs and ticks have left.")


@op(name="prune_config_database")
def prune_catalog_op(context: OpExecutionContext) -> None:
    removed: dict[str, int] = {}
    with engine_outcome():
        for series in SERIES:
            removed[series.table] = 0
            count = ROWS_AT_ONCE
            while count >= ROWS_AT_ONCE:
                with catalog_session() as session:
                    count = prune_series(session, series)
                removed[series.table] += count
    context.add_output_metadata({"result": f"{sum(removed.values())} rows removed", **removed})


@op(name="prune_dagster_storage", ins={"after": In(Nothing)})
def prune_dagster_op(context: OpExecutionContext, config: PruneConfig) -> None:
    with engine_outcome(), catalog_session() as session:
        rows = read_catalog_rows(session)
    known = [spec.key for spec in asset_specs(snapshot_of_rows(rows.pipelines, rows.tables, rows.fingerprint))]
    instance = context.instance
    forgotten = dagster_storage.forget_assets(instance, known)
    context.add_output_metadata(
        {
            "events": dagster_storage.prune_events(instance, config.event_days),
            "runs": dagster_storage.prune_runs(instance, config.run_days),
            "ticks": dagster_storage.prune_ticks(instance, config.tick_days),
            "files": dagster_storage.prune_files(instance, config.file_days),
            "assets forgotten": MetadataValue.json([key.to_user_string() for key in forgotten]),
        }
    )
    with engine_outcome(), catalog_session() as session:
        record_job(session, "prune")


@job(
    name="prune",
    executor_def=in_process_executor,
    tags={"dagster/max_runtime": "3600"},
    description="Removes old observations from the config database, and from Dagster's storage what Dagster never "
    "removes by itself. Safe to launch at any time.",
)
def prune_job() -> None:
    prune_dagster_op(prune_catalog_op())


prune = ScheduleDefinition(
    name="prune",
    job=prune_job,
    cron_schedule="20 3 * * *",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Each night at 03:20 UTC.",
)
