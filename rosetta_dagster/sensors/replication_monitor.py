"""Sensor that shows how far the replication is: rows, lag and positions as events of the assets."""

from __future__ import annotations

import time
from datetime import timedelta

from dagster import DefaultSensorStatus, SensorEvaluationContext, SensorResult, SkipReason, sensor

from cdc_runner.catalog.notifications import sync_conditions
from cdc_runner.catalog.settings import get_setting
from cdc_runner.errors import RosettaError
from rosetta_dagster.assets.events import key_of_table, pipeline_event, table_event
from rosetta_dagster.assets.overview import OVERVIEW_KEY, overview_event
from rosetta_dagster.assets.specs import pipeline_key
from rosetta_dagster.checks.pipelines import check_event
from rosetta_dagster.monitoring.conditions import lag_conditions, table_conditions
from rosetta_dagster.monitoring.overview import read_overview
from rosetta_dagster.monitoring.publication import act_on_drift, watch_publications, watched_publications
from rosetta_dagster.monitoring.sources import all_failed
from rosetta_dagster.monitoring.verdicts import table_letters
from rosetta_dagster.resources.catalog import catalog_session, record_job
from rosetta_dagster.resources.dagster_storage import thin_events
from rosetta_dagster.resources.pipeline_health import read_health
from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.observation_memory import recall, remember
from rosetta_dagster.sensors.observation_plan import pipeline_rows, plan_observations, status_line
from rosetta_dagster.sensors.outcome import STILL_AT_WORK, alone, failed_tick

_KEPT_OVERVIEWS = 30


@sensor(
    minimum_interval_seconds=interval_for(60),
    default_status=DefaultSensorStatus.RUNNING,
    description="Each minute: state, rows, lag and positions of every pipeline, and of the tables that changed, as "
    "asset events with plots. A table is told at once when its state changes, else at most every 10 minutes. A "
    "pipeline whose publication was altered, or has lost tables, is paused with that reason, as its changes would be "
    "lost in silence.",
)
def replication_monitor(context: SensorEvaluationContext) -> SensorResult | SkipReason:
    with alone("replication_monitor") as free:
        return _tick(context) if free else SkipReason(STILL_AT_WORK)


def _tick(context: SensorEvaluationContext) -> SensorResult | SkipReason:
    started = time.monotonic()
    try:
        drifts, error = _look_at_publications()
        with catalog_session() as session:
            health, overview = read_health(session), read_overview(session)
            warning = 1000 * int(get_setting(session, "lag_warning_seconds"))
            sync_conditions(session, "destination:", lag_conditions(health, warning))
            sync_conditions(session, "tables:", table_conditions(health))
            line = "; ".join([status_line(health), *drifts])
            record_job(session, "replication_monitor", error, started=started, line=line)
    except RosettaError as failure:
        return failed_tick("replication_monitor", failure)
    plan = plan_observations(health, recall(context.instance, context.cursor), time.time())
    streams = {(one.pipeline, one.destination): one for pipeline in health for one in pipeline.streams}
    rates = {note.health.pipeline: note.rows_per_second for note in plan.pipelines}
    events = [
        overview_event(health, rates, overview, line),
        *(
            pipeline_event(note.health, pipeline_rows(note.health), note.rows_per_second, overview.loads)
            for note in plan.pipelines
        ),
        *(check_event(pipeline_key(pipeline), verdict) for pipeline, verdict in plan.checks),
        *(table_event(table, streams.get((table.pipeline, table.destination))) for table in plan.tables),
        *(check_event(key_of_table(table), table_letters(table)) for table in plan.changed),
    ]
    # Those that are told each minute; of the others `prune` takes care. An event of the overview is a large one.
    thin_events(context.instance, [OVERVIEW_KEY], kept=_KEPT_OVERVIEWS, then_one_each=timedelta(hours=3))
    thin_events(context.instance, [pipeline_key(note.health.pipeline) for note in plan.pipelines])
    return SensorResult(
        asset_events=events, skip_reason=line, cursor=remember(context.instance, context.cursor, plan.memory)
    )


def _look_at_publications() -> tuple[list[str], str | None]:
    """Return one line for each publication that drifts, its pipeline being paused now; and why none could be seen."""
    with catalog_session() as session:
        try:
            watched = watched_publications(session)
        except RosettaError as error:
            # Without a key no source can be asked; what the config database tells is shown all the same.
            return [str(error)], str(error)
    answers = watch_publications(watched)
    with catalog_session() as session:
        return act_on_drift(session, watched, answers), all_failed(answers)
