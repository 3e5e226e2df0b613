"""Sensor that watches the WAL which the sources keep for our slots."""

from __future__ import annotations

from dagster import DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor

from cdc_runner.errors import RosettaError
from rosetta_dagster.monitoring.wal import failed_entirely, store_results, summary, watch, watched_slots
from rosetta_dagster.resources.catalog import catalog_session, record_job
from rosetta_dagster.sensors.cadence import interval_for


@sensor(
    minimum_interval_seconds=interval_for(60),
    default_status=DefaultSensorStatus.RUNNING,
    description="Each minute, every source at once: slot, publication and the WAL kept for us, against the limits in "
    "the settings wal_warning_megabytes and wal_error_megabytes. Shown on the pipeline's asset.",
)
def wal_monitor(context: SensorEvaluationContext) -> SkipReason:
    try:
        with catalog_session() as session:
            slots, thresholds = watched_slots(session)
        # Outside of any transaction: a source may take its time.
        results = watch(slots, thresholds)
        with catalog_session() as session:
            store_results(session, results)
            record_job(session, "wal_monitor", failed_entirely(results))
    except RosettaError as error:
        return SkipReason(str(error))
    return SkipReason(summary(results))
