"""Sensor that notes whether runners and pipelines do what is asked of them."""

from __future__ import annotations

import time

from dagster import DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor

from cdc_runner.catalog.notifications import sync_conditions
from cdc_runner.errors import RosettaError
from rosetta_dagster.monitoring.conditions import pipeline_conditions, worker_conditions
from rosetta_dagster.monitoring.job_health import job_conditions, read_jobs
from rosetta_dagster.monitoring.workers import assess, held_pipelines, store_health
from rosetta_dagster.resources.catalog import catalog_session, record_job
from rosetta_dagster.resources.pipeline_health import read_pipeline_states
from rosetta_dagster.resources.runner_heartbeats import read_runners
from rosetta_dagster.resources.runner_process import living
from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.outcome import failed_tick


@sensor(
    minimum_interval_seconds=interval_for(10),
    default_status=DefaultSensorStatus.RUNNING,
    description="Every 10 seconds: does a runner live, and is every wanted pipeline held by one and without an error? "
    "Changes are kept in the table worker_health_status. Also: do the other sensors and schedules tick, and work?",
)
def worker_health_check(context: SensorEvaluationContext) -> SkipReason:
    started = time.monotonic()
    try:
        with catalog_session() as session:
            alive, pipelines = living(read_runners(session)), read_pipeline_states(session)
            held = held_pipelines(session)
            health = assess(alive, pipelines, held)
            store_health(session, health)
            wanted = [one.pipeline for one in pipelines if one.wanted != "PAUSE"]
            workers = worker_conditions(runners=len(alive), wanted=wanted, held=held)
            sync_conditions(session, "runner:", workers)
            sync_conditions(session, "pipeline_error:", pipeline_conditions(pipelines))
            sync_conditions(session, "monitor:", job_conditions(read_jobs(session)))
            record_job(session, "worker_health_check", started=started, line=health.line)
    except RosettaError as error:
        return failed_tick("worker_health_check", error)
    return SkipReason(health.line)
