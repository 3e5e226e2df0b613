"""What a person is to be told: conditions that last until they are resolved, and happenings that have no end.

    record_event(session, "pipeline/shop/error", "ERROR", "pipeline_error", "the slot is gone")
    resolve_event(session, "pipeline/shop/error")
    sync_conditions(session, "wal/", {"wal/shop": Condition("WARNING", "wal", "the slot keeps 3100 MB")})

One open entry a key: recording it again counts it, takes the newest text and raises its severity; it never makes a
second message. A key that comes back within the quiet period after it was resolved is the same entry again. Who sends
what, and when, is decided later, by the control plane's sender. Texts must be clean: no row values, no secrets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.orm import Session

from cdc_runner.catalog.settings import get_setting

Severity = Literal["INFO", "WARNING", "ERROR"]
SEVERITIES: tuple[Severity, ...] = ("INFO", "WARNING", "ERROR")

MAX_KEY_CHARACTERS = 400
MAX_TITLE_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 4000


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that holds now.

    Attributes:
        severity: INFO, WARNING or ERROR.
        kind: what it is about, in one word: `wal`, `pipeline_error`, `schema_change`, …
        text: one sentence for a person.
        title: headline; made from the text when it is empty.
        at_once: whether one sighting is enough; else it is sent after the setting notification_iterations.
    """

    severity: Severity
    kind: str
    text: str
    title: str = ""
    at_once: bool = True


# One statement each, so that two writers of one key cannot both believe that they are the first.
_SEEN = """
    SET iteration_check = n.iteration_check + 1, message = :message, title = :title, kind = :kind, last_seen_at = now(),
        is_force_sent = n.is_force_sent OR :at_once,
        type = CASE WHEN n.type = 'ERROR' OR :type = 'ERROR' THEN 'ERROR'
                    WHEN n.type = 'WARNING' OR :type = 'WARNING' THEN 'WARNING' ELSE 'INFO' END
"""
_COUNT_EVENT = text(
    f"""
    UPDATE notification_log n {_SEEN}
    WHERE n.id = (SELECT id FROM notification_log
                  WHERE key_notification = :key AND status = 'EVENT' AND NOT is_deleted
                    AND last_seen_at > now() - make_interval(secs => :quiet)
                  ORDER BY id DESC LIMIT 1)
    RETURNING n.id
    """
)
_INSERT_EVENT = text(
    """
    INSERT INTO notification_log (key_notification, title, message, type, kind, status, is_force_sent)
    VALUES (:key, :title, :message, :type, :kind, 'EVENT', :at_once) RETURNING id
    """
)
_REOPEN = text(
    f"""
    UPDATE notification_log n {_SEEN}, status = 'OPEN', resolved_at = NULL, reopened = n.reopened + 1
    WHERE n.id = (SELECT id FROM notification_log
                  WHERE key_notification = :key AND status = 'RESOLVED' AND NOT is_deleted
                    AND resolved_at > now() - make_interval(secs => :quiet)
                  ORDER BY id DESC LIMIT 1)
      AND NOT EXISTS (SELECT 1 FROM notification_log
                      WHERE key_notification = :key AND status = 'OPEN' AND NOT is_deleted)
    RETURNING n.id
    """
)
_OPEN = text(
    f"""
    INSERT INTO notification_log AS n (key_notification, title, message, type, kind, status, is_force_sent)
    VALUES (:key, :title, :message, :type, :kind, 'OPEN', :at_once)
    ON CONFLICT (key_notification) WHERE status = 'OPEN' AND NOT is_deleted DO UPDATE {_SEEN}
    RETURNING n.id
    """
)
_RESOLVE = text(
    """
    UPDATE notification_log
    SET status = 'RESOLVED', resolved_at = now(), message = CASE WHEN :message = '' THEN message ELSE :message END
    WHERE key_notification = :key AND status = 'OPEN' AND NOT is_deleted RETURNING id
    """
)
_RESOLVE_TAKEN = text(
    """
    UPDATE notification_log SET status = 'RESOLVED', resolved_at = now()
    WHERE (key_notification = :new OR starts_with(key_notification, :new || '/')) AND status = 'OPEN' AND NOT is_deleted
    """
)
_RENAME = text(
    """
    UPDATE notification_log SET key_notification = :new || substr(key_notification, length(:old) + 1)
    WHERE (key_notification = :old OR starts_with(key_notification, :old || '/')) AND status = 'OPEN' AND NOT is_deleted
    """
)
_OPEN_KEYS = text(
    """
    SELECT key_notification FROM notification_log
    WHERE status = 'OPEN' AND NOT is_deleted AND starts_with(key_notification, :scope)
    """
)


