"""As many sensors and schedules as Rosetta has, with its intervals, that do nothing: what Dagster itself costs."""

from __future__ import annotations

from dagster import (
    DefaultScheduleStatus,
    DefaultSensorStatus,
    Definitions,
    ScheduleDefinition,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    job,
    op,
    sensor,
)

from rosetta_dagster.monitoring.job_health import CADENCE_SECONDS
from rosetta_dagster.sensors.cadence import interval_for

SCHEDULES = ("credit_monitor", "overview_pictures", "prune")
EVERY = {name: seconds for name, seconds in CADENCE_SECONDS.items() if name not in SCHEDULES} | {"run_failures": 30}


def _idle_sensor(name: str, seconds: int) -> SensorDefinition:
    @sensor(name=name, minimum_interval_seconds=interval_for(seconds), default_status=DefaultSensorStatus.RUNNING)
    def idle(_context: SensorEvaluationContext) -> SkipReason:
        return SkipReason("nothing to do")

    return idle


@op
def nothing() -> None:
    """Do nothing."""


@job
def idle_job() -> None:
    """Do nothing."""
    nothing()


definitions = Definitions(
    jobs=[idle_job],
    sensors=[_idle_sensor(name, seconds) for name, seconds in EVERY.items()],
    schedules=[
        ScheduleDefinition(
            name="credit_monitor",
            job=idle_job,
            cron_schedule="* * * * *",
            default_status=DefaultScheduleStatus.RUNNING,
            should_execute=lambda _: False,
        )
    ],
)
