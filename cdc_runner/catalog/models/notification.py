"""Notifications, the channels that they go to, and what was delivered."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, text
from sqlalchemy.orm import Mapped, mapped_column

from cdc_runner.catalog.models.base import Base, Timestamps, big, identifier

_FALSE = text("false")
_NOW = text("now()")
_EMPTY = text("'{}'")


class Notification(Timestamps, Base):
    """Something to tell a person; one open entry a key."""

    __tablename__ = "notification_log"

    id: Mapped[identifier]
    key_notification: Mapped[str]
    title: Mapped[str]
    message: Mapped[str]
    type: Mapped[str]
    kind: Mapped[str] = mapped_column(server_default="other")
    status: Mapped[str] = mapped_column(server_default="OPEN")
    is_read: Mapped[bool] = mapped_column(server_default=_FALSE)
    is_deleted: Mapped[bool] = mapped_column(server_default=_FALSE)
    is_sent: Mapped[bool] = mapped_column(server_default=_FALSE)
    is_force_sent: Mapped[bool] = mapped_column(server_default=_FALSE)
    iteration_check: Mapped[int] = mapped_column(server_default="1")
    send_attempts: Mapped[int] = mapped_column(server_default="0")
    last_send_error: Mapped[str | None]
    sent_at: Mapped[datetime | None]
    last_seen_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    resolved_at: Mapped[datetime | None]
    announced_type: Mapped[str | None]
    announced_status: Mapped[str | None]
    announced_at: Mapped[datetime | None]
    reopened: Mapped[int] = mapped_column(server_default="0")


class NotificationChannel(Timestamps, Base):
    """Where notifications go; secrets are encrypted."""

    __tablename__ = "notification_channels"

    id: Mapped[identifier]
    name: Mapped[str]
    type: Mapped[str]
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    config: Mapped[dict[str, Any]] = mapped_column(server_default=_EMPTY)
    secrets: Mapped[dict[str, str]] = mapped_column(server_default=_EMPTY)
    minimum_severity: Mapped[str] = mapped_column(server_default="WARNING")
    last_error: Mapped[str | None]
    last_error_at: Mapped[datetime | None]
    last_delivered_at: Mapped[datetime | None]


class NotificationDelivery(Timestamps, Base):
    """One message to one channel; tried until it is delivered, or a newer one takes its place."""

    __tablename__ = "notification_deliveries"

    id: Mapped[identifier]
    notification_id: Mapped[big] = mapped_column(ForeignKey("notification_log.id", ondelete="CASCADE"))
    channel_id: Mapped[big] = mapped_column(ForeignKey("notification_channels.id", ondelete="CASCADE"))
    announcement: Mapped[str]
    message: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(server_default="PENDING")
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    last_error: Mapped[str | None]
    delivered_at: Mapped[datetime | None]