def record_event(
    session: Session,
    key: str,
    severity: Severity,
    kind: str,
    message: str,
    *,
    title: str = "",
    lasting: bool = True,
    at_once: bool = True,
) -> int:
    """Note a condition or a happening, in the caller's transaction, and return the id of its entry.

    Args:
        session: of the caller.
        key: natural key, `area/name/what`; equal keys are one entry.
        severity: of this sighting; an entry keeps the highest.
        kind: what it is about, in one word.
        message: one or a few sentences for a person.
        title: headline; the message's beginning when it is empty.
        lasting: a condition, open until `resolve_event`; else a happening, told once for all sightings of its key that
            follow each other within the quiet period.
        at_once: one sighting is enough; else it is told after the setting notification_iterations.
    """
    values: dict[str, Any] = {
        "key": key[:MAX_KEY_CHARACTERS],
        "title": (title or message.splitlines()[0] if message else title or key)[:MAX_TITLE_CHARACTERS],
        "message": message[:MAX_TEXT_CHARACTERS],
        "type": severity,
        "kind": kind,
        "at_once": at_once,
        "quiet": float(get_setting(session, "notification_quiet_seconds")),
    }
    for statement in (_REOPEN, _OPEN) if lasting else (_COUNT_EVENT, _INSERT_EVENT):
        identifier = session.execute(statement, values).scalar()
        if identifier is not None:
            return int(identifier)
    raise AssertionError("an insert returns its id")


def resolve_event(session: Session, key: str, message: str = "") -> bool:
    """Say that a condition holds no more, with a last word if there is one; tell whether it was open."""
    values = {"key": key[:MAX_KEY_CHARACTERS], "message": message[:MAX_TEXT_CHARACTERS]}
    return session.execute(_RESOLVE, values).first() is not None


def rename_open_events(session: Session, kinds: Iterable[str], old: str, new: str) -> None:
    """Let the open conditions of something that has another name now be those of the new name.

    They would be told a second time under it, and some would stay open under the old one for ever. What is open under
    the new name is of something that is gone, and is resolved.

    Args:
        session: of the caller.
        kinds: of the entries; their keys are `kind:subject`, or begin with `kind:subject/`.
        old: the subject until now.
        new: the subject from now on.
    """
    for kind in kinds:
        session.execute(_RESOLVE_TAKEN, {"new": f"{kind}:{new}"})
        session.execute(_RENAME, {"old": f"{kind}:{old}", "new": f"{kind}:{new}"})


def sync_conditions(session: Session, scope: str, conditions: Mapping[str, Condition]) -> tuple[int, int]:
    """Make the open conditions of a scope those given: record each, resolve the others.

    Args:
        session: of the caller.
        scope: prefix of the keys that the caller alone answers for, such as `wal/`.
        conditions: by key; each key begins with the scope.

    Returns:
        How many hold, and how many were resolved.
    """
    for key, condition in conditions.items():
        if not key.startswith(scope):
            raise ValueError(f"the key {key!r} is outside of {scope!r}")
        record_event(
            session,
            key,
            condition.severity,
            condition.kind,
            condition.text,
            title=condition.title,
            at_once=condition.at_once,
        )
    known = {key[:MAX_KEY_CHARACTERS] for key in conditions}
    gone = [key for key in session.execute(_OPEN_KEYS, {"scope": scope}).scalars() if key not in known]
    return len(conditions), sum(resolve_event(session, key) for key in gone)
