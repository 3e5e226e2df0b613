"""When the definitions are loaded again after a change of the catalog. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

QUIET_SECONDS = 30.0
"""Least time between two reloads: each starts a new code server process, about 3 s of one core."""
_VERSION = 2


@dataclass(frozen=True, slots=True)
class ReloadState:
    """What earlier ticks saw.

    Attributes:
        fingerprint: of the catalog at the last tick.
        reloaded_at: seconds since 1970 of the last reload.
        names: fingerprint of the names that the pickers were given.
    """

    fingerprint: str = ""
    reloaded_at: float = 0.0
    names: str = ""

    def to_cursor(self) -> str:
        """Return the text that Dagster keeps between ticks."""
        return json.dumps({"version": _VERSION, **asdict(self)})

    @classmethod
    def from_cursor(cls, cursor: str | None) -> ReloadState:
        """Return the state of a cursor; a new one when there is none of this version."""
        try:
            fields = json.loads(cursor or "{}")
            return cls(**fields) if fields.pop("version", None) == _VERSION else cls()
        except (ValueError, TypeError, AttributeError):
            return cls()


def is_reload_due(loaded: str, current: str, state: ReloadState, now: float) -> bool:
    """Whether to load again: the catalog differs from what was loaded, is quiet since a tick, and so are reloads."""
    return current not in (loaded, "") and current == state.fingerprint and now - state.reloaded_at >= QUIET_SECONDS


def seen(state: ReloadState, current: str) -> ReloadState:
    """Return the state after a tick without a reload."""
    return replace(state, fingerprint=current)
