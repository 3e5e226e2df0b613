"""Reconciliation: fences that a running pipeline serves, and the history of results."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Double, ForeignKey, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from cdc_runner.catalog.models.base import Base, Created, big, identifier

_NOW = text("now()")
_ZERO = "0"


class ReconcileFence(Created, Base):
    """A request to a running pipeline to hold each destination at one position and export a snapshot there."""

    __tablename__ = "reconcile_fences"

    id: Mapped[identifier]
    pipeline_id: Mapped[big] = mapped_column(ForeignKey("pipelines.id", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(server_default="REQUESTED")
    lsn: Mapped[big | None]
    source_snapshot: Mapped[str | None]
    error_message: Mapped[str | None]
    expires_at: Mapped[datetime]


class ReconcileFenceDestination(Base):
    """What a destination answered at a fence."""

    __tablename__ = "reconcile_fence_destinations"

    fence_id: Mapped[big] = mapped_column(
        ForeignKey("reconcile_fences.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    pipeline_destination_id: Mapped[big] = mapped_column(
        ForeignKey("pipeline_destinations.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    snapshot: Mapped[str | None]
    upserted_rows: Mapped[big] = mapped_column(server_default=_ZERO)
    deleted_rows: Mapped[big] = mapped_column(server_default=_ZERO)
    error_message: Mapped[str | None]


class ReconcileFenceKeys(Base):
    """Keys of rows of one target table that are fetched again at the fence; removed when it is over."""

    __tablename__ = "reconcile_fence_keys"

    id: Mapped[identifier]
    fence_id: Mapped[big] = mapped_column(ForeignKey("reconcile_fences.id", ondelete="CASCADE"))
    pipeline_destination_id: Mapped[big] = mapped_column(ForeignKey("pipeline_destinations.id", ondelete="CASCADE"))
    target_schema: Mapped[str]
    target_table: Mapped[str]
    keys: Mapped[list[list[str]]] = mapped_column(JSONB)


class Reconciliation(Base):
    """One comparison of a pipeline's source with its destinations."""

    __tablename__ = "reconciliations"

    id: Mapped[identifier]
    pipeline_id: Mapped[big] = mapped_column(ForeignKey("pipelines.id", ondelete="CASCADE"))
    purpose: Mapped[str]
    outcome: Mapped[str]
    lsn: Mapped[big | None]
    seconds: Mapped[float] = mapped_column(Double)
    finished_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class ReconciliationTable(Base):
    """What one comparison found in one target table; names keys, never other values."""

    __tablename__ = "reconciliation_tables"

    id: Mapped[identifier]
    reconciliation_id: Mapped[big] = mapped_column(ForeignKey("reconciliations.id", ondelete="CASCADE"))
    pipeline_destination_id: Mapped[big] = mapped_column(ForeignKey("pipeline_destinations.id", ondelete="CASCADE"))
    source_table: Mapped[str]
    target_table: Mapped[str]
    outcome: Mapped[str]
    reason: Mapped[str | None]
    source_rows: Mapped[big | None]
    target_rows: Mapped[big | None]
    changed_rows: Mapped[big] = mapped_column(server_default=_ZERO)
    missing_rows: Mapped[big] = mapped_column(server_default=_ZERO)
    extra_rows: Mapped[big] = mapped_column(server_default=_ZERO)
    details: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    seconds: Mapped[float] = mapped_column(Double)
