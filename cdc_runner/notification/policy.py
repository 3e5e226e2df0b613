"""Whether a notification is to be told now, and as what. Pure."""

from __future__ import annotations

from dataclasses import dataclass

RANK = {"INFO": 0, "WARNING": 1, "ERROR": 2}
FIRST_DELAY_SECONDS = 30
LAST_DELAY_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a notification; ages in seconds, None where it has not happened.

    Attributes:
        status: OPEN, RESOLVED or EVENT.
        severity: INFO, WARNING or ERROR.
        count: sightings.
        at_once: one sighting is enough.
        is_read: a person has seen it, and needs no reminder.
        announced_status: status of the last announcement.
        announced_severity: its severity.
        announced_age: its age.
        resolved_age: since it was resolved.
    """

    status: str
    severity: str
    count: int
    at_once: bool
    is_read: bool = False
    announced_status: str | None = None
    announced_severity: str | None = None
    announced_age: float | None = None
    resolved_age: float | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that decide: sightings, seconds of quiet before a resolution is told, seconds between reminders."""

    iterations: int
    quiet_seconds: float
    reminder_seconds: float


def announcement(standing: Standing, rules: Rules) -> str | None:
    """Return OPENED, ESCALATED, REMINDER, RESOLVED or EVENT when something is to be told, else None."""
    if standing.status == "EVENT":
        return "EVENT" if standing.announced_status is None else None
    if standing.status == "RESOLVED":
        # What nobody heard of needs no all-clear.
        told = standing.announced_status == "OPEN"
        return "RESOLVED" if told and (standing.resolved_age or 0) >= rules.quiet_seconds else None
    if standing.announced_status != "OPEN":
        seen_enough = standing.at_once or standing.count >= rules.iterations
        return "OPENED" if seen_enough else None
    if RANK[standing.severity] > RANK.get(standing.announced_severity or "INFO", 0):
        return "ESCALATED"
    due = rules.reminder_seconds > 0 and (standing.announced_age or 0) >= rules.reminder_seconds
    return "REMINDER" if due and not standing.is_read else None


def backoff_seconds(attempts: int) -> float:
    """Return the pause after so many attempts: 30 s, 1 min, 2 min, … half an hour."""
    return float(min(FIRST_DELAY_SECONDS * 2 ** min(max(attempts, 1) - 1, 20), LAST_DELAY_SECONDS))
