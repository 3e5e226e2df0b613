"""The runners' signs of life, as the config database has them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

LIVE_HEARTBEAT_SECONDS = 30
"""A runner whose heartbeat is older does not count as alive."""


@dataclass(frozen=True, slots=True)
class RunnerHeartbeat:
    """The newest sign of life of a runner.

    Attributes:
        age_seconds: since the heartbeat, by the config database's clock.
        state: STARTING, RUNNING, DRAINING, STOPPED or ERROR.
    """

    runner_id: str
    host: str
    pid: int
    state: str
    age_seconds: float
    uptime_seconds: float
    health_port: int | None
    last_error: str | None

    @property
    def alive(self) -> bool:
        """Whether this runner works now, as far as the config database knows."""
        return self.state in ("STARTING", "RUNNING", "DRAINING") and self.age_seconds <= LIVE_HEARTBEAT_SECONDS


_HEARTBEATS = text(
    """
    SELECT runner_id, host, pid, state, health_port, last_error,
           extract(epoch FROM clock_timestamp() - heartbeat_at)::float8 AS age_seconds,
           extract(epoch FROM heartbeat_at - started_at)::float8 AS uptime_seconds
    FROM runner_heartbeats ORDER BY heartbeat_at DESC LIMIT 50
    """
)


def read_runners(session: Session) -> list[RunnerHeartbeat]:
    """Return the runners that were seen last, the newest heartbeat first."""
    return [RunnerHeartbeat(**row) for row in session.execute(_HEARTBEATS).mappings()]
