"""Puts the control plane together: assets of a catalog, jobs, sensors."""

from __future__ import annotations

from dagster import Definitions, MetadataValue, in_process_executor

from cdc_runner.catalog.environment import read_environment
from cdc_runner.errors import RosettaError
from rosetta_dagster.assets.overview import overview_spec, pictures_spec
from rosetta_dagster.assets.snapshot import CatalogSnapshot, current_snapshot, snapshot_of_rows
from rosetta_dagster.assets.specs import asset_specs
from rosetta_dagster.checks.dead_letters import build_dead_letter_checks
from rosetta_dagster.checks.pipelines import build_pipeline_checks
from rosetta_dagster.checks.reconciliation import build_reconciliation_checks
from rosetta_dagster.jobs.backfills import BACKFILL_JOBS
from rosetta_dagster.jobs.configuration import CONFIGURATION_JOBS
from rosetta_dagster.jobs.dead_letters import DEAD_LETTER_JOBS
from rosetta_dagster.jobs.destinations import DESTINATION_JOBS
from rosetta_dagster.jobs.notifications import NOTIFICATION_JOBS
from rosetta_dagster.jobs.pipeline_edit import PIPELINE_EDIT_JOBS
from rosetta_dagster.jobs.pipelines import PIPELINE_JOBS
from rosetta_dagster.jobs.presets import PRESET_JOBS
from rosetta_dagster.jobs.preview import PREVIEW_JOBS
from rosetta_dagster.jobs.reconcile import RECONCILE_JOBS, verify_daily
from rosetta_dagster.jobs.rename import RENAME_JOBS
from rosetta_dagster.jobs.reports import REPORT_JOBS
from rosetta_dagster.jobs.runner import start_runner, stop_runner
from rosetta_dagster.jobs.settings import SETTING_JOBS
from rosetta_dagster.jobs.sources import SOURCE_JOBS
from rosetta_dagster.jobs.tags import TAG_JOBS
from rosetta_dagster.resources.catalog import catalog_session
from rosetta_dagster.resources.catalog_rows import read_catalog_rows
from rosetta_dagster.schedules.credit_monitor import credit_monitor, credit_monitor_job
from rosetta_dagster.schedules.overview_pictures import overview_pictures, overview_pictures_job
from rosetta_dagster.schedules.prune import prune, prune_job
from rosetta_dagster.sensors.backfill_queue import backfill_queue
from rosetta_dagster.sensors.notification_sender import notification_sender
from rosetta_dagster.sensors.pipeline_refresh_check import build_pipeline_refresh_check
from rosetta_dagster.sensors.replication_monitor import replication_monitor
from rosetta_dagster.sensors.run_failures import run_failures
from rosetta_dagster.sensors.runner_alive import runner_alive
from rosetta_dagster.sensors.schema_monitor import schema_monitor
from rosetta_dagster.sensors.system_metric_collection import system_metric_collection
from rosetta_dagster.sensors.table_list_refresh import table_list_refresh
from rosetta_dagster.sensors.wal_monitor import wal_monitor
from rosetta_dagster.sensors.worker_health_check import worker_health_check

_JOBS = [
    start_runner,
    stop_runner,
    *PIPELINE_JOBS,
    *DEAD_LETTER_JOBS,
    *PIPELINE_EDIT_JOBS,
    *SOURCE_JOBS,
    *DESTINATION_JOBS,
    *SETTING_JOBS,
    *NOTIFICATION_JOBS,
    *CONFIGURATION_JOBS,
    *RECONCILE_JOBS,
    *PREVIEW_JOBS,
    *REPORT_JOBS,
    *PRESET_JOBS,
    *TAG_JOBS,
    *RENAME_JOBS,
    *BACKFILL_JOBS,
    credit_monitor_job,
    overview_pictures_job,
    prune_job,
]

_SNAPSHOT_FILE = "dagster_catalog.json"


def fetch_catalog() -> CatalogSnapshot:
    """Return the catalog, or its last good copy while the config database is away."""
    try:
        home = read_environment().home
    except RosettaError as error:
        return CatalogSnapshot(problem=str(error))
    return current_snapshot(_read, home / _SNAPSHOT_FILE)


def build_definitions(snapshot: CatalogSnapshot) -> Definitions:
    """Return everything that the Dagster pages show of a catalog."""
    return Definitions(
        assets=[*asset_specs(snapshot), overview_spec(snapshot), pictures_spec()],
        asset_checks=[
            *build_pipeline_checks(snapshot),
            *build_reconciliation_checks(snapshot),
            *build_dead_letter_checks(snapshot),
        ],
        jobs=_JOBS,
        sensors=[
            runner_alive,
            replication_monitor,
            table_list_refresh,
            wal_monitor,
            schema_monitor,
            notification_sender,
            backfill_queue,
            run_failures,
            worker_health_check,
            system_metric_collection,
            build_pipeline_refresh_check(snapshot.fingerprint),
        ],
        # Everything is short and in one step: a process for the step would only cost seconds.
        executor=in_process_executor,
        schedules=[verify_daily, prune, credit_monitor, overview_pictures],
        metadata=_location_metadata(snapshot),
    )


def _read() -> CatalogSnapshot:
    with catalog_session() as session:
        rows = read_catalog_rows(session)
    return snapshot_of_rows(rows.pipelines, rows.tables, rows.fingerprint)


def _location_metadata(snapshot: CatalogSnapshot) -> dict[str, MetadataValue | str]:
    metadata: dict[str, MetadataValue | str] = {"pipelines": MetadataValue.int(len(snapshot.pipelines))}
    metadata["catalog"] = (
        MetadataValue.timestamp(snapshot.taken_at) if snapshot.taken_at else "never read: there are no assets yet"
    )
    if snapshot.problem:
        metadata["PROBLEM"] = f"the pages show an older catalog: {snapshot.problem}"
    return metadata
