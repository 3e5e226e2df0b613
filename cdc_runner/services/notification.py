"""Notifications: channels, a test message, what was told, and what a person says about it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from cdc_runner.catalog.channel_entry import channel_place, parse_channel
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.entry_fields import ConfigurationProblems, check_name
from cdc_runner.catalog.models import Notification, NotificationChannel, NotificationDelivery
from cdc_runner.catalog.notifications import SEVERITIES, resolve_event
from cdc_runner.catalog.repositories import lock_configuration, next_id
from cdc_runner.catalog.secret_source import read_secret
from cdc_runner.catalog.settings import get_setting
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.notification.address import check_url
from cdc_runner.notification.channel import open_channel
from cdc_runner.notification.message import Message
from cdc_runner.notification.send import send

LISTED = 50


def create_channel(
    session: Session,
    name: str,
    kind: str,
    options: Mapping[str, Any],
    *,
    minimum_severity: str = "WARNING",
    keyring: Keyring | None = None,
    directory: Path | None = None,
) -> dict[str, Any]:
    """Create a channel, or give one of the same name and kind other options; its secrets are stored encrypted.

    Args:
        session: of the caller.
        name: of the channel.
        kind: webhook, telegram, slack, email or apprise.
        options: of the kind; secrets are references `{"env": NAME}` or `{"file": PATH}`.
        minimum_severity: INFO, WARNING or ERROR; what is below is not sent there.
        keyring: encrypts the secrets.
        directory: which relative paths of secrets are below; the working directory when it is not given.

    Raises:
        RosettaError: CONFIG_INVALID with every problem, CONFLICT for another kind; CREDENTIAL_KEY_INVALID.
    """
    lock_configuration(session)
    check_name(name)
    _check_severity(minimum_severity)
    config, references = parse_channel(kind, dict(options))
    secrets = {field: read_secret(one, field, directory or Path.cwd()) for field, one in references.items()}
    allow_internal = bool(get_setting(session, "notification_allow_internal"))
    check_channel_address(kind, config, secrets.get("url"), allow_internal=allow_internal)
    row = session.scalar(select(NotificationChannel).where(NotificationChannel.name == name))
    if row is not None and row.type != kind:
        raise RosettaError(ErrorKind.CONFLICT, f"a channel {name} of kind {row.type} exists already")
    if row is None:
        row = NotificationChannel(id=next_id(session, "notification_channels"), name=name, type=kind)
        session.add(row)
    keys = keyring or Keyring.from_environment()
    row.config, row.minimum_severity, row.enabled = config, minimum_severity, True
    row.secrets = {field: keys.encrypt(value, channel_place(row.id, field)) for field, value in secrets.items()}
    session.flush()
    return _describe(row)


def check_channel_address(kind: str, config: Mapping[str, Any], url: SecretStr | None, *, allow_internal: bool) -> None:
    """Refuse an address that a channel may never call; no name server is asked.

    Raises:
        RosettaError: CONFIG_INVALID, without the address.
    """
    if url is not None and kind != "apprise":
        check_url(url.get_secret_value(), allow_internal=allow_internal)
    if kind == "telegram":
        check_url(config["api_url"], allow_internal=allow_internal)


def _check_severity(severity: str) -> None:
    if severity not in SEVERITIES:
        raise ConfigurationProblems([f"minimum_severity: must be one of {', '.join(SEVERITIES)}"])


def describe_channels(session: Session) -> list[dict[str, Any]]:
    """Return all channels, without secrets."""
    return [_describe(row) for row in session.scalars(select(NotificationChannel).order_by(NotificationChannel.name))]


def _describe(row: NotificationChannel) -> dict[str, Any]:
    return {
        "name": row.name,
        "type": row.type,
        "enabled": row.enabled,
        "minimum_severity": row.minimum_severity,
        **{name: value for name, value in row.config.items() if name not in ("name", "type")},
        "stored_secrets": sorted(row.secrets),
        "last_delivered_at": row.last_delivered_at.isoformat() if row.last_delivered_at else None,
        "last_error": row.last_error,
    }


def set_channel(
    session: Session, name: str, *, enabled: bool | None = None, minimum_severity: str | None = None
) -> dict[str, Any]:
    """Turn a channel on or off, or change what it is told.

    What waited for a channel that is turned off stays, and is sent when it is turned on again.

    Raises:
        RosettaError: NOT_FOUND or CONFIG_INVALID.
    """
    row = _channel(session, name)
    if enabled is not None:
        row.enabled = enabled
    if minimum_severity is not None:
        _check_severity(minimum_severity)
        row.minimum_severity = minimum_severity
    session.flush()
    return _describe(row)


def remove_channel(session: Session, name: str) -> int:
    """Remove a channel and what waited for it; return how many messages will never be sent.

    Raises:
        RosettaError: NOT_FOUND.
    """
    row = _channel(session, name)
    waiting = session.scalar(
        select(func.count())
        .select_from(NotificationDelivery)
        .where(NotificationDelivery.channel_id == row.id, NotificationDelivery.state == "PENDING")
    )
    session.execute(delete(NotificationChannel).where(NotificationChannel.id == row.id))
    return int(waiting or 0)


def test_channel(session: Session, name: str, keyring: Keyring | None = None) -> dict[str, Any]:
    """Send a test message now and return what came of it: `ok`, `error` and `solution`.

    Raises:
        RosettaError: NOT_FOUND, CREDENTIAL_*.
    """
    row = _channel(session, name)
    channel = open_channel(row, keyring or Keyring.from_environment())
    allow_internal = bool(get_setting(session, "notification_allow_internal"))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    text = f"Channel {name} of Rosetta works. Nothing has happened."
    message = Message("TEST", "rosetta/test", "test", "INFO", "Test of a notification channel", text, 1, now, now)
    try:
        send(channel, message, f"rosetta-test-{time.time_ns()}", allow_internal=allow_internal)
    except RosettaError as error:
        row.last_error, row.last_error_at = error.message[:500], func.now()
        session.flush()
        return {"name": name, "type": row.type, "ok": False, "error": error.message, "solution": error.policy.solution}
    row.last_error, row.last_delivered_at = None, func.now()
    session.flush()
    return {"name": name, "type": row.type, "ok": True, "error": None, "solution": None}


# A test only in the eyes of an operator.
test_channel.__test__ = False  # type: ignore[attr-defined]


def describe_notifications(session: Session, *, status: str | None = None, limit: int = LISTED) -> list[dict[str, Any]]:
    """Return the newest notifications with their delivery; of one status if that is given."""
    statement = select(Notification).where(~Notification.is_deleted).order_by(Notification.last_seen_at.desc())
    if status is not None:
        statement = statement.where(Notification.status == status)
    rows = session.scalars(statement.limit(limit)).all()
    deliveries: dict[int, list[str]] = {}
    found = session.execute(
        select(NotificationDelivery, NotificationChannel.name)
        .join(NotificationChannel, NotificationChannel.id == NotificationDelivery.channel_id)
        .where(NotificationDelivery.notification_id.in_([row.id for row in rows]))
        .order_by(NotificationDelivery.id)
    )
    for one, channel in found:
        tried = f" after {one.attempts} attempts: {one.last_error}" if one.state == "PENDING" and one.last_error else ""
        deliveries.setdefault(one.notification_id, []).append(f"{channel} {one.announcement} {one.state}{tried}")
    return [
        {
            "id": row.id,
            "key": row.key_notification,
            "severity": row.type,
            "status": row.status,
            "kind": row.kind,
            "title": row.title,
            "text": row.message,
            "count": row.iteration_check,
            "is_read": row.is_read,
            "first_seen_at": row.created_at.isoformat(),
            "last_seen_at": row.last_seen_at.isoformat(),
            "resolved_at": row.resolved_at.isoformat() if row.resolved_at else None,
            "deliveries": deliveries.get(row.id, []),
        }
        for row in rows
    ]


def acknowledge(session: Session, key: str | None = None) -> int:
    """Mark open notifications as read, all or those of one key: no reminders; what is not sent yet is still sent."""
    statement = update(Notification).where(~Notification.is_read, ~Notification.is_deleted)
    if key is not None:
        statement = statement.where(Notification.key_notification == key)
    return len(session.scalars(statement.values(is_read=True).returning(Notification.id)).all())


def close_notification(session: Session, key: str) -> bool:
    """Resolve an open notification by hand; a monitor that still sees its cause opens it again."""
    return resolve_event(session, key, "closed by hand")


def clear_notifications(session: Session) -> int:
    """Take what is over off the list: resolved conditions and happenings that were announced."""
    statement = (
        update(Notification)
        .where(~Notification.is_deleted, Notification.status != "OPEN", Notification.announced_status.is_not(None))
        .where(Notification.announced_status == Notification.status)
    )
    return len(session.scalars(statement.values(is_deleted=True).returning(Notification.id)).all())


def _channel(session: Session, name: str) -> NotificationChannel:
    row = session.scalar(select(NotificationChannel).where(NotificationChannel.name == name).with_for_update())
    if row is None:
        names = session.scalars(select(NotificationChannel.name).order_by(NotificationChannel.name).limit(20)).all()
        raise RosettaError(
            ErrorKind.NOT_FOUND, f"no notification channel {name[:80]!r}; known: {', '.join(names) or 'none'}"
        )
    return row
