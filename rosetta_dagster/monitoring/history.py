"""Series of the last days for the pictures of the overview, small enough to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from cdc_runner.catalog.settings import get_setting

FLOW_DAYS = 14
CREDIT_DAYS = 30
HOURS = 24
SHOWN_SERIES = 8
"""More lines or colours than this tell nothing; the rest is one of its own, `others`."""

DaySeries = dict[str, dict[date, float]]
TimeSeries = dict[str, list[tuple[datetime, float]]]


@dataclass(frozen=True, slots=True)
class History:
    """What the pictures show, each series by its name: rows and credits by day, lag in ms and WAL in MB over time."""

    rows: DaySeries
    credits: DaySeries
    lag_ms: TimeSeries
    wal_megabytes: TimeSeries
    zone: str


_ROWS = text(
    f"""
    SELECT p.name, (f.recorded_at AT TIME ZONE :zone)::date AS day, sum(f.record_count)::float8 AS value
    FROM data_flow_record_monitoring f JOIN pipelines p ON p.id = f.pipeline_id
    WHERE f.recorded_at >= date_trunc('day', now(), :zone) - interval '{FLOW_DAYS - 1} days'
    GROUP BY 1, 2 ORDER BY 1, 2
    """
)
_CREDITS = text(
    f"""
    SELECT service AS name, usage_date AS day, sum(total_credit)::float8 AS value FROM credit_snowflake_monitoring
    WHERE usage_date > current_date - {CREDIT_DAYS} GROUP BY 1, 2 ORDER BY 1, 2
    """
)
# The worst of each quarter of an hour: an average would hide what a person looks for.
_LAG = text(
    f"""
    SELECT substr(subject, 10) AS name, date_bin('15 minutes', recorded_at, 'epoch') AS moment, max(lag_ms) AS value
    FROM system_metrics
    WHERE recorded_at > now() - interval '{HOURS} hours' AND lag_ms IS NOT NULL AND starts_with(subject, 'pipeline:')
    GROUP BY 1, 2 ORDER BY 1, 2
    """
)
_WAL = text(
    f"""
    SELECT s.name, date_bin('15 minutes', m.recorded_at, 'epoch') AS moment,
           max(m.retained_wal_bytes) / 1048576.0 AS value
    FROM wal_metrics m JOIN sources s ON s.id = m.source_id
    WHERE m.recorded_at > now() - interval '{HOURS} hours' AND m.retained_wal_bytes IS NOT NULL
    GROUP BY 1, 2 ORDER BY 1, 2
    """
)


def read_history(session: Session) -> History:
    """Return the series of the pictures; days are cut in the time zone of the settings."""
    zone = str(get_setting(session, "timezone"))
    return History(
        _days(session, _ROWS, {"zone": zone}),
        _days(session, _CREDITS, {}),
        _moments(session, _LAG),
        _moments(session, _WAL),
        zone,
    )


def _days(session: Session, statement: Any, values: Mapping[str, Any]) -> DaySeries:
    found: DaySeries = {}
    for row in session.execute(statement, values):
        found.setdefault(row.name, {})[row.day] = float(row.value)
    ranked = sorted(found, key=lambda name: -sum(found[name].values()))
    kept = {name: found[name] for name in ranked[:SHOWN_SERIES]}
    for name in ranked[SHOWN_SERIES:]:
        others = kept.setdefault("others", {})
        for day, value in found[name].items():
            others[day] = others.get(day, 0.0) + value
    return kept


def _moments(session: Session, statement: Any) -> TimeSeries:
    found: TimeSeries = {}
    for row in session.execute(statement):
        found.setdefault(row.name, []).append((row.moment, float(row.value)))
    # The worst ones: what is small is well.
    ranked = sorted(found, key=lambda name: -max(value for _, value in found[name]))
    return {name: found[name] for name in ranked[:SHOWN_SERIES]}
