"""Removes observations of the config database that are older than the settings say."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from cdc_runner.catalog.settings import get_setting

ROWS_AT_ONCE = 10_000
"""A delete is short, so that it delays no writer; a day's worth is removed in a few of them."""

_ENDED_BACKFILLS = "status NOT IN ('PENDING', 'EXECUTING') AND kept_table IS NULL"
"""A rebuild stays known for as long as the table that it replaced is kept."""


@dataclass(frozen=True, slots=True)
class Series:
    """A table that grows with time: its time column, the setting with its age in days, and which rows may go."""

    table: str
    column: str
    setting: str
    condition: str = "true"


SERIES = (
    Series("wal_metrics", "recorded_at", "retention_days"),
    Series("system_metrics", "recorded_at", "retention_days"),
    Series("data_flow_record_monitoring", "recorded_at", "retention_days"),
    Series("worker_health_status", "last_check_at", "retention_days"),
    Series("reconciliations", "finished_at", "retention_days"),
    Series("reconcile_fences", "created_at", "retention_days"),
    Series("notification_log", "updated_at", "notification_retention_days", "status <> 'OPEN' OR is_deleted"),
    # What was delivered of a condition that is open for months.
    Series("notification_deliveries", "updated_at", "notification_retention_days", "state <> 'PENDING'"),
    Series("queue_backfill_data", "finished_at", "backfill_retention_days", _ENDED_BACKFILLS),
    Series("credit_snowflake_monitoring", "usage_date", "credit_retention_days"),
    Series("credit_snowflake_parts", "usage_date", "credit_retention_days"),
    # A runner that is gone for good; its leases have long expired.
    Series("runner_heartbeats", "heartbeat_at", "retention_days"),
)


def prune_series(session: Session, series: Series) -> int:
    """Remove the oldest rows of one table, ROWS_AT_ONCE at the most, and return how many went.

    Call it again, each time in a transaction of its own, until it returns 0.
    """
    days = int(get_setting(session, series.setting))
    # Names come from SERIES alone.
    removed = session.execute(
        text(
            f"""
            DELETE FROM {series.table} WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM {series.table}
                WHERE {series.column} < now() - make_interval(days => :days) AND ({series.condition})
                LIMIT {ROWS_AT_ONCE}))
            RETURNING 1
            """
        ),
        {"days": days},
    )
    return len(removed.all())
