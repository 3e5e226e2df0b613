"""Sensor that measures this host."""

from __future__ import annotations

from functools import lru_cache

from dagster import DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor

from cdc_runner.errors import RosettaError
from rosetta_dagster.monitoring.machine import Machine, store_usage, usage_line
from rosetta_dagster.resources.catalog import catalog_session, read_pipeline_ids, read_runners, record_job
from rosetta_dagster.resources.runner_process import living
from rosetta_dagster.sensors.cadence import interval_for


@lru_cache(maxsize=1)
def _machine() -> Machine:
    return Machine()


@sensor(
    minimum_interval_seconds=interval_for(5),
    default_status=DefaultSensorStatus.RUNNING,
    description="Every 5 seconds: CPU and memory of this host, of the runner on it and of each pipeline, into the "
    "table system_metrics.",
)
def system_metric_collection(context: SensorEvaluationContext) -> SkipReason:
    try:
        with catalog_session() as session:
            usage = _machine().measure(living(read_runners(session)), read_pipeline_ids(session))
            store_usage(session, usage)
            record_job(session, "system_metric_collection")
    except RosettaError as error:
        return SkipReason(str(error))
    return SkipReason(usage_line(usage))
