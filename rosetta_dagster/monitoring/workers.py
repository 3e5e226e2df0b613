"""Whether runners and pipelines do what is asked of them, and since when not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import WorkerHealth
from rosetta_dagster.resources.pipeline_health import PipelineHealth
from rosetta_dagster.resources.runner_heartbeats import RunnerHeartbeat

WORKER = "runner"
HISTORY_SECONDS = 60
"""A row at each change, and one a minute in between: enough to see when, and no more."""


@dataclass(frozen=True, slots=True)
class WorkersHealth:
    """Runners and pipelines at one time.

    Attributes:
        problems: one sentence each; none when all is well.
    """

    runners: int
    wanted: int
    held: int
    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether every wanted pipeline is held by a living runner and none reports an error."""
        return not self.problems

    @property
    def line(self) -> str:
        """One line for the list of ticks."""
        state = f"{self.runners} runners, {self.held} of {self.wanted} wanted pipelines held"
        if not self.problems:
            return state
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        return f"{state}; {self.problems[0]}{more}"


def held_pipelines(session: Session) -> set[str]:
    """Return the names of the pipelines whose lease is in force."""
    rows = session.execute(
        text(
            """
            SELECT p.name FROM runner_leases l JOIN pipelines p ON p.id = l.pipeline_id
            WHERE l.holder IS NOT NULL AND l.expires_at > clock_timestamp()
            """
        )
    )
    return set(rows.scalars())


def assess(runners: Sequence[RunnerHeartbeat], pipelines: Sequence[PipelineHealth], held: set[str]) -> WorkersHealth:
    """Return the health of all workers."""
    wanted = [pipeline for pipeline in pipelines if pipeline.wanted != "PAUSE"]
    problems = [] if runners or not wanted else ["no runner lives"]
    for pipeline in wanted:
        if pipeline.state == "ERROR":
            problems.append(f"{pipeline.pipeline}: {pipeline.last_error or 'in error'}")
        elif runners and pipeline.pipeline not in held:
            problems.append(f"{pipeline.pipeline}: wanted, but no runner holds it")
    count = sum(pipeline.pipeline in held for pipeline in wanted)
    return WorkersHealth(len(runners), len(wanted), count, tuple(problems))


def store_health(session: Session, health: WorkersHealth) -> bool:
    """Keep the health when it has changed or the last row is a minute old; return whether a row was added."""
    last = session.execute(
        select(WorkerHealth.healthy, WorkerHealth.error_message,
               func.extract("epoch", func.now() - WorkerHealth.last_check_at).label("age"))
        .where(WorkerHealth.worker == WORKER)
        .order_by(WorkerHealth.last_check_at.desc())
        .limit(1)
    ).first()  # fmt: skip
    reason = "; ".join(health.problems)[:2000] or None
    if (
        last is not None
        and (last.healthy, last.error_message) == (health.healthy, reason)
        and last.age < HISTORY_SECONDS
    ):
        return False
    session.add(
        WorkerHealth(
            worker=WORKER,
            healthy=health.healthy,
            active_workers=health.runners,
            active_tasks=health.held,
            reserved_tasks=health.wanted,
            error_message=reason,
        )
    )
    return True
