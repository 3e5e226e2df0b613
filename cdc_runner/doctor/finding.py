"""What a check found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from cdc_runner.errors import RosettaError

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One result.

    Attributes:
        level: ok, warning (works, with a risk), or error (does not work).
        check: short name of the check, stable for machines.
        subject: what was looked at: `source shop`, `table public.orders`.
        what: what was found; no row values, no secrets.
        solution: what to do, with the SQL statement where there is one; empty for ok.
    """

    level: Level
    check: str
    subject: str
    what: str
    solution: str = ""

    def as_json(self) -> dict[str, str]:
        """Return it for machines."""
        return {
            "level": self.level,
            "check": self.check,
            "subject": self.subject,
            "what": self.what,
            "solution": self.solution,
        }


@dataclass(slots=True)
class Findings:
    """Findings about one subject, in the order of the checks."""

    subject: str
    items: list[Finding] = field(default_factory=list)

    def ok(self, check: str, what: str, subject: str | None = None) -> None:
        """Add a finding that needs nothing."""
        self.items.append(Finding("ok", check, subject or self.subject, what))

    def warning(self, check: str, what: str, solution: str, subject: str | None = None) -> None:
        """Add a risk."""
        self.items.append(Finding("warning", check, subject or self.subject, what, solution))

    def error(self, check: str, what: str, solution: str, subject: str | None = None) -> None:
        """Add something that does not work."""
        self.items.append(Finding("error", check, subject or self.subject, what, solution))

    def failure(self, check: str, error: RosettaError) -> None:
        """Add an error that ended the checks of this subject."""
        self.error(check, error.message, error.policy.solution)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found about a pipeline."""

    pipeline: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not any(finding.level == "error" for finding in self.findings)

    def count(self, level: Level) -> int:
        """Return how many findings have a level."""
        return sum(finding.level == level for finding in self.findings)

    def as_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "pipeline": self.pipeline,
            "ok": self.ok,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [finding.as_json() for finding in self.findings],
        }


def names(values: Iterable[object], limit: int = 10) -> str:
    """Return a list of names for a message, cut after `limit`."""
    shown = [str(value) for value in values]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more
