"""What was observed: WAL, machine load, flow, credits, health. Pruned by age."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import REAL, ForeignKey, Numeric, text
from sqlalchemy.orm import Mapped, mapped_column

from cdc_runner.catalog.models.base import Base, Timestamps, big, identifier

_FALSE = text("false")
_NOW = text("now()")


class WalMonitor(Timestamps, Base):
    """Latest state of a source's WAL and slot."""

    __tablename__ = "wal_monitor"

    id: Mapped[identifier]
    source_id: Mapped[big] = mapped_column(ForeignKey("sources.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(server_default="OK")
    wal_lsn: Mapped[big | None]
    replication_slot_name: Mapped[str | None]
    slot_active: Mapped[bool | None]
    slot_wal_status: Mapped[str | None]
    restart_lsn: Mapped[big | None]
    confirmed_flush_lsn: Mapped[big | None]
    replication_lag_bytes: Mapped[big | None]
    retained_wal_bytes: Mapped[big | None]
    safe_wal_bytes: Mapped[big | None]
    last_transaction_at: Mapped[datetime | None]
    error_message: Mapped[str | None]
    directory_bytes: Mapped[big | None]
    ladder_step: Mapped[str] = mapped_column(server_default="NONE")
    ladder_since: Mapped[datetime | None]
    publication_problem: Mapped[str | None]


class SlotRecoveryPlan(Base):
    """What was lost with a slot that Rosetta dropped, and how the copy becomes right again."""

    __tablename__ = "slot_recovery_plans"

    id: Mapped[identifier]
    source_id: Mapped[big] = mapped_column(ForeignKey("sources.id", ondelete="CASCADE"))
    pipeline: Mapped[str]
    slot_name: Mapped[str]
    reason: Mapped[str]
    retained_wal_bytes: Mapped[big | None]
    confirmed_flush_lsn: Mapped[big | None]
    positions: Mapped[dict[str, Any]]
    steps: Mapped[list[str]]
    dropped_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    recovered_at: Mapped[datetime | None]


class WalMetric(Base):
    """Size of a source's WAL at a time."""

    __tablename__ = "wal_metrics"

    id: Mapped[identifier]
    source_id: Mapped[big] = mapped_column(ForeignKey("sources.id", ondelete="CASCADE"))
    size_bytes: Mapped[big]
    retained_wal_bytes: Mapped[big | None]
    recorded_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class SystemMetric(Base):
    """CPU and memory of the host, the runner or a pipeline at a time."""

    __tablename__ = "system_metrics"

    id: Mapped[identifier]
    host: Mapped[str] = mapped_column(server_default="")
    subject: Mapped[str] = mapped_column(server_default="host")
    cpu_usage: Mapped[float | None] = mapped_column(REAL)
    total_memory: Mapped[big | None]
    used_memory: Mapped[big | None]
    total_swap: Mapped[big | None]
    used_swap: Mapped[big | None]
    wal_bytes: Mapped[big | None]
    lag_ms: Mapped[big | None]
    batch_ms: Mapped[big | None]
    recorded_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class DataFlowRecord(Base):
    """Rows applied to a table within a minute."""

    __tablename__ = "data_flow_record_monitoring"

    id: Mapped[identifier]
    pipeline_id: Mapped[big] = mapped_column(ForeignKey("pipelines.id", ondelete="CASCADE"))
    pipeline_destination_id: Mapped[big] = mapped_column(ForeignKey("pipeline_destinations.id", ondelete="CASCADE"))
    source_id: Mapped[big] = mapped_column(ForeignKey("sources.id", ondelete="CASCADE"))
    pipeline_destination_table_sync_id: Mapped[big | None] = mapped_column(
        ForeignKey("pipelines_destination_table_sync.id", ondelete="SET NULL")
    )
    table_name: Mapped[str]
    record_count: Mapped[big]
    recorded_at: Mapped[datetime] = mapped_column(server_default=text("date_trunc('minute', now())"))


class CreditSnowflake(Timestamps, Base):
    """Snowflake credits of a destination on a day, by service."""

    __tablename__ = "credit_snowflake_monitoring"

    id: Mapped[identifier]
    destination_id: Mapped[big] = mapped_column(ForeignKey("destinations.id", ondelete="CASCADE"))
    usage_date: Mapped[date]
    service: Mapped[str] = mapped_column(server_default="TOTAL")
    total_credit: Mapped[Decimal] = mapped_column(Numeric(38, 9))


class CreditSnowflakePart(Timestamps, Base):
    """Snowflake credits of a destination on a day, by warehouse and serverless task."""

    __tablename__ = "credit_snowflake_parts"

    id: Mapped[identifier]
    destination_id: Mapped[big] = mapped_column(ForeignKey("destinations.id", ondelete="CASCADE"))
    usage_date: Mapped[date]
    kind: Mapped[str]
    name: Mapped[str]
    total_credit: Mapped[Decimal] = mapped_column(Numeric(38, 9))


class JobMetric(Timestamps, Base):
    """Last run of a periodic job."""

    __tablename__ = "job_metrics_monitoring"

    id: Mapped[identifier]
    key_job_scheduler: Mapped[str]
    last_run_at: Mapped[datetime]
    is_error: Mapped[bool] = mapped_column(server_default=_FALSE)
    error_message: Mapped[str | None]
    interval_seconds: Mapped[int | None]
    last_success_at: Mapped[datetime | None]
    duration_ms: Mapped[int | None]
    failures: Mapped[int] = mapped_column(server_default="0")
    status_line: Mapped[str | None]


class WorkerHealth(Base):
    """Health of a worker at a time."""

    __tablename__ = "worker_health_status"

    id: Mapped[identifier]
    worker: Mapped[str]
    healthy: Mapped[bool]
    active_workers: Mapped[int] = mapped_column(server_default="0")
    active_tasks: Mapped[int] = mapped_column(server_default="0")
    reserved_tasks: Mapped[int] = mapped_column(server_default="0")
    error_message: Mapped[str | None]
    extra_data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    last_check_at: Mapped[datetime] = mapped_column(server_default=_NOW)
