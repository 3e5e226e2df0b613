"""Sensor that notes whether runners and pipelines do what is asked of them."""

from __future__ import annotations

from dagster import DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor

from cdc_runner.errors import RosettaError
from rosetta_dagster.monitoring.workers import assess, held_pipelines, store_health
from rosetta_dagster.resources.catalog import catalog_session, read_pipeline_states, read_runners, record_job
from rosetta_dagster.resources.runner_process import living
from rosetta_dagster.sensors.cadence import interval_for


@sensor(
    minimum_interval_seconds=interval_for(10),
    default_status=DefaultSensorStatus.RUNNING,
    description="Every 10 seconds: does a runner live, and is every wanted pipeline held by one and without an error? "
    "Changes are kept in the table worker_health_status.",
)
def worker_health_check(context: SensorEvaluationContext) -> SkipReason:
    try:
        with catalog_session() as session:
            health = assess(living(read_runners(session)), read_pipeline_states(session), held_pipelines(session))
            store_health(session, health)
            record_job(session, "worker_health_check")
    except RosettaError as error:
        return SkipReason(str(error))
    return SkipReason(health.line)
