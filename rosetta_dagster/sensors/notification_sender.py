"""Sensor that sends notifications."""

from __future__ import annotations

import time

from dagster import DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.errors import RosettaError
from cdc_runner.notification.dispatch import send_round
from rosetta_dagster.resources.catalog import catalog_engine, catalog_session, record_job
from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.outcome import STILL_AT_WORK, alone, failed_tick


@sensor(
    minimum_interval_seconds=interval_for(30),
    default_status=DefaultSensorStatus.RUNNING,
    description="Every 30 seconds: sends what is new, worse, resolved or due for a reminder to every channel (job "
    "create_notification_channel). What a channel does not take is sent again, after 30 s, 1 min, … 30 min, until it "
    "arrives.",
)
def notification_sender(context: SensorEvaluationContext) -> SkipReason:
    with alone("notification_sender") as free:
        return _tick(context) if free else SkipReason(STILL_AT_WORK)


def _tick(context: SensorEvaluationContext) -> SkipReason:
    started = time.monotonic()
    try:
        done = send_round(catalog_engine(), Keyring.from_environment())
        with catalog_session() as session:
            error = done.problem if done.failed and not done.delivered else None
            record_job(session, "notification_sender", error, started=started, line=done.line)
    except RosettaError as error:
        return failed_tick("notification_sender", error)
    return SkipReason(done.line)
