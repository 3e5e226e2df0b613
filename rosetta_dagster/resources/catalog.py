"""The control plane's reads of the config database. Every one is a single short transaction with a time limit.

The code server calls these every few seconds for as long as it lives, so they share one small pool.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cdc_runner.catalog.database import open_catalog, session_scope
from rosetta_dagster.monitoring.job_health import CADENCE_SECONDS

READ_TIMEOUT_SECONDS = 5


@lru_cache(maxsize=1)
def catalog_engine() -> Engine:
    """Return this process's engine for the config database, migrations applied.

    A failure is not remembered: the next call tries again.

    Raises:
        RosettaError: the config database is unreachable or not configured.
    """
    return open_catalog(application_name="rosetta dagster")


@contextmanager
def catalog_session() -> Iterator[Session]:
    """Yield a session whose statements end after READ_TIMEOUT_SECONDS.

    Raises:
        RosettaError: the config database is unreachable, or too slow.
    """
    with session_scope(catalog_engine()) as session:
        session.execute(text(f"SET LOCAL statement_timeout = {READ_TIMEOUT_SECONDS * 1000}"))
        yield session


_RECORD_JOB = text(
    """
    INSERT INTO job_metrics_monitoring AS j
        (key_job_scheduler, last_run_at, is_error, error_message, failures, last_success_at, duration_ms, status_line,
         interval_seconds)
    VALUES (:job, now(), :is_error, :error, CASE WHEN :is_error THEN 1 ELSE 0 END,
            CASE WHEN :is_error THEN NULL ELSE now() END, :duration_ms, :line, :interval)
    ON CONFLICT (key_job_scheduler) DO UPDATE SET
        last_run_at = excluded.last_run_at, is_error = excluded.is_error, error_message = excluded.error_message,
        failures = CASE WHEN excluded.is_error THEN j.failures + 1 ELSE 0 END,
        last_success_at = coalesce(excluded.last_success_at, j.last_success_at),
        duration_ms = excluded.duration_ms, status_line = excluded.status_line,
        interval_seconds = excluded.interval_seconds
    """
)


def record_job(
    session: Session, job: str, error: str | None = None, *, started: float | None = None, line: str = ""
) -> None:
    """Note that a periodic work has run, how long it took, and whether it failed as a whole.

    Args:
        session: of the caller.
        job: its name.
        error: why it was worth nothing, as when every source failed; None when it did its work.
        started: `time.monotonic()` at its beginning.
        line: what it found, in one line.
    """
    values = {
        "job": job,
        "is_error": error is not None,
        "error": error,
        "duration_ms": None if started is None else round((time.monotonic() - started) * 1000),
        "line": line[:1000] or None,
        "interval": CADENCE_SECONDS.get(job),
    }
    session.execute(_RECORD_JOB, values)


_NAMES = """
    SELECT 'pipelines' AS picker, name FROM pipelines UNION ALL SELECT 'sources', name FROM sources
    UNION ALL SELECT 'destinations', name FROM destinations
    UNION ALL SELECT 'notification_channels', name FROM notification_channels
    UNION SELECT 'tables', p.name || '|' || s.source_schema || '.' || s.source_table
    FROM pipelines_destination_table_sync s JOIN pipeline_destinations d ON d.id = s.pipeline_destination_id
    JOIN pipelines p ON p.id = d.pipeline_id WHERE s.origin = 'RESOLVED'
"""
_SORTED_NAMES = text(f"{_NAMES} ORDER BY 1, 2")
_NAMES_FINGERPRINT = text(
    f"SELECT md5(string_agg(concat(picker, '/', name), '/' ORDER BY picker, name)) FROM ({_NAMES}) one"
)


def read_names(session: Session) -> dict[str, list[str]]:
    """Return the names for each picker of the launchpad: pipelines, sources, destinations, channels, tables."""
    names: dict[str, list[str]] = {
        "pipelines": [], "sources": [], "destinations": [], "notification_channels": [], "tables": []
    }  # fmt: skip
    for picker, name in session.execute(_SORTED_NAMES):
        names[picker].append(name)
    return names


def read_names_fingerprint(session: Session) -> str:
    """Return a hash of all names that the pickers offer; computed by the server, without moving the names."""
    return str(session.execute(_NAMES_FINGERPRINT).scalar_one())


def has_snowflake(session: Session) -> bool:
    """Tell whether there is a Snowflake destination."""
    return bool(session.execute(text("SELECT EXISTS (SELECT 1 FROM destinations WHERE type = 'snowflake')")).scalar())


def read_pipeline_ids(session: Session) -> dict[int, str]:
    """Return the names of the pipelines by their ids."""
    return {row.id: row.name for row in session.execute(text("SELECT id, name FROM pipelines"))}
