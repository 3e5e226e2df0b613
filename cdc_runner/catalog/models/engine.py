"""State that the engine keeps: status, positions, chunks, leases, heartbeats."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, text
from sqlalchemy.orm import Mapped, mapped_column

from cdc_runner.catalog.models.base import Base, Timestamps, big, identifier

_FALSE = text("false")
_NOW = text("now()")


class PipelineMetadata(Timestamps, Base):
    """What a pipeline does at present; `pipelines.status` is what it is to do."""

    __tablename__ = "pipeline_metadata"

    id: Mapped[identifier]
    pipeline_id: Mapped[big] = mapped_column(ForeignKey("pipelines.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(server_default="PAUSED")
    last_error: Mapped[str | None]
    last_error_at: Mapped[datetime | None]
    last_start_at: Mapped[datetime | None]


class PipelineProgress(Timestamps, Base):
    """Progress of a long step of a pipeline, in percent."""

    __tablename__ = "pipelines_progress"

    id: Mapped[identifier]
    pipeline_id: Mapped[big] = mapped_column(ForeignKey("pipelines.id", ondelete="CASCADE"))
    step: Mapped[str]
    progress: Mapped[int] = mapped_column(server_default="0")
    status: Mapped[str] = mapped_column(server_default="PENDING")
    details: Mapped[str | None]


class StreamOffset(Timestamps, Base):
    """Positions of one destination in the change stream; a copy for readers, the destination holds the truth."""

    __tablename__ = "stream_offsets"

    pipeline_destination_id: Mapped[big] = mapped_column(
        ForeignKey("pipeline_destinations.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    pipeline_id: Mapped[big] = mapped_column(ForeignKey("pipelines.id", ondelete="CASCADE"))
    captured_lsn: Mapped[big] = mapped_column(server_default="0")
    applied_lsn: Mapped[big] = mapped_column(server_default="0")
    acknowledged_lsn: Mapped[big] = mapped_column(server_default="0")
    lag_bytes: Mapped[big | None]
    lag_ms: Mapped[big | None]
    batch_ms: Mapped[big | None]
    commit_at: Mapped[datetime | None]


class CaptureOffset(Base):
    """Offsets of the capture engine itself, as it writes them."""

    __tablename__ = "capture_offsets"

    pipeline_id: Mapped[big] = mapped_column(
        ForeignKey("pipelines.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    offset_key: Mapped[str] = mapped_column(primary_key=True)
    offset_value: Mapped[str]
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class QueueBackfill(Timestamps, Base):
    """A request to copy a table, or a part of it, again."""

    __tablename__ = "queue_backfill_data"

    id: Mapped[identifier]
    pipeline_id: Mapped[big] = mapped_column(ForeignKey("pipelines.id", ondelete="CASCADE"))
    pipeline_destination_id: Mapped[big | None] = mapped_column(
        ForeignKey("pipeline_destinations.id", ondelete="CASCADE")
    )
    source_id: Mapped[big] = mapped_column(ForeignKey("sources.id", ondelete="CASCADE"))
    schema_name: Mapped[str]
    table_name: Mapped[str]
    filter_sql: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default="PENDING")
    priority: Mapped[int] = mapped_column(server_default="0")
    count_record: Mapped[big] = mapped_column(server_default="0")
    total_record: Mapped[big] = mapped_column(server_default="0")
    resume_attempts: Mapped[int] = mapped_column(server_default="0")
    snapshot_lsn: Mapped[big | None]
    is_error: Mapped[bool] = mapped_column(server_default=_FALSE)
    error_message: Mapped[str | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    mode: Mapped[str] = mapped_column(server_default="BACKFILL")
    target_schema: Mapped[str | None]
    target_table: Mapped[str | None]
    changed_record: Mapped[big] = mapped_column(server_default="0")
    deleted_record: Mapped[big] = mapped_column(server_default="0")
    refused_record: Mapped[big] = mapped_column(server_default="0")
    chunks: Mapped[int] = mapped_column(server_default="0")
    chunks_done: Mapped[int] = mapped_column(server_default="0")
    seconds: Mapped[float] = mapped_column(server_default="0")
    since_xid: Mapped[big | None]
    passes: Mapped[int] = mapped_column(server_default="0")
    note: Mapped[str | None]
    requested_by: Mapped[str | None]
    announced_at: Mapped[datetime | None]
    kept_table: Mapped[str | None]


class BackfillChunk(Timestamps, Base):
    """A part of a table that is copied at once; the initial load's chunks have no backfill."""

    __tablename__ = "backfill_chunks"

    id: Mapped[identifier]
    pipeline_destination_id: Mapped[big] = mapped_column(ForeignKey("pipeline_destinations.id", ondelete="CASCADE"))
    backfill_id: Mapped[big | None] = mapped_column(ForeignKey("queue_backfill_data.id", ondelete="CASCADE"))
    source_schema: Mapped[str]
    source_table: Mapped[str]
    target_schema: Mapped[str]
    target_table: Mapped[str]
    chunk_number: Mapped[int]
    range_kind: Mapped[str]
    range_from: Mapped[str | None]
    range_to: Mapped[str | None]
    snapshot_lsn: Mapped[big]
    filenode: Mapped[big | None]
    state: Mapped[str] = mapped_column(server_default="PENDING")
    row_count: Mapped[big] = mapped_column(server_default="0")
    byte_count: Mapped[big] = mapped_column(server_default="0")
    attempts: Mapped[int] = mapped_column(server_default="0")
    error_message: Mapped[str | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class RunnerLease(Base):
    """Who runs a pipeline, until when, and the epoch that fences older holders."""

    __tablename__ = "runner_leases"

    pipeline_id: Mapped[big] = mapped_column(
        ForeignKey("pipelines.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    holder: Mapped[str | None]
    host: Mapped[str | None]
    pid: Mapped[int | None]
    epoch: Mapped[big] = mapped_column(server_default="1")
    acquired_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[datetime]


class RunnerHeartbeat(Base):
    """Sign of life of a runner."""

    __tablename__ = "runner_heartbeats"

    runner_id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    state: Mapped[str]
    health_port: Mapped[int | None]
    version: Mapped[str | None]
    last_error: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=_NOW)
