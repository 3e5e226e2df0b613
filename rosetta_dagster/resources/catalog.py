"""The control plane's reads of the config database. Every one is a single short transaction with a time limit.

The code server calls these every few seconds for as long as it lives, so they share one small pool.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cdc_runner.catalog.database import open_catalog, session_scope
from rosetta_dagster.monitoring.job_health import CADENCE_SECONDS

READ_TIMEOUT_SECONDS = 5
LIVE_HEARTBEAT_SECONDS = 30
"""A runner whose heartbeat is older does not count as alive."""

KEEPS_UP_LAG_MS = 60_000
RECENT_REPORT_SECONDS = 90


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


@dataclass(frozen=True, slots=True)
class RunnerHeartbeat:
    """The newest sign of life of a runner.

    Attributes:
        age_seconds: since the heartbeat, by the config database's clock.
        state: STARTING, RUNNING, DRAINING, STOPPED or ERROR.
    """

    runner_id: str
    host: str
    pid: int
    state: str
    age_seconds: float
    uptime_seconds: float
    health_port: int | None
    last_error: str | None

    @property
    def alive(self) -> bool:
        """Whether this runner works now, as far as the config database knows."""
        return self.state in ("STARTING", "RUNNING", "DRAINING") and self.age_seconds <= LIVE_HEARTBEAT_SECONDS


_HEARTBEATS = text(
    """
    SELECT runner_id, host, pid, state, health_port, last_error,
           extract(epoch FROM clock_timestamp() - heartbeat_at)::float8 AS age_seconds,
           extract(epoch FROM heartbeat_at - started_at)::float8 AS uptime_seconds
    FROM runner_heartbeats ORDER BY heartbeat_at DESC LIMIT 50
    """
)


def read_runners(session: Session) -> list[RunnerHeartbeat]:
    """Return the runners that were seen last, the newest heartbeat first."""
    return [RunnerHeartbeat(**row) for row in session.execute(_HEARTBEATS).mappings()]


@dataclass(frozen=True, slots=True)
class StreamHealth:
    """How far one destination of a pipeline is.

    Attributes:
        commit_at: commit time at the source of the last transaction that the destination holds.
        age_seconds: since the runner reported this stream; None when it never did.
    """

    pipeline: str
    destination: str
    captured_lsn: int
    applied_lsn: int
    acknowledged_lsn: int
    lag_bytes: int | None
    lag_ms: int | None
    commit_at: datetime | None
    age_seconds: float | None
    error: str | None
    queue_state: str | None = None
    queue_problem: str | None = None
    parked_batches: int = 0
    parked_bytes: int = 0
    batch_ms: int | None = None

    @property
    def keeps_up(self) -> bool:
        """Whether the lag is small and the report recent."""
        return (
            self.error is None
            and self.lag_ms is not None
            and self.lag_ms <= KEEPS_UP_LAG_MS
            and self.age_seconds is not None
            and self.age_seconds <= RECENT_REPORT_SECONDS
        )


_STREAMS = text(
    """
    SELECT p.name AS pipeline, d.name AS destination,
           coalesce(o.captured_lsn, 0) AS captured_lsn, coalesce(o.applied_lsn, 0) AS applied_lsn,
           coalesce(o.acknowledged_lsn, 0) AS acknowledged_lsn, o.lag_bytes, o.lag_ms, o.commit_at, o.batch_ms,
           extract(epoch FROM clock_timestamp() - o.updated_at)::float8 AS age_seconds,
           CASE WHEN pd.is_error THEN pd.error_message END AS error,
           q.state AS queue_state, q.problem AS queue_problem,
           coalesce(q.parked_batches, 0) AS parked_batches, coalesce(q.parked_bytes, 0) AS parked_bytes
    FROM pipelines p
    JOIN pipeline_destinations pd ON pd.pipeline_id = p.id
    JOIN destinations d ON d.id = pd.destination_id
    LEFT JOIN stream_offsets o ON o.pipeline_destination_id = pd.id
    LEFT JOIN dead_letter_queues q ON q.pipeline_destination_id = pd.id
    ORDER BY p.name, d.name
    """
)


@dataclass(frozen=True, slots=True)
class TableHealth:
    """State and counts of one replicated table."""

    pipeline: str
    destination: str
    source_schema: str
    source_table: str
    target_schema: str
    target_table: str
    load_state: str
    loaded_rows: int
    applied_rows: int
    snapshot_lsn: int | None
    error: str | None
    dead_letters: int = 0
    dead_letter_keys: int = 0
    dead_letters_lost: int = 0
    dead_letter_reason: str | None = None


_TABLES = text(
    """
    SELECT p.name AS pipeline, d.name AS destination, s.source_schema, s.source_table, s.target_schema, s.target_table,
           s.load_state, s.loaded_rows, s.applied_rows, s.snapshot_lsn,
           CASE WHEN s.is_error THEN s.error_message WHEN s.load_state = 'ERROR' THEN s.load_state_reason END AS error,
           coalesce(l.entries, 0) AS dead_letters, coalesce(l.waiting_keys, 0) AS dead_letter_keys,
           coalesce(l.lost_entries, 0) AS dead_letters_lost, l.reason AS dead_letter_reason
    FROM pipelines_destination_table_sync s
    JOIN pipeline_destinations pd ON pd.id = s.pipeline_destination_id
    JOIN pipelines p ON p.id = pd.pipeline_id
    JOIN destinations d ON d.id = pd.destination_id
    LEFT JOIN dead_letter_tables l ON l.pipeline_destination_id = pd.id
         AND l.target_schema = s.target_schema AND l.target_table = s.target_table
    WHERE s.origin = 'RESOLVED'
    ORDER BY p.name, d.name, s.target_schema, s.target_table
    """
)


@dataclass(frozen=True, slots=True)
class PipelineHealth:
    """State of one pipeline with its destinations and tables.

    Attributes:
        wanted: what was asked for: START, PAUSE or REFRESH.
        state: what is: RUNNING, PAUSED or ERROR.
        slot_status: OK, WARNING or ERROR, from the sensor wal_monitor; None before its first look.
    """

    pipeline: str
    source: str
    wanted: str
    state: str
    last_error: str | None
    streams: tuple[StreamHealth, ...]
    tables: tuple[TableHealth, ...]
    slot_status: str | None = None
    slot_problem: str | None = None
    retained_wal_bytes: int | None = None

    @property
    def keeps_up(self) -> bool:
        """Whether every destination holds what the source committed, but for KEEPS_UP_LAG_MS, and says so still."""
        return (
            self.state == "RUNNING"
            and bool(self.streams)
            and all(stream.keeps_up for stream in self.streams)
            and all(table.load_state in ("STREAMING", "EXCLUDED") for table in self.tables)
        )

    @property
    def caught_up_at(self) -> datetime | None:
        """Commit time at the source up to which every destination holds everything; None before the first commit."""
        return min((stream.commit_at for stream in self.streams if stream.commit_at is not None), default=None)

    @property
    def worst_lag_ms(self) -> int | None:
        """The largest lag of the destinations, in milliseconds; None before the first measurement."""
        return max((stream.lag_ms for stream in self.streams if stream.lag_ms is not None), default=None)

    @property
    def worst_lag_bytes(self) -> int | None:
        """The largest lag of the destinations, in bytes of WAL; None before the first measurement."""
        return max((stream.lag_bytes for stream in self.streams if stream.lag_bytes is not None), default=None)


_PIPELINES = text(
    """
    SELECT p.name AS pipeline, s.name AS source, p.status AS wanted, coalesce(m.status, 'PAUSED') AS state,
           CASE WHEN m.status = 'ERROR' THEN m.last_error END AS last_error,
           w.status AS slot_status, w.error_message AS slot_problem, w.retained_wal_bytes
    FROM pipelines p
    JOIN sources s ON s.id = p.source_id
    LEFT JOIN pipeline_metadata m ON m.pipeline_id = p.id
    LEFT JOIN wal_monitor w ON w.source_id = s.id
    ORDER BY p.name
    """
)


def read_health(session: Session) -> list[PipelineHealth]:
    """Return the health of every pipeline, in the order of their names."""
    streams: dict[str, list[StreamHealth]] = {}
    for row in session.execute(_STREAMS).mappings():
        streams.setdefault(row["pipeline"], []).append(StreamHealth(**row))
    tables: dict[str, list[TableHealth]] = {}
    for row in session.execute(_TABLES).mappings():
        tables.setdefault(row["pipeline"], []).append(TableHealth(**row))
    return [
        PipelineHealth(**row, streams=tuple(streams.get(name, ())), tables=tuple(tables.get(name, ())))
        for row in session.execute(_PIPELINES).mappings()
        for name in [row["pipeline"]]
    ]


def read_pipeline_states(session: Session) -> list[PipelineHealth]:
    """Return the pipelines with their states, without destinations and tables: cheap enough for every few seconds."""
    return [PipelineHealth(**row, streams=(), tables=()) for row in session.execute(_PIPELINES).mappings()]


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


_CATALOG_PIPELINES = """
    SELECT p.name, s.name AS source, s.database_name AS source_database, s.capture_engine
    FROM pipelines p JOIN sources s ON s.id = p.source_id ORDER BY p.name
