"""Events that a person is to hear of, as the engine records them; `catalog.notifications` says how they are kept.

record_event    a condition holds, or something happened; seen again, the open entry is counted up
resolve_event   the condition is over
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from cdc_runner.catalog import notifications
from cdc_runner.catalog.notifications import Severity


def record_event(
    session: Session, kind: str, key: str, severity: Severity, title: str, message: str, *, lasting: bool = True
) -> int:
    """Record an event in the caller's transaction and return the id of its entry.

    While an entry of the same kind and key is open, no second one is made: its text is renewed, and it counts how often
    it was seen.

    Args:
        session: of the caller.
        kind: what sort of event, a short word such as `dead_letters`.
        key: what it is about: `shop/warehouse/public.orders`.
        severity: INFO, WARNING or ERROR.
        title: one line.
        message: what happened and what to do; never a row value, never a secret.
        lasting: it holds until `resolve_event`; else it has happened and is over, and is told once.
    """
    return notifications.record_event(session, f"{kind}:{key}", severity, kind, message, title=title, lasting=lasting)


def resolve_event(session: Session, kind: str, key: str) -> bool:
    """Close the open entry of a condition that is over; tell whether there was one."""
    return notifications.resolve_event(session, f"{kind}:{key}")
