"""From notifications to delivered messages: what is due is written down first, then sent, then marked.

    announce(session)               messages that are due, one row a channel
    claim(session)                  the ones to try now; nobody else tries them meanwhile
    record_outcomes(session, ...)   delivered, or when to try again

A message that was written down is tried until the channel takes it, or until a newer one about the same notification
takes its place. A process that ends between sending and marking sends once more: `delivery` is the same then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.models import Notification, NotificationChannel, NotificationDelivery
from cdc_runner.catalog.settings import get_setting
from cdc_runner.errors import RosettaError
from cdc_runner.notification.channel import Channel, open_channel
from cdc_runner.notification.message import Message
from cdc_runner.notification.policy import RANK, Rules, Standing, announcement, backoff_seconds

ANNOUNCED_AT_ONCE = 200
CLAIMED_PER_CHANNEL = 10
CLAIM_SECONDS = 120
"""Longer than any attempt takes, so that two senders never have the same message in hand."""
FORGOTTEN_AFTER_HOURS = 1
"""A happening that no channel was there for is not told after this."""


def announce(session: Session) -> int:
    """Write down what is to be told now, one message for each channel that wants it; return how many.

    While there is no channel nothing counts as told: what still holds when one is made is told then.
    """
    channels = session.scalars(select(NotificationChannel).where(NotificationChannel.enabled)).all()
    if not channels:
        return 0
    rules = Rules(
        int(get_setting(session, "notification_iterations")),
        float(get_setting(session, "notification_quiet_seconds")),
        60.0 * float(get_setting(session, "notification_reminder_minutes")),
    )
    written = 0
    for row, age, resolved in session.execute(_due()).all():
        said = announcement(_standing(row, age, resolved), rules)
        if said is None:
            continue
        row.announced_status, row.announced_type, row.announced_at = row.status, row.type, func.now()
        row.is_sent = False
        wanted = [one for one in channels if RANK[row.type] >= RANK[one.minimum_severity]]
        written += sum(_write(session, row, one, said) for one in wanted)
    session.flush()
    return written


def _due() -> Any:
    def age(column: Any) -> Any:
        return func.extract("epoch", func.clock_timestamp() - column)

    return (
        select(Notification, age(Notification.announced_at), age(Notification.resolved_at))
        .where(
            ~Notification.is_deleted,
            (Notification.status == "OPEN")
            | ((Notification.status == "RESOLVED") & (Notification.announced_status == "OPEN"))
            | (
                (Notification.status == "EVENT")
                & Notification.announced_status.is_(None)
                & (Notification.last_seen_at > func.now() - text(f"interval '{FORGOTTEN_AFTER_HOURS} hours'"))
            ),
        )
        .order_by(Notification.announced_at.asc().nulls_first(), Notification.id)
        .limit(ANNOUNCED_AT_ONCE)
        # Two senders at once, as after a tick that took too long, share the work and never double it.
        .with_for_update(skip_locked=True)
    )


def _standing(row: Notification, announced_age: Any, resolved_age: Any) -> Standing:
    return Standing(
        row.status,
        row.type,
        row.iteration_check,
        row.is_force_sent,
        row.is_read,
        row.announced_status,
        row.announced_type,
        None if announced_age is None else float(announced_age),
        None if resolved_age is None else float(resolved_age),
    )


def _write(session: Session, row: Notification, channel: NotificationChannel, said: str) -> int:
    older = (NotificationDelivery.notification_id == row.id, NotificationDelivery.channel_id == channel.id,
             NotificationDelivery.state == "PENDING")  # fmt: skip
    session.execute(update(NotificationDelivery).where(*older).values(state="SUPERSEDED"))
    message = Message(
        said, row.key_notification, row.kind, row.type, row.title, row.message, row.iteration_check,
        _iso(row.created_at) or "", _iso(row.last_seen_at) or "",
        _iso(row.resolved_at) if said == "RESOLVED" else None,
    )  # fmt: skip
    session.execute(
        insert(NotificationDelivery).values(
            notification_id=row.id, channel_id=channel.id, announcement=said, message=message.as_json()
        )
    )
    return 1


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message to try now, with its channel, or why the channel cannot be used.

    Attributes:
        delivery: tells a repeated message: the same at each attempt.
        attempts: this one counted.
    """

    id: int
    delivery: str
    notification_id: int
    channel_id: int
    channel_name: str
    channel: Channel | RosettaError
    message: Message
    attempts: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt; no error means delivered. `tried` is false when the channel failed just before."""

    claimed: Claimed
    error: RosettaError | None = None
    tried: bool = True


_CLAIM = text(
    f"""
    WITH due AS (
        SELECT d.id FROM notification_deliveries d JOIN notification_channels c ON c.id = d.channel_id
        WHERE d.state = 'PENDING' AND d.next_attempt_at <= clock_timestamp() AND c.enabled
          AND d.id IN (SELECT id FROM notification_deliveries o
                       WHERE o.channel_id = d.channel_id AND o.state = 'PENDING'
                         AND o.next_attempt_at <= clock_timestamp()
                       ORDER BY o.id LIMIT {CLAIMED_PER_CHANNEL})
        ORDER BY d.id FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE notification_deliveries d
    SET attempts = d.attempts + 1, next_attempt_at = clock_timestamp() + interval '{CLAIM_SECONDS} seconds'
    FROM due WHERE due.id = d.id RETURNING d.id
    """
)


def claim(session: Session, keyring: Keyring) -> list[Claimed]:
    """Take the messages whose time has come, the oldest of each channel first."""
    ids = list(session.execute(_CLAIM).scalars())
    rows = session.execute(
        select(NotificationDelivery, NotificationChannel)
        .join(NotificationChannel, NotificationChannel.id == NotificationDelivery.channel_id)
        .where(NotificationDelivery.id.in_(ids))
        .order_by(NotificationDelivery.id)
        .execution_options(populate_existing=True)
    ).all()
    opened: dict[int, Channel | RosettaError] = {}
    for _, row in rows:
        if row.id not in opened:
            try:
                opened[row.id] = open_channel(row, keyring)
            except RosettaError as error:
                opened[row.id] = error
    return [
        Claimed(
            delivery.id,
            f"rosetta-{delivery.id}",
            delivery.notification_id,
            row.id,
            row.name,
            opened[row.id],
            Message.from_json(delivery.message),
            delivery.attempts,
        )
        for delivery, row in rows
    ]


_IS_SENT = text(
    """
    UPDATE notification_log n SET is_sent = true, sent_at = now(), last_send_error = NULL
    WHERE n.id = :id AND NOT EXISTS (
        SELECT 1 FROM notification_deliveries d WHERE d.notification_id = n.id AND d.state = 'PENDING')
    """
)


def record_outcomes(session: Session, outcomes: Sequence[Outcome]) -> None:
    """Mark what was delivered, and say when the rest is tried again."""
    for outcome in outcomes:
        claimed, error = outcome.claimed, outcome.error
        row = NotificationDelivery.id == claimed.id
        if error is None:
            done: dict[str, Any] = {"state": "DELIVERED", "delivered_at": func.now(), "last_error": None}
            session.execute(update(NotificationDelivery).where(row).values(**done))
            session.execute(_IS_SENT, {"id": claimed.notification_id})
            _note(session, claimed, None)
            continue
        wait = max(backoff_seconds(claimed.attempts), float(error.detail.get("retry_after_seconds") or 0))
        values: dict[str, Any] = {
            "next_attempt_at": func.clock_timestamp() + text("make_interval(secs => :wait)").bindparams(wait=wait),
            "last_error": error.message[:500],
        }
        if not outcome.tried:
            # It was not its fault: it comes right after the one that failed.
            values["attempts"] = claimed.attempts - 1
        # Superseded meanwhile: the newer one is tried instead.
        session.execute(update(NotificationDelivery).where(row).values(**values))
        if outcome.tried:
            _note(session, claimed, error)


def _note(session: Session, claimed: Claimed, error: RosettaError | None) -> None:
    channel: dict[str, Any] = (
        {"last_delivered_at": func.now(), "last_error": None}
        if error is None
        else {"last_error": error.message[:500], "last_error_at": func.now()}
    )
    session.execute(update(NotificationChannel).where(NotificationChannel.id == claimed.channel_id).values(**channel))
    notification: dict[str, Any] = {"send_attempts": Notification.send_attempts + 1}
    if error is not None:
        notification["last_send_error"] = f"{claimed.channel_name}: {error.message}"[:500]
    session.execute(update(Notification).where(Notification.id == claimed.notification_id).values(**notification))
