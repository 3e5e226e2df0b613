"""What the supervisor reads from the config database, and the little that it writes there."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from cdc_runner.catalog.events import record_event
from cdc_runner.position import format_lsn


@dataclass(frozen=True, slots=True)
class DestinationView:
    """How far one destination of a pipeline is; LSNs are 64-bit numbers."""

    name: str
    captured_lsn: int
    applied_lsn: int
    acknowledged_lsn: int
    lag_bytes: int | None
    lag_ms: int | None
    commit_at: datetime | None
    rows_loaded: int
    rows_applied: int
    last_error: str | None

    def as_json(self) -> dict[str, object]:
        """Return the view for a JSON document, LSNs in PostgreSQL's text form."""
        return {
            "destination": self.name,
            "captured_position": format_lsn(self.captured_lsn),
            "applied_position": format_lsn(self.applied_lsn),
            "acknowledged_position": format_lsn(self.acknowledged_lsn),
            "lag_bytes": self.lag_bytes,
            "lag_ms": self.lag_ms,
            "source_commit_at": None if self.commit_at is None else self.commit_at.isoformat(),
            "rows_loaded": self.rows_loaded,
            "rows_applied": self.rows_applied,
            "last_error": self.last_error,
        }


@dataclass(frozen=True, slots=True)
class PipelineView:
    """A pipeline as the catalog has it.

    Attributes:
        status: desired state: START, REFRESH or PAUSE.
        generation: version of its configuration.
        refresh_at: when a refresh was asked for last.
        changed_at: last change of its row; tells apart what happened between two looks.
        state: RUNNING, PAUSED or ERROR, as its process reported; None before the first report.
        lease_holder: who holds the lease and has not let it expire; None when it is free.
    """

    id: int
    name: str
    status: str
    generation: int
    refresh_at: datetime | None
    changed_at: datetime
    state: str | None = None
    last_error: str | None = None
    last_error_at: datetime | None = None
    lease_holder: str | None = None
    lease_host: str | None = None
    destinations: tuple[DestinationView, ...] = field(default=())

    @property
    def wanted(self) -> bool:
        """Whether a process is to run."""
        return self.status in ("START", "REFRESH")

    @property
    def version(self) -> tuple[str, int, datetime]:
        """What has to change before a process that gave up is started again."""
        return (self.status, self.generation, self.changed_at)


_PIPELINES = text(
    """
    SELECT p.id, p.name, p.status, p.generation, p.last_refresh_at, p.updated_at,
           m.status AS state, m.last_error, m.last_error_at,
           CASE WHEN l.expires_at > clock_timestamp() THEN l.holder END AS lease_holder,
           CASE WHEN l.expires_at > clock_timestamp() THEN l.host END AS lease_host
    FROM pipelines p
    LEFT JOIN pipeline_metadata m ON m.pipeline_id = p.id
    LEFT JOIN runner_leases l ON l.pipeline_id = p.id
    ORDER BY p.id
    """
)

_DESTINATIONS = text(
    """
    SELECT pd.pipeline_id, d.name,
           coalesce(o.captured_lsn, 0) AS captured_lsn, coalesce(o.applied_lsn, 0) AS applied_lsn,
           coalesce(o.acknowledged_lsn, 0) AS acknowledged_lsn, o.lag_bytes, o.lag_ms, o.commit_at,
           coalesce(s.loaded_rows, 0) AS loaded_rows, coalesce(s.applied_rows, 0) AS applied_rows,
           CASE WHEN pd.is_error THEN pd.error_message END AS last_error
    FROM pipeline_destinations pd
    JOIN destinations d ON d.id = pd.destination_id
    LEFT JOIN stream_offsets o ON o.pipeline_destination_id = pd.id
    LEFT JOIN (SELECT pipeline_destination_id, sum(loaded_rows) AS loaded_rows, sum(applied_rows) AS applied_rows
               FROM pipelines_destination_table_sync GROUP BY 1) s ON s.pipeline_destination_id = pd.id
    ORDER BY pd.pipeline_id, d.name
    """
)


def read_pipelines(connection: Connection) -> dict[int, PipelineView]:
    """Return every pipeline with its destinations, by id."""
    destinations: dict[int, list[DestinationView]] = {}
    for row in connection.execute(_DESTINATIONS):
        destinations.setdefault(row.pipeline_id, []).append(
            DestinationView(
                row.name,
                row.captured_lsn,
                row.applied_lsn,
                row.acknowledged_lsn,
                row.lag_bytes,
                row.lag_ms,
                row.commit_at,
                int(row.loaded_rows),
                int(row.applied_rows),
                row.last_error,
            )
        )
    return {
        row.id: PipelineView(
            row.id,
            row.name,
            row.status,
            row.generation,
            row.last_refresh_at,
            row.updated_at,
            row.state,
            row.last_error,
            row.last_error_at,
            row.lease_holder,
            row.lease_host,
            tuple(destinations.get(row.id, ())),
        )
        for row in connection.execute(_PIPELINES)
    }


@dataclass(frozen=True, slots=True)
class RunnerIdentity:
    """This runner in the config database. `id` is new at each start and is the holder of its pipelines' leases."""

    id: str
    host: str
    pid: int
    version: str


_FORGET = text(
    "DELETE FROM runner_heartbeats WHERE heartbeat_at < now() - interval '1 day' AND runner_id <> :runner_id"
)

_RELEASE = text("UPDATE runner_leases SET holder = NULL, expires_at = clock_timestamp() WHERE holder = :runner_id")

_CRASH = text(
    """
    INSERT INTO pipeline_metadata AS m (pipeline_id, status, last_error, last_error_at)
    SELECT id, 'ERROR', :message, :at FROM pipelines WHERE id = :pipeline_id
    ON CONFLICT (pipeline_id) DO UPDATE
    SET last_error = excluded.last_error, last_error_at = excluded.last_error_at,
        -- The report may come late, after an outage, when a later process runs already.
        status = CASE WHEN m.last_start_at > :at THEN m.status ELSE 'ERROR' END
    """
)


def forget_old_runners(connection: Connection, runner: RunnerIdentity) -> None:
    """Delete heartbeats that stopped more than a day ago."""
    connection.execute(_FORGET, {"runner_id": runner.id})


def record_crash(connection: Connection, pipeline_id: int, message: str, crashed_at: datetime) -> None:
    """Write why a process ended that could not say so itself; idempotent."""
    connection.execute(_CRASH, {"pipeline_id": pipeline_id, "message": message, "at": crashed_at})
    name = connection.execute(text("SELECT name FROM pipelines WHERE id = :id"), {"id": pipeline_id}).scalar()
    with Session(bind=connection) as session:
        record_event(
            session, "pipeline_crash", str(name), "WARNING", f"The process of pipeline {name} ended", message,
            lasting=False,
        )  # fmt: skip
        # Into the caller's transaction; without this the session would undo it at its end.
        session.commit()


def release_leases(connection: Connection, runner: RunnerIdentity) -> None:
    """Give back what killed processes could not; only when no process of this runner lives any more."""
    connection.execute(_RELEASE, {"runner_id": runner.id})