"""

_CATALOG_TABLES = """
    SELECT p.name AS pipeline, d.name AS destination, d.type AS destination_type,
           coalesce(d.config ->> 'database', '') AS destination_database,
           s.source_schema, s.source_table, s.target_schema, s.target_table,
           coalesce(declared.filter_sql, s.filter_sql) AS filter_sql,
           coalesce(declared.custom_sql, s.custom_sql) AS custom_sql,
           coalesce(declared.shape, s.shape) AS shape,
           CASE WHEN coalesce(declared.custom_sql, s.custom_sql) IS NOT NULL THEN
               (SELECT jsonb_agg(jsonb_build_array(k.schema_name, k.table_name, k.schema_table)
                                 ORDER BY k.schema_name, k.table_name)
                FROM table_metadata_list k WHERE k.source_id = p.source_id AND NOT k.is_dropped) END AS known,
           ARRAY(SELECT DISTINCT t.tag
                 FROM pipelines_destination_table_sync_tag st JOIN tbltag_list t ON t.id = st.tag_id
                 WHERE st.pipelines_destination_table_sync_id IN (s.id, s.declared_id) ORDER BY 1) AS tags,
           m.schema_table
    FROM pipelines_destination_table_sync s
    JOIN pipeline_destinations pd ON pd.id = s.pipeline_destination_id
    JOIN pipelines p ON p.id = pd.pipeline_id
    JOIN destinations d ON d.id = pd.destination_id
    LEFT JOIN pipelines_destination_table_sync declared ON declared.id = s.declared_id
    LEFT JOIN table_metadata_list m
        ON m.source_id = p.source_id AND m.schema_name = s.source_schema AND m.table_name = s.source_table
    WHERE s.origin = 'RESOLVED' AND s.load_state <> 'EXCLUDED'
    ORDER BY p.name, d.name, s.target_schema, s.target_table, s.source_schema, s.source_table
