"""Sensor that keeps versions of the sources' table schemas."""

from __future__ import annotations

import time

from dagster import DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor

from cdc_runner.errors import RosettaError
from rosetta_dagster.monitoring.schema_watch import changes_of, read_schemas, schema_line, store_changes
from rosetta_dagster.monitoring.sources import all_failed, ask_all, sources_to_ask
from rosetta_dagster.resources.catalog import catalog_session, record_job
from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.outcome import STILL_AT_WORK, alone, failed_tick


@sensor(
    minimum_interval_seconds=interval_for(60),
    default_status=DefaultSensorStatus.RUNNING,
    description="Each minute, every source at once: new, changed and dropped tables. Each change is a version in "
    "history_schema_evolution with its differences (NEW COLUMN, DROP COLUMN, RENAME COLUMN, CHANGES TYPE, DROP TABLE, "
    "…) and a notification. What follows at the targets is decided by the pipeline's setting schema_policy.",
)
def schema_monitor(context: SensorEvaluationContext) -> SkipReason:
    with alone("schema_monitor") as free:
        return _tick(context) if free else SkipReason(STILL_AT_WORK)


def _tick(context: SensorEvaluationContext) -> SkipReason:
    started = time.monotonic()
    try:
        with catalog_session() as session:
            sources = sources_to_ask(session)
        # Outside of any transaction: a source may take its time.
        answers = ask_all(sources, read_schemas)
        with catalog_session() as session:
            changes = changes_of(session, sources, answers)
        store_changes(catalog_session, changes)
        with catalog_session() as session:
            line = schema_line(sources, answers, changes)
            record_job(session, "schema_monitor", all_failed(answers), started=started, line=line)
    except RosettaError as error:
        return failed_tick("schema_monitor", error)
    return SkipReason(line)
