"""What a channel is told, as it was when it was announced, and how it reads for a person."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MARKS = {"INFO": "\N{INFORMATION SOURCE}", "WARNING": "\N{WARNING SIGN}", "ERROR": "\N{LARGE RED CIRCLE}"}
RESOLVED_MARK = "\N{WHITE HEAVY CHECK MARK}"
_WORDS = {"ESCALATED": " (worse now)", "REMINDER": " (still)", "RESOLVED": " (resolved)", "TEST": " (test)"}


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        announcement: OPENED, ESCALATED, REMINDER, RESOLVED, EVENT or TEST.
        key: of the notification.
        kind: what it is about, in one word.
        severity: INFO, WARNING or ERROR.
        title: headline.
        text: a few sentences.
        count: sightings so far.
        first_seen_at: ISO 8601, UTC.
        last_seen_at: the same.
        resolved_at: the same; None while it lasts.
    """

    announcement: str
    key: str
    kind: str
    severity: str
    title: str
    text: str
    count: int
    first_seen_at: str
    last_seen_at: str
    resolved_at: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Message:
        """Return a stored message."""
        return cls(**content)

    @property
    def headline(self) -> str:
        """One line that tells how bad it is without colours."""
        mark = RESOLVED_MARK if self.announcement == "RESOLVED" else MARKS.get(self.severity, "")
        return f"{mark} {self.severity} {self.title}{_WORDS.get(self.announcement, '')}".strip()

    def body(self, limit: int) -> str:
        """Return the text with its facts, cut to `limit` characters."""
        facts = [f"{self.kind}: {self.key}", f"since {self.first_seen_at}, seen {self.count} times"]
        if self.resolved_at:
            facts.append(f"resolved {self.resolved_at}")
        end = "\n" + "\n".join(facts)
        # A headline that is the text's beginning would only be said twice.
        told = "" if self.text == self.title else self.text
        room = max(0, limit - len(end) - 1)
        return ((told if len(told) <= room else told[: max(0, room - 1)] + "…") + end).strip()[:limit]
