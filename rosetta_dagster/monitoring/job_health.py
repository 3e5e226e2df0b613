"""Whether the periodic works themselves do what they are for."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from cdc_runner.catalog.notifications import Condition

CADENCE_SECONDS = {
    "runner_alive": 10,
    "worker_health_check": 10,
    "pipeline_refresh_check": 10,
    "system_metric_collection": 5,
    "backfill_queue": 5,
    "replication_monitor": 60,
    "wal_monitor": 60,
    "schema_monitor": 60,
    "notification_sender": 30,
    "table_list_refresh": 300,
    "credit_monitor": 3600,
    "overview_pictures": 3600,
    "prune": 86_400,
}
"""Periodic work -> wanted time between two runs."""

LATE_FACTOR = 3
FAILURES = 3
"""In a row, before a work counts as failing: one bad tick is weather."""

_JOBS = text(
    """
    SELECT key_job_scheduler AS name, extract(epoch FROM clock_timestamp() - last_run_at)::float8 AS age,
           failures, error_message AS error, true AS has_run
    FROM job_metrics_monitoring
    UNION ALL
    -- One that never ran is as old as the control plane: a sensor that was stopped before its first tick.
    SELECT name, extract(epoch FROM clock_timestamp() - first.at)::float8, 0, NULL, false
    FROM unnest(CAST(:names AS text[])) AS name,
         (SELECT min(created_at) AS at FROM job_metrics_monitoring) AS first
    WHERE first.at IS NOT NULL AND name NOT IN (SELECT key_job_scheduler FROM job_metrics_monitoring)
    ORDER BY 1
    """
)


@dataclass(frozen=True, slots=True)
class JobHealth:
    """A periodic work: seconds since its last run, failures in a row, and the last reason.

    One that has never run is as old as the control plane.
    """

    name: str
    age: float
    failures: int
    error: str | None
    has_run: bool = True

    @property
    def problem(self) -> str | None:
        """What is wrong with it, None when it is well."""
        wanted = CADENCE_SECONDS.get(self.name)
        if wanted is not None and self.age > LATE_FACTOR * wanted + 60:
            last = f"last ran {self.age:.0f} s ago" if self.has_run else f"has not run in {self.age:.0f} s"
            return f"{self.name} {last} and should every {wanted} s"
        if self.failures >= FAILURES:
            return f"{self.name} failed {self.failures} times in a row: {self.error}"
        return None


def read_jobs(session: Session) -> list[JobHealth]:
    """Return every periodic work; none before the first of them has run."""
    return [JobHealth(**row) for row in session.execute(_JOBS, {"names": list(CADENCE_SECONDS)}).mappings()]


def job_conditions(jobs: list[JobHealth]) -> dict[str, Condition]:
    """Return a condition for each periodic work that is late or fails."""
    return {
        f"monitor:{job.name}": Condition("ERROR", "monitor", job.problem, f"{job.name} does not work", at_once=False)
        for job in jobs
        if job.problem
    }
