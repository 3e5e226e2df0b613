"""What to do about one pipeline, decided from plain facts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

STOP_GRACE_SECONDS = 25.0
"""How long a process may take to stop before it is killed; below 30 s, so that the runner itself ends within 30 s."""

BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_LONGEST_SECONDS = 60.0
HEALTHY_AFTER_SECONDS = 60.0
"""A process that ran this long starts its next back-off from the beginning."""


class Action(StrEnum):
    """What is to be done now."""

    NOTHING = "nothing"
    START = "start"
    STOP = "stop"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Situation:
    """One pipeline at one moment; times are of the monotonic clock, in seconds.

    Attributes:
        wanted: the catalog wants it to run.
        outdated: the process runs an older configuration than the catalog's.
        running: there is a process.
        stopping_since: when the process was asked to stop; None when it was not.
        start_not_before: end of the back-off.
        held_elsewhere: another runner holds the lease.
        blocked: it failed in a way that needs a person, and nothing was changed since.
        draining: the supervisor itself is stopping.
    """

    wanted: bool
    outdated: bool = False
    running: bool = False
    stopping_since: float | None = None
    start_not_before: float = 0.0
    held_elsewhere: bool = False
    blocked: bool = False
    draining: bool = False


def decide(situation: Situation, now: float, *, stop_grace_seconds: float = STOP_GRACE_SECONDS) -> Action:
    """Return what is to be done about a pipeline now."""
    if situation.running:
        if situation.stopping_since is not None:
            return Action.KILL if now - situation.stopping_since >= stop_grace_seconds else Action.NOTHING
        unwanted = situation.draining or not situation.wanted or situation.outdated
        return Action.STOP if unwanted else Action.NOTHING
    if situation.draining or not situation.wanted or situation.blocked or situation.held_elsewhere:
        return Action.NOTHING
    return Action.START if now >= situation.start_not_before else Action.NOTHING


def backoff_seconds(failures: int) -> float:
    """Return the wait after the given number of failures in a row: 1, 2, 4 ... 60 s."""
    if failures <= 0:
        return 0.0
    # The exponent is bounded: a pipeline may fail for weeks.
    return min(BACKOFF_LONGEST_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(failures - 1, 16))
