"""What must hold for a pipeline, each as one yes or no with its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from rosetta_dagster.resources.pipeline_health import (
    KEEPS_UP_LAG_MS,
    RECENT_REPORT_SECONDS,
    PipelineHealth,
    TableHealth,
)

CHECKS: dict[str, str] = {
    "pipeline_runs": "A pipeline that is to run does run, and reports no error.",
    "lag_within_objective": f"Every destination is at most {KEEPS_UP_LAG_MS // 1000} s behind the source.",
    "slot_healthy": "Replication slot and publication are there, and the WAL kept for them is within its limits.",
    "tables_in_step": "No table of the pipeline is in error.",
    "dead_letters_empty": "No change waits in a dead-letter queue, and the queues can be used.",
}
"""Name -> what it says. A paused pipeline passes: nobody asked it to do anything."""


@dataclass(frozen=True, slots=True)
class CheckVerdict:
    """The outcome of one check.

    Attributes:
        is_warning: a failure that needs a look, not a hand.
        numbers: what it was judged by.
    """

    name: str
    passed: bool
    reason: str
    is_warning: bool = False
    numbers: dict[str, int | str] = field(default_factory=dict)


def verdicts(health: PipelineHealth) -> list[CheckVerdict]:
    """Return the outcome of every check of a pipeline."""
    return [_runs(health), _lag(health), _slot(health), _tables(health), _dead_letters(health)]


def _runs(health: PipelineHealth) -> CheckVerdict:
    if health.wanted == "PAUSE":
        return CheckVerdict("pipeline_runs", True, "paused on purpose")
    if health.state == "ERROR":
        return CheckVerdict("pipeline_runs", False, health.last_error or "it reports an error")
    return CheckVerdict("pipeline_runs", health.state == "RUNNING", f"{health.state}, set to {health.wanted}")


def _lag(health: PipelineHealth) -> CheckVerdict:
    name = "lag_within_objective"
    if health.wanted == "PAUSE":
        return CheckVerdict(name, True, "paused on purpose")
    numbers: dict[str, int | str] = {}
    if health.worst_lag_ms is not None:
        numbers["lag ms"] = health.worst_lag_ms
    late = [one for one in health.streams if not one.keeps_up]
    if not health.streams:
        return CheckVerdict(name, False, "no destination", numbers=numbers)
    if not late:
        return CheckVerdict(name, True, f"{health.worst_lag_ms:,} ms behind the source at the most", numbers=numbers)
    first = late[0]
    if first.error:
        reason = f"{first.destination}: {first.error}"
    elif first.age_seconds is None or first.lag_ms is None:
        reason = f"{first.destination}: nothing was reported yet"
    elif first.age_seconds > RECENT_REPORT_SECONDS:
        reason = f"{first.destination}: nothing was reported for {first.age_seconds:.0f} s"
    else:
        reason = f"{first.destination}: {first.lag_ms:,} ms behind the source"
    return CheckVerdict(name, False, reason, numbers=numbers)


def _slot(health: PipelineHealth) -> CheckVerdict:
    numbers: dict[str, int | str] = {}
    if health.retained_wal_bytes is not None:
        numbers["slot WAL bytes"] = health.retained_wal_bytes
    return CheckVerdict(
        "slot_healthy",
        health.slot_status in (None, "OK"),
        health.slot_problem or ("not looked at yet" if health.slot_status is None else "well"),
        is_warning=health.slot_status == "WARNING",
        numbers=numbers,
    )


def _tables(health: PipelineHealth) -> CheckVerdict:
    bad = [table for table in health.tables if table.error]
    numbers: dict[str, int | str] = {"tables": len(health.tables), "tables in error": len(bad)}
    if not bad:
        return CheckVerdict("tables_in_step", True, f"{len(health.tables)} tables without an error", numbers=numbers)
    first = bad[0]
    reason = f"{first.target_schema}.{first.target_table} in {first.destination}: {first.error}"
    return CheckVerdict("tables_in_step", False, reason, numbers=numbers)


TABLE_CHECK = "dead_letters_empty"


def _dead_letters(health: PipelineHealth) -> CheckVerdict:
    """Judge all queues of a pipeline: a lost entry is an error, one that waits or a queue out of order a warning."""
    name = "dead_letters_empty"
    waiting = [table_letters(table) for table in health.tables if table.dead_letters]
    numbers: dict[str, int | str] = {
        "dead letters": sum(table.dead_letters for table in health.tables),
        "keys waiting": sum(table.dead_letter_keys for table in health.tables),
        "lost in Redis": sum(table.dead_letters_lost for table in health.tables),
    }
    if waiting:
        worst = min(waiting, key=lambda verdict: verdict.is_warning)
        return CheckVerdict(name, False, worst.reason, is_warning=worst.is_warning, numbers=numbers)
    for stream in health.streams:
        if stream.parked_batches:
            reason = f"{stream.destination} is away: {stream.parked_batches} batches for it are parked in Redis"
            return CheckVerdict(name, False, reason, is_warning=True, numbers=numbers)
        if stream.queue_state in ("UNAVAILABLE", "NOT_DURABLE"):
            reason = f"{stream.destination}: {stream.queue_problem}"
            return CheckVerdict(name, False, reason, is_warning=True, numbers=numbers)
    return CheckVerdict(name, True, "none waits", numbers=numbers)


def table_letters(table: TableHealth) -> CheckVerdict:
    """Judge the dead letters of one table."""
    numbers: dict[str, int | str] = {
        "dead letters": table.dead_letters,
        "keys waiting": table.dead_letter_keys,
        "lost in Redis": table.dead_letters_lost,
    }
    if not table.dead_letters:
        return CheckVerdict(TABLE_CHECK, True, "none waits", numbers=numbers)
    lost = f", {table.dead_letters_lost} of them lost in Redis" if table.dead_letters_lost else ""
    reason = (
        f"{table.target_schema}.{table.target_table} in {table.destination}: {table.dead_letters} changes of "
        f"{table.dead_letter_keys} keys wait{lost}: {table.dead_letter_reason or 'no reason was told'}"
    )
    return CheckVerdict(TABLE_CHECK, False, reason, is_warning=not table.dead_letters_lost, numbers=numbers)
