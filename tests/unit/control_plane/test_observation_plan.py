from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from rosetta_dagster.resources.pipeline_health import PipelineHealth, StreamHealth, TableHealth
from rosetta_dagster.sensors.observation_plan import (
    TABLE_EVENTS_PER_TICK,
    Memory,
    plan_observations,
)

NOW = 1_800_000_000.0


def stream(lag_ms: int | None = 80, age_seconds: float = 1.0, error: str | None = None) -> StreamHealth:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return StreamHealth("shop_copy", "warehouse", 300, 200, 100, 100, lag_ms, at, age_seconds, error)


def table(name: str = "orders", *, rows: int = 0, state: str = "STREAMING", error: str | None = None) -> TableHealth:
    return TableHealth("shop_copy", "warehouse", "public", name, "public", name, state, 0, rows, 7, error)


def pipeline(*tables: TableHealth, state: str = "RUNNING", streams: tuple[StreamHealth, ...] = ()) -> PipelineHealth:
    return PipelineHealth("shop_copy", "shop", "START", state, None, streams or (stream(),), tables)


def test_table_is_told_on_change_and_at_most_every_ten_minutes() -> None:
    memory, told = Memory(), []
    for second in range(0, 3600, 60):
        plan = plan_observations([pipeline(table(rows=second))], memory, NOW + second)
        memory = Memory.from_text(plan.memory.to_text())
        told += [second] * len(plan.tables)
    assert told == [0, 600, 1200, 1800, 2400, 3000]


def test_idle_table_is_told_once() -> None:
    memory, told = Memory(), 0
    for second in range(0, 7200, 60):
        plan = plan_observations([pipeline(table(rows=5))], memory, NOW + second)
        memory, told = plan.memory, told + len(plan.tables)
    assert told == 1


def test_change_of_state_or_error_is_told_at_once() -> None:
    memory = plan_observations([pipeline(table())], Memory(), NOW).memory
    failed = plan_observations([pipeline(table(error="type clash"))], memory, NOW + 60)
    assert len(failed.tables) == 1
    mended = plan_observations([pipeline(table())], failed.memory, NOW + 120)
    assert len(mended.tables) == 1


def test_check_of_a_table_is_told_with_its_state_and_when_letters_come_or_go() -> None:
    waiting = dataclasses.replace(table(), dead_letters=2, dead_letter_keys=1)
    lost = dataclasses.replace(waiting, dead_letters_lost=1)
    memory, told = Memory(), []
    for second, one in enumerate([table(), table(rows=5), waiting, waiting, lost, table(rows=9)]):
        plan = plan_observations([pipeline(one)], memory, NOW + 700 * second)
        memory = Memory.from_text(plan.memory.to_text())
        told.append((len(plan.tables), len(plan.changed)))
    assert told == [(1, 1), (1, 0), (1, 1), (0, 0), (1, 1), (1, 1)]


def test_many_changes_are_spread_over_ticks_and_none_is_forgotten() -> None:
    tables = [table(f"t{n}") for n in range(250)]
    memory, told = Memory(), []
    for tick in range(4):
        plan = plan_observations([pipeline(*tables)], memory, NOW + 60 * tick)
        assert len(plan.tables) <= TABLE_EVENTS_PER_TICK
        memory = plan.memory
        told += [one.source_table for one in plan.tables]
    assert sorted(told) == sorted(one.source_table for one in tables)


def test_removed_tables_leave_the_memory() -> None:
    memory = plan_observations([pipeline(table("a"), table("b"))], Memory(), NOW).memory
    assert len(plan_observations([pipeline(table("a"))], memory, NOW + 60).memory.tables) == 1


def test_rate_is_taken_between_ticks_and_never_negative() -> None:
    first = plan_observations([pipeline(table(rows=100))], Memory(), NOW)
    assert first.pipelines[0].rows_per_second is None
    second = plan_observations([pipeline(table(rows=700))], first.memory, NOW + 60)
    assert second.pipelines[0].rows_per_second == 10.0
    refreshed = plan_observations([pipeline(table(rows=0))], second.memory, NOW + 120)
    assert refreshed.pipelines[0].rows_per_second == 0.0


def test_check_is_told_on_change_and_each_hour() -> None:
    memory, told = Memory(), []
    for second in range(0, 7200, 60):
        state = "ERROR" if 1800 <= second < 2400 else "RUNNING"
        plan = plan_observations([pipeline(table(), state=state)], memory, NOW + second)
        memory = Memory.from_text(plan.memory.to_text())
        told += [(second, verdict.passed) for _, verdict in plan.checks if verdict.name == "pipeline_runs"]
    assert told == [(0, True), (1800, False), (2400, True), (6000, True)]


@pytest.mark.parametrize(
    ("health", "keeps_up"),
    [
        (pipeline(table()), True),
        (pipeline(), True),
        (pipeline(table(), state="PAUSED"), False),
        (pipeline(table(state="LOADING")), False),
        (pipeline(table(), streams=(stream(), stream(lag_ms=120_000))), False),
        (pipeline(table(), streams=(stream(lag_ms=None),)), False),
        (pipeline(table(), streams=(stream(age_seconds=300),)), False),
        (pipeline(table(), streams=(stream(error="connection refused"),)), False),
    ],
)
def test_pipeline_keeps_up_only_when_every_part_does(health: PipelineHealth, keeps_up: bool) -> None:
    assert health.keeps_up is keeps_up


def test_status_line_reads_as_one() -> None:
    assert plan_observations([], Memory(), NOW).status == "no pipelines"
    line = plan_observations([pipeline(table(), table("b", state="LOADING"))], Memory(), NOW).status
    assert line == "1 pipeline: 1 RUNNING; 2 tables: 1 LOADING, 1 STREAMING; worst lag 80 ms (shop_copy)"


@pytest.mark.parametrize(
    "cursor", [None, "", "x", "[]", '{"version": 9}', '{"version": 2}', '{"version":2,"tables":5}']
)
def test_strange_cursor_starts_afresh(cursor: str | None) -> None:
    assert Memory.from_text(cursor) == Memory()
