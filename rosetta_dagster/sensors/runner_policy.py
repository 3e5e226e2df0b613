"""When a runner is started again, and when not yet. Pure: no clock, no input but the arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from rosetta_dagster.resources.runner_heartbeats import LIVE_HEARTBEAT_SECONDS, RunnerHeartbeat

_VERSION = 1
FIRST_DELAY_SECONDS = 20.0
LAST_DELAY_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Incident:
    """A time without a runner.

    Attributes:
        began_at: seconds since 1970; 0 while a runner lives. Part of the run key, so that keys of two incidents differ.
        attempts: starts asked for in this incident.
        last_attempt_at: seconds since 1970 of the newest one.
    """

    began_at: float = 0.0
    attempts: int = 0
    last_attempt_at: float = 0.0

    @property
    def next_attempt_at(self) -> float:
        """When the next start may be asked for: at once, then 20 s later, 40 s, ... at most 10 minutes."""
        if self.attempts == 0:
            return 0.0
        growth = 2.0 ** min(self.attempts - 1, 30)
        return self.last_attempt_at + min(FIRST_DELAY_SECONDS * growth, LAST_DELAY_SECONDS)

    def to_cursor(self) -> str:
        """Return the text that Dagster keeps between ticks."""
        return json.dumps({"version": _VERSION, **asdict(self)})

    @classmethod
    def from_cursor(cls, cursor: str | None) -> Incident:
        """Return the incident of a cursor; none when there is no cursor or it is of another version."""
        try:
            fields = json.loads(cursor or "{}")
            if fields.pop("version", None) != _VERSION:
                return cls()
            return cls(**fields)
        except (ValueError, TypeError, AttributeError):
            return cls()


@dataclass(frozen=True, slots=True)
class Decision:
    """What a tick does: the status line, the new incident state, and the run key when a start is asked for."""

    status: str
    incident: Incident
    run_key: str | None = None


def decide(
    alive: Sequence[RunnerHeartbeat],
    last: RunnerHeartbeat | None,
    *,
    auto_start: bool,
    start_in_progress: bool,
    incident: Incident,
    now: float,
) -> Decision:
    """Return what to do about the runner, of which `last` gave the newest heartbeat.

    A run key is used once for ever by Dagster, so it carries the incident and a counter: without them a runner would be
    started again exactly once in its life.
    """
    if alive:
        return Decision(_alive_status(alive), Incident())
    seen = f"last heartbeat {_duration(last.age_seconds)} ago, {last.state}" if last else "never seen"
    if not auto_start:
        return Decision(f"no runner ({seen}); runner_auto_start is off", Incident())
    if start_in_progress:
        return Decision(f"no runner ({seen}); start_runner is in progress", incident)
    if now < incident.next_attempt_at:
        wait = _duration(incident.next_attempt_at - now)
        return Decision(f"no runner ({seen}); attempt {incident.attempts + 1} in {wait}", incident)
    begun = incident if incident.began_at else replace(incident, began_at=now)
    asked = replace(begun, attempts=begun.attempts + 1, last_attempt_at=now)
    return Decision(
        f"no runner ({seen}); starting it, attempt {asked.attempts}",
        asked,
        run_key=f"start_runner:{asked.began_at:.0f}:{asked.attempts}",
    )


def _alive_status(alive: Sequence[RunnerHeartbeat]) -> str:
    newest = alive[0]
    more = f" and {len(alive) - 1} more" if len(alive) > 1 else ""
    return (
        f"runner {newest.state} on {newest.host} (pid {newest.pid}, up {_duration(newest.uptime_seconds)},"
        f" heartbeat {newest.age_seconds:.0f} of {LIVE_HEARTBEAT_SECONDS} s old){more}"
    )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h" if whole < 172800 else f"{whole // 86400} d"
