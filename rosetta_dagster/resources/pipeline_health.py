"""State, lag and tables of every pipeline, as the engine has reported them to the config database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

KEEPS_UP_LAG_MS = 60_000
RECENT_REPORT_SECONDS = 90


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
