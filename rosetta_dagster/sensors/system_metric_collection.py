"""Sensor that measures this host."""

from __future__ import annotations

import time
from functools import lru_cache

from dagster import DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor

from cdc_runner.errors import RosettaError
from rosetta_dagster.monitoring.machine import PIPELINE_PREFIX, Machine, store_usage, usage_line, with_pipelines
from rosetta_dagster.resources.catalog import catalog_session, read_pipeline_ids, record_job
from rosetta_dagster.resources.runner_heartbeats import read_runners
from rosetta_dagster.resources.runner_process import living
from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.outcome import failed_tick

_TICK_SECONDS = 5
PIPELINE_SECONDS = 30
"""Pipelines are kept less often: a hundred of them would write two million rows a day."""


@lru_cache(maxsize=1)
def _machine() -> Machine:
    return Machine()


@sensor(
    minimum_interval_seconds=interval_for(_TICK_SECONDS),
    default_status=DefaultSensorStatus.RUNNING,
    description="Every 5 seconds: CPU and memory of this host and of the runner on it; every 30 seconds also of each "
    "pipeline, with its lag and the WAL kept for it. In the table system_metrics.",
)
def system_metric_collection(context: SensorEvaluationContext) -> SkipReason:
    started, now = time.monotonic(), time.time()
    due = now - float(context.cursor or 0) >= PIPELINE_SECONDS - _TICK_SECONDS / 2
    try:
        with catalog_session() as session:
            usage = _machine().measure(living(read_runners(session)), read_pipeline_ids(session))
            line = usage_line(usage)
            kept = with_pipelines(session, usage) if due else [one for one in usage if _is_frequent(one.subject)]
            store_usage(session, kept)
            record_job(session, "system_metric_collection", started=started, line=line)
    except RosettaError as error:
        return failed_tick("system_metric_collection", error)
    if due:
        context.update_cursor(str(now))
    return SkipReason(line)


def _is_frequent(subject: str) -> bool:
    return not subject.startswith(PIPELINE_PREFIX)
