"""Everything at a glance: rows by day, the largest flows, runners, and whether the monitors themselves work."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from cdc_runner.catalog.settings import get_setting
from rosetta_dagster.resources.catalog import RunnerHeartbeat, read_runners

TOP_TABLES = 10


@dataclass(frozen=True, slots=True)
class Flow:
    """Rows applied by a pipeline on the present day and the one before, in the time zone of the settings."""

    pipeline: str
    today: int
    yesterday: int


@dataclass(frozen=True, slots=True)
class TopTable:
    """One of the tables with most rows today."""

    pipeline: str
    table: str
    today: int


@dataclass(frozen=True, slots=True)
class MonitorRun:
    """When a periodic work ran last, in seconds ago, and why it failed, if it did."""

    name: str
    age_seconds: float
    error: str | None


@dataclass(frozen=True, slots=True)
class Overview:
    """What the overview shows beside the health of the pipelines."""

    flows: tuple[Flow, ...]
    top: tuple[TopTable, ...]
    runners: tuple[RunnerHeartbeat, ...]
    monitors: tuple[MonitorRun, ...]


# The bounds are times, so that the index on recorded_at is used.
_FLOW = text(
    """
    SELECT p.name AS pipeline,
           coalesce(sum(f.record_count) FILTER (WHERE f.recorded_at >= day.today), 0)::bigint AS today,
           coalesce(sum(f.record_count) FILTER (WHERE f.recorded_at < day.today), 0)::bigint AS yesterday
    FROM (SELECT date_trunc('day', now(), :zone) AS today) day
    JOIN data_flow_record_monitoring f ON f.recorded_at >= date_trunc('day', now(), :zone) - interval '1 day'
    JOIN pipelines p ON p.id = f.pipeline_id
    GROUP BY p.name ORDER BY p.name
    """
)

_TOP = text(
    f"""
    SELECT p.name AS pipeline, f.table_name AS table, sum(f.record_count)::bigint AS today
    FROM data_flow_record_monitoring f JOIN pipelines p ON p.id = f.pipeline_id
    WHERE f.recorded_at >= date_trunc('day', now(), :zone)
    GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT {TOP_TABLES}
    """
)

_MONITORS = text(
    """
    SELECT key_job_scheduler AS name, extract(epoch FROM now() - last_run_at)::float8 AS age_seconds,
           CASE WHEN is_error THEN error_message END AS error
    FROM job_metrics_monitoring ORDER BY key_job_scheduler
    """
)


def read_overview(session: Session) -> Overview:
    """Return what the overview shows beside the health of the pipelines."""
    zone = {"zone": str(get_setting(session, "timezone"))}
    return Overview(
        flows=tuple(Flow(**row) for row in session.execute(_FLOW, zone).mappings()),
        top=tuple(TopTable(**row) for row in session.execute(_TOP, zone).mappings()),
        runners=tuple(runner for runner in read_runners(session) if runner.alive),
        monitors=tuple(MonitorRun(**row) for row in session.execute(_MONITORS).mappings()),
    )
