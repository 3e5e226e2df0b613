"""Events that a person is to hear of: one open entry of `notification_log` for each condition.

record_event    a condition holds, or something happened; seen again, the open entry is counted up
resolve_event   the condition is over
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import func, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import Notification

Severity = Literal["INFO", "WARNING", "ERROR"]

_MAX_TITLE_CHARACTERS = 200
_MAX_MESSAGE_CHARACTERS = 2000


def record_event(session: Session, kind: str, key: str, severity: Severity, title: str, message: str) -> int:
    """Record an event in the caller's transaction and return the id of its entry.

    While an entry of the same kind and key is open, no second one is made: its text is renewed, and `iteration_check`
    counts how often it was seen.

    Args:
        session: of the caller.
        kind: what sort of event, a short word such as `dead_letters`.
        key: what it is about: `shop/warehouse/public.orders`.
        severity: INFO, WARNING or ERROR.
        title: one line.
        message: what happened and what to do; never a row value, never a secret.
    """
    values = {
        "title": title[:_MAX_TITLE_CHARACTERS],
        "message": message[:_MAX_MESSAGE_CHARACTERS],
        "type": severity,
    }
    statement = insert(Notification).values(key_notification=f"{kind}:{key}", **values)
    return session.execute(
        statement.on_conflict_do_update(
            index_elements=[Notification.key_notification],
            index_where=text("status = 'OPEN' AND NOT is_deleted"),
            set_={**values, "iteration_check": Notification.iteration_check + 1},
        ).returning(Notification.id)
    ).scalar_one()


def resolve_event(session: Session, kind: str, key: str) -> bool:
    """Close the open entry of a condition that is over; tell whether there was one."""
    closed = session.execute(
        update(Notification)
        .where(
            Notification.key_notification == f"{kind}:{key}",
            Notification.status == "OPEN",
            ~Notification.is_deleted,
        )
        .values(status="RESOLVED", resolved_at=func.now())
        .returning(Notification.id)
    )
    return closed.first() is not None