"""

_FINGERPRINT = text(
    f"""
    SELECT md5(concat(
        (SELECT string_agg(md5(one::text), '') FROM ({_CATALOG_PIPELINES}) one),
        '/',
        (SELECT string_agg(md5(one::text), '') FROM ({_CATALOG_TABLES}) one)))
    """
)


@dataclass(frozen=True, slots=True)
class CatalogRows:
    """The pipelines and the tables that they copy, as the catalog has them, with their fingerprint."""

    pipelines: list[dict[str, Any]]
    tables: list[dict[str, Any]]
    fingerprint: str


def read_catalog_rows(session: Session) -> CatalogRows:
    """Return everything that the assets are made of."""
    return CatalogRows(
        [dict(row) for row in session.execute(text(_CATALOG_PIPELINES)).mappings()],
        [dict(row) for row in session.execute(text(_CATALOG_TABLES)).mappings()],
        read_catalog_fingerprint(session),
    )


def read_catalog_fingerprint(session: Session) -> str:
    """Return a hash of everything that the assets are made of; computed by the server, without moving the rows."""
    return str(session.execute(_FINGERPRINT).scalar_one())


_NAMES = text(
    """
    SELECT 'pipelines' AS picker, name FROM pipelines UNION ALL SELECT 'sources', name FROM sources
    UNION ALL SELECT 'destinations', name FROM destinations
    UNION ALL SELECT 'notification_channels', name FROM notification_channels
    UNION SELECT 'tables', p.name || '|' || s.source_schema || '.' || s.source_table
    FROM pipelines_destination_table_sync s JOIN pipeline_destinations d ON d.id = s.pipeline_destination_id
    JOIN pipelines p ON p.id = d.pipeline_id WHERE s.origin = 'RESOLVED' ORDER BY 1, 2
    """
)


def read_names(session: Session) -> dict[str, list[str]]:
    """Return the names for each picker of the launchpad: pipelines, sources, destinations, channels, tables."""
    names: dict[str, list[str]] = {
        "pipelines": [], "sources": [], "destinations": [], "notification_channels": [], "tables": []
    }  # fmt: skip
    for picker, name in session.execute(_NAMES):
        names[picker].append(name)
    return names


def has_snowflake(session: Session) -> bool:
    """Tell whether there is a Snowflake destination."""
    return bool(session.execute(text("SELECT EXISTS (SELECT 1 FROM destinations WHERE type = 'snowflake')")).scalar())


def read_pipeline_ids(session: Session) -> dict[int, str]:
    """Return the names of the pipelines by their ids."""
    return {row.id: row.name for row in session.execute(text("SELECT id, name FROM pipelines"))}
