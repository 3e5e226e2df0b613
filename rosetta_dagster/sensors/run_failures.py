"""Sensor that tells of failed runs."""

from __future__ import annotations

from dagster import DefaultSensorStatus, RunFailureSensorContext, run_failure_sensor

from cdc_runner.catalog.events import record_event
from rosetta_dagster.resources.catalog import catalog_session
from rosetta_dagster.sensors.cadence import interval_for

_MAX_CHARACTERS = 500
ANSWERS = frozenset({"preview", "test_source", "test_destination", "test_notification", "doctor"})
"""Jobs whose failure is the answer to whoever has asked: nobody else is told."""


@run_failure_sensor(
    name="run_failures",
    monitor_all_code_locations=False,
    minimum_interval_seconds=interval_for(30),
    default_status=DefaultSensorStatus.RUNNING,
    description="Makes a notification of a failed run, with its reason in one sentence; not of a preview, a test or "
    "the doctor, which answer whoever has asked.",
)
def run_failures(context: RunFailureSensorContext) -> None:
    run = context.dagster_run
    if run.job_name in ANSWERS:
        return
    partition = run.tags.get("dagster/partition")
    name = f"{run.job_name} of {partition}" if partition else run.job_name
    with catalog_session() as session:
        title = f"Run of {name} failed"
        message = f"{_reason(context)} (run {run.run_id})"
        record_event(session, "run_failed", name, "WARNING", title, message, lasting=False)


def _reason(context: RunFailureSensorContext) -> str:
    """Return the sentence of the operation that failed; never a stack trace, which may hold anything."""
    for event in context.get_step_failure_events():
        told = event.step_failure_data.user_failure_data
        if told is not None and told.description:
            return told.description[:_MAX_CHARACTERS]
    return "the run ended without a reason of its own: see its log"
