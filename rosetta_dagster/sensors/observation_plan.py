"""Which assets get an event at a tick, so that plots are full and the event log stays small. Pure.

A pipeline: at every tick. A check: when its outcome changes, and each hour. A table: at once when its state, its error
or its dead letters change, with the outcome of its check; else when rows came and the last event is
TABLE_INTERVAL_SECONDS old. Dagster never removes events itself: this
rule is what bounds its database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rosetta_dagster.monitoring.verdicts import CheckVerdict, verdicts
from rosetta_dagster.resources.pipeline_health import PipelineHealth, TableHealth

TABLE_INTERVAL_SECONDS = 600
CHECK_INTERVAL_SECONDS = 3600
TABLE_EVENTS_PER_TICK = 150
"""Tables; those that changed have two events. An event takes about 10 ms to store, or several times that on a busy
machine; a tick must stay below a minute."""
_VERSION = 2


@dataclass(slots=True)
class Memory:
    """What was told before: see observation_memory.

    Attributes:
        tables: short hash of a table -> state, rows and time (seconds since 1970) of its last event.
        pipelines: name -> rows applied and time at the last tick.
        checks: `pipeline check` -> outcome and time of its last event.
    """

    tables: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    pipelines: dict[str, tuple[int, float]] = field(default_factory=dict)
    checks: dict[str, tuple[str, int]] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return the text to keep between ticks."""
        content = {
            "version": _VERSION,
            "tables": self.tables,
            "pipelines": self.pipelines,
            "checks": self.checks,
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str | None) -> Memory:
        """Return the memory of a text; an empty one when there is none of this version."""
        try:
            content = json.loads(text or "{}")
            if content.get("version") != _VERSION:
                return cls()
            return cls(
                {key: (str(state), int(rows), int(at)) for key, (state, rows, at) in content["tables"].items()},
                {name: (int(rows), float(at)) for name, (rows, at) in content["pipelines"].items()},
                {name: (str(outcome), int(at)) for name, (outcome, at) in content["checks"].items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()


@dataclass(frozen=True, slots=True)
class PipelineNote:
    """One pipeline at a tick, with its rate since the tick before; None at the first."""

    health: PipelineHealth
    rows_per_second: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The events of a tick, what to remember, and the status line.

    Attributes:
        changed: those of `tables` whose state is another: their check is told, too.
    """

    pipelines: tuple[PipelineNote, ...]
    tables: tuple[TableHealth, ...]
    changed: tuple[TableHealth, ...]
    checks: tuple[tuple[str, CheckVerdict], ...]
    memory: Memory
    status: str


def plan_observations(health: Sequence[PipelineHealth], memory: Memory, now: float) -> Plan:
    """Return the events that are due. Tables beyond the limit of a tick come at the next one."""
    due: list[tuple[int, TableHealth]] = []
    kept: dict[str, tuple[str, int, int]] = {}
    for table in (table for pipeline in health for table in pipeline.tables):
        name = _short(table)
        before = memory.tables.get(name)
        if before is not None:
            kept[name] = before
        if _is_due(table, before, now):
            # Never told and changed states first, then those that wait longest.
            due.append((0 if before is None or before[0] != _state(table) else before[2], table))
    due.sort(key=lambda entry: entry[0])
    chosen = tuple(table for _, table in due[:TABLE_EVENTS_PER_TICK])
    changed = tuple(table for at, table in due[: len(chosen)] if at == 0)
    kept.update({_short(table): (_state(table), _rows(table), int(now)) for table in chosen})
    notes = tuple(PipelineNote(one, _rate(one, memory, now)) for one in health)
    totals = {one.pipeline: (pipeline_rows(one), now) for one in health}
    checks, outcomes = _due_checks(health, memory, now)
    return Plan(notes, chosen, changed, checks, Memory(kept, totals, outcomes), status_line(health))


def _due_checks(
    health: Sequence[PipelineHealth], memory: Memory, now: float
) -> tuple[tuple[tuple[str, CheckVerdict], ...], dict[str, tuple[str, int]]]:
    due: list[tuple[str, CheckVerdict]] = []
    outcomes: dict[str, tuple[str, int]] = {}
    for one in health:
        for verdict in verdicts(one):
            # A slash is in no name of a pipeline.
            name, outcome = f"{one.pipeline}/{verdict.name}", f"{verdict.passed}{verdict.is_warning}"
            before = memory.checks.get(name)
            if before is not None and before[0] == outcome and now - before[1] < CHECK_INTERVAL_SECONDS:
                outcomes[name] = before
            else:
                due.append((one.pipeline, verdict))
                outcomes[name] = (outcome, int(now))
    return tuple(due), outcomes


def pipeline_rows(health: PipelineHealth) -> int:
    """Return the rows that a pipeline has brought to its destinations, loaded and streamed."""
    return sum(_rows(table) for table in health.tables)


def status_line(health: Sequence[PipelineHealth]) -> str:
    """Return one line for the list of ticks: `3 pipelines: 2 RUNNING, 1 ERROR; 24 tables; worst lag 120 ms (shop)`."""
    if not health:
        return "no pipelines"
    parts = [f"{len(health)} pipeline{'s' if len(health) > 1 else ''}: {_counts(one.state for one in health)}"]
    tables = [table for one in health for table in one.tables]
    parts.append(
        f"{len(tables)} tables: {_counts(table.load_state for table in tables)}" if tables else "no tables yet"
    )
    lags = [(one.worst_lag_ms, one.pipeline) for one in health if one.worst_lag_ms is not None]
    if lags:
        worst, name = max(lags)
        parts.append(f"worst lag {worst:,} ms ({name})")
    return "; ".join(parts)


def _counts(words: Iterable[str]) -> str:
    known: dict[str, int] = {}
    for word in words:
        known[word] = known.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in sorted(known.items()))


def _is_due(table: TableHealth, before: tuple[str, int, int] | None, now: float) -> bool:
    if before is None or before[0] != _state(table):
        return True
    return before[1] != _rows(table) and now - before[2] >= TABLE_INTERVAL_SECONDS


def _rate(health: PipelineHealth, memory: Memory, now: float) -> float | None:
    before = memory.pipelines.get(health.pipeline)
    if before is None or now <= before[1]:
        return None
    # A refresh starts the counts again.
    return round(max(0, pipeline_rows(health) - before[0]) / (now - before[1]), 2)


def _rows(table: TableHealth) -> int:
    return table.loaded_rows + table.applied_rows


def _state(table: TableHealth) -> str:
    letters = "lost" if table.dead_letters_lost else "waiting" if table.dead_letters else ""
    return f"{table.load_state}{'!' if table.error else ''}{letters}"


def _short(table: TableHealth) -> str:
    path = "\0".join((table.pipeline, table.destination, table.target_schema, table.target_table, table.source_table))
    return hashlib.sha256(path.encode()).hexdigest()[:10]
