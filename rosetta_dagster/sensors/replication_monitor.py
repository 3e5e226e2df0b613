"""Sensor that shows how far the replication is: rows, lag and positions as events of the assets."""

from __future__ import annotations

import time

from dagster import DefaultSensorStatus, SensorEvaluationContext, SensorResult, SkipReason, sensor

from cdc_runner.errors import RosettaError
from rosetta_dagster.assets.events import pipeline_event, table_event
from rosetta_dagster.assets.overview import overview_event
from rosetta_dagster.checks.pipelines import check_event
from rosetta_dagster.monitoring.overview import read_overview
from rosetta_dagster.resources.catalog import catalog_session, read_health, record_job
from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.observation_plan import Memory, pipeline_rows, plan_observations


@sensor(
    minimum_interval_seconds=interval_for(60),
    default_status=DefaultSensorStatus.RUNNING,
    description="Each minute: state, rows, lag and positions of every pipeline, and of the tables that changed, as "
    "asset events with plots. A table is told at once when its state changes, else at most every 10 minutes.",
)
def replication_monitor(context: SensorEvaluationContext) -> SensorResult | SkipReason:
    try:
        with catalog_session() as session:
            health, overview = read_health(session), read_overview(session)
            record_job(session, "replication_monitor")
    except RosettaError as error:
        return SkipReason(str(error))
    plan = plan_observations(health, Memory.from_cursor(context.cursor), time.time())
    streams = {(one.pipeline, one.destination): one for pipeline in health for one in pipeline.streams}
    rates = {note.health.pipeline: note.rows_per_second for note in plan.pipelines}
    events = [
        overview_event(health, rates, overview, plan.status),
        *(pipeline_event(note.health, pipeline_rows(note.health), note.rows_per_second) for note in plan.pipelines),
        *(check_event(pipeline, verdict) for pipeline, verdict in plan.checks),
        *(table_event(table, streams.get((table.pipeline, table.destination))) for table in plan.tables),
    ]
    return SensorResult(asset_events=events, skip_reason=plan.status, cursor=plan.memory.to_cursor())
