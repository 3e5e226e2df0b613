"""How many rows flowed through a pipeline, by day and table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from cdc_runner.catalog.repositories import get_pipeline
from cdc_runner.catalog.settings import get_setting
from cdc_runner.errors import ErrorKind, RosettaError

MAX_DAYS = 30
RECENT_MINUTES = 5

_FLOW = text(
    """
    SELECT d.name AS destination, f.table_name AS "table", (f.recorded_at AT TIME ZONE :zone)::date AS day,
           sum(f.record_count)::bigint AS rows,
           coalesce(sum(f.record_count) FILTER (
               WHERE f.recorded_at >= now() - make_interval(mins => :minutes)), 0)::bigint AS recent
    FROM data_flow_record_monitoring f
    JOIN pipeline_destinations pd ON pd.id = f.pipeline_destination_id
    JOIN destinations d ON d.id = pd.destination_id
    WHERE f.pipeline_id = :pipeline
      AND f.recorded_at >= date_trunc('day', now(), :zone) - make_interval(days => :days - 1)
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    """
)


def read_flow(session: Session, pipeline: str, days: int = 7) -> list[dict[str, Any]]:
    """Return rows applied by day for each destination and table of a pipeline, those with most rows first.

    Args:
        session: of the caller.
        pipeline: its name.
        days: the present one and those before it, in the time zone of the settings; 30 at most.

    Returns:
        For each table `destination`, `table`, `rows` (in all), `last_5_minutes`, and `days`: date -> rows.

    Raises:
        RosettaError: NOT_FOUND or CONFIG_INVALID.
    """
    if not 1 <= days <= MAX_DAYS:
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"days must be between 1 and {MAX_DAYS}")
    values: Mapping[str, Any] = {
        "pipeline": get_pipeline(session, pipeline).id,
        "zone": str(get_setting(session, "timezone")),
        "days": days,
        "minutes": RECENT_MINUTES,
    }
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for row in session.execute(_FLOW, values):
        found = tables.setdefault(
            (row.destination, row.table),
            {"destination": row.destination, "table": row.table, "rows": 0, "last_5_minutes": 0, "days": {}},
        )
        found["rows"] += row.rows
        found["last_5_minutes"] += row.recent
        found["days"][row.day.isoformat()] = row.rows
    return sorted(tables.values(), key=lambda one: (-one["rows"], one["destination"], one["table"]))
