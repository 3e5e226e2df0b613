"""Sensor that keeps a runner alive."""

from __future__ import annotations

import time

from dagster import (
    DagsterRunStatus,
    DefaultSensorStatus,
    RunConfig,
    RunRequest,
    RunsFilter,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from cdc_runner.catalog.settings import get_setting
from cdc_runner.errors import RosettaError
from rosetta_dagster.jobs.runner import StartRunnerConfig, start_runner
from rosetta_dagster.resources.catalog import catalog_session, record_job
from rosetta_dagster.resources.runner_heartbeats import read_runners
from rosetta_dagster.resources.runner_process import living
from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.outcome import failed_tick
from rosetta_dagster.sensors.runner_policy import Incident, decide

_UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
]

_ON_BEHALF_OF_THE_SENSOR = {"start_runner_process": StartRunnerConfig(keep_alive=False)}


@sensor(
    job=start_runner,
    minimum_interval_seconds=interval_for(10),
    default_status=DefaultSensorStatus.RUNNING,
    description="Starts the replication runner when no heartbeat of one is in the config database: at once, then with "
    "growing pauses. Turn the setting runner_auto_start off when a service manager runs `rosetta runner`.",
)
def runner_alive(context: SensorEvaluationContext) -> SensorResult | SkipReason:
    try:
        with catalog_session() as session:
            runners, auto_start = read_runners(session), bool(get_setting(session, "runner_auto_start"))
            record_job(session, "runner_alive")
    except RosettaError as error:
        return failed_tick("runner_alive", error)
    in_progress = RunsFilter(job_name=start_runner.name, statuses=_UNFINISHED)
    alive = living(runners)
    busy = not alive and bool(context.instance.get_run_ids(in_progress, limit=1))
    decision = decide(
        alive,
        runners[0] if runners else None,
        auto_start=auto_start,
        start_in_progress=busy,
        incident=Incident.from_cursor(context.cursor),
        now=time.time(),
    )
    if decision.run_key is None:
        return SensorResult(skip_reason=decision.status, cursor=decision.incident.to_cursor())
    request = RunRequest(run_key=decision.run_key, run_config=RunConfig(_ON_BEHALF_OF_THE_SENSOR))
    return SensorResult([request], cursor=decision.incident.to_cursor())
