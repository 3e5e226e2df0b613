"""Everything at a glance: rows by day, the largest flows, runners, and whether the monitors themselves work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from cdc_runner.catalog.backfills import listed
from cdc_runner.catalog.settings import get_setting
from rosetta_dagster.monitoring.load_progress import LoadProgress, read_loads
from rosetta_dagster.monitoring.source_states import SourceState, read_source_states
from rosetta_dagster.resources.runner_heartbeats import RunnerHeartbeat, read_runners

TOP_TABLES = 10
RECENT_EVENTS = 10


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
class RecentEvent:
    """A notification, as the overview lists it."""

    severity: str
    status: str
    title: str
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Overview:
    """What the overview shows beside the health of the pipelines.

    Attributes:
        backfills: status -> how many of the last day, and all that are open.
        backfill_progress: the open ones, with rows, percent and the time that they will still take.
        open_notifications: conditions that hold now.
        unsent: messages that a channel has not taken yet.
        credits_month: Snowflake credits of this month, None without a Snowflake destination.
        host_cpu: percent of all cores, of the host of this Dagster.
        host_memory: percent.
        loads: initial loads that are under way.
        sources: how they stand, those in trouble first.
    """

    flows: tuple[Flow, ...]
    top: tuple[TopTable, ...]
    runners: tuple[RunnerHeartbeat, ...]
    monitors: tuple[MonitorRun, ...]
    events: tuple[RecentEvent, ...] = ()
    backfills: tuple[tuple[str, int], ...] = ()
    backfill_progress: tuple[Mapping[str, Any], ...] = ()
    open_notifications: int = 0
    unsent: int = 0
    credits_month: float | None = None
    credits_last_month: float | None = None
    credits_week: float | None = None
    credits_last_week: float | None = None
    host_cpu: float | None = None
    host_memory: float | None = None
    loads: tuple[LoadProgress, ...] = ()
    sources: tuple[SourceState, ...] = ()


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


_EVENTS = text(
    f"""
    SELECT type AS severity, status, title, extract(epoch FROM now() - last_seen_at)::float8 AS age_seconds
    FROM notification_log WHERE NOT is_deleted ORDER BY last_seen_at DESC LIMIT {RECENT_EVENTS}
    """
)

_BACKFILLS = text(
    """
    SELECT status, count(*) AS number FROM queue_backfill_data
    WHERE status IN ('PENDING', 'EXECUTING') OR updated_at > now() - interval '1 day' GROUP BY 1 ORDER BY 1
    """
)

_NUMBERS = text(
    """
    SELECT (SELECT count(*) FROM notification_log WHERE status = 'OPEN' AND NOT is_deleted) AS open_notifications,
           (SELECT count(*) FROM notification_deliveries WHERE state = 'PENDING') AS unsent,
           c.this_month AS credits_month, c.last_month AS credits_last_month,
           c.this_week AS credits_week, c.last_week AS credits_last_week,
           m.cpu_usage AS host_cpu, 100.0 * m.used_memory / nullif(m.total_memory, 0) AS host_memory
    FROM (SELECT sum(total_credit) FILTER (WHERE usage_date >= date_trunc('month', now()))::float8 AS this_month,
                 sum(total_credit) FILTER (
                     WHERE usage_date < date_trunc('month', now())
                       AND usage_date >= date_trunc('month', now()) - interval '1 month')::float8 AS last_month,
                 sum(total_credit) FILTER (WHERE usage_date >= date_trunc('week', now()))::float8 AS this_week,
                 sum(total_credit) FILTER (
                     WHERE usage_date < date_trunc('week', now())
                       AND usage_date >= date_trunc('week', now()) - interval '1 week')::float8 AS last_week
          FROM credit_snowflake_monitoring
          WHERE usage_date >= date_trunc('month', now()) - interval '1 month') c
    LEFT JOIN (SELECT cpu_usage, used_memory, total_memory FROM system_metrics
               WHERE subject = 'host' AND recorded_at > now() - interval '5 minutes'
               ORDER BY recorded_at DESC LIMIT 1) m ON true
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
        events=tuple(RecentEvent(**row) for row in session.execute(_EVENTS).mappings()),
        backfills=tuple((row.status, int(row.number)) for row in session.execute(_BACKFILLS)),
        loads=tuple(read_loads(session)),
        sources=read_source_states(session),
        backfill_progress=tuple(listed(session, open_only=True, limit=50)),
        **{name: _number(value) for name, value in session.execute(_NUMBERS).mappings().one().items()},
    )


def _number(value: Any) -> Any:
    return value if value is None or isinstance(value, int) else float(value)
