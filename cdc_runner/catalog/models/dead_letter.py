"""What waits in dead-letter queues, for readers; the destinations hold the truth."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from cdc_runner.catalog.models.base import Base, big


class DeadLetterTable(Base):
    """The dead letters of one target table; no row when there are none."""

    __tablename__ = "dead_letter_tables"

    pipeline_destination_id: Mapped[big] = mapped_column(
        ForeignKey("pipeline_destinations.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    source_schema: Mapped[str]
    source_table: Mapped[str]
    target_schema: Mapped[str] = mapped_column(primary_key=True)
    target_table: Mapped[str] = mapped_column(primary_key=True)
    waiting_keys: Mapped[big]
    entries: Mapped[big]
    lost_entries: Mapped[big] = mapped_column(server_default="0")
    oldest_at: Mapped[datetime | None]
    reason: Mapped[str | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), server_onupdate=func.now())


class DeadLetterQueueState(Base):
    """Whether the dead-letter queue of a destination could be used when its pipeline looked last."""

    __tablename__ = "dead_letter_queues"

    pipeline_destination_id: Mapped[big] = mapped_column(
        ForeignKey("pipeline_destinations.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    state: Mapped[str]
    problem: Mapped[str | None]
    parked_batches: Mapped[big] = mapped_column(server_default="0")
    parked_bytes: Mapped[big] = mapped_column(server_default="0")
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), server_onupdate=func.now())
