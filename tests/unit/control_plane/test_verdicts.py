from __future__ import annotations

from dataclasses import replace

import pytest

from rosetta_dagster.monitoring.verdicts import CHECKS, verdicts
from rosetta_dagster.resources.pipeline_health import PipelineHealth, StreamHealth, TableHealth

STREAM = StreamHealth("shop", "warehouse", 3, 3, 3, 0, 80, None, 1.0, None)
TABLE = TableHealth("shop", "warehouse", "public", "orders", "public", "orders", "STREAMING", 1, 1, None, None)
GOOD = PipelineHealth("shop", "shop", "START", "RUNNING", None, (STREAM,), (TABLE,), "OK", None, 10)


def failing(health: PipelineHealth) -> dict[str, str]:
    outcome = verdicts(health)
    assert [verdict.name for verdict in outcome] == list(CHECKS)
    return {verdict.name: verdict.reason for verdict in outcome if not verdict.passed}


def test_pipeline_in_order_passes_everything() -> None:
    assert failing(GOOD) == {}


def test_pipeline_paused_on_purpose_passes() -> None:
    late = replace(STREAM, lag_ms=9_000_000, age_seconds=9000.0)
    assert failing(replace(GOOD, wanted="PAUSE", state="PAUSED", streams=(late,))) == {}


@pytest.mark.parametrize(
    ("health", "check", "words"),
    [
        (replace(GOOD, state="ERROR", last_error="the slot is gone"), "pipeline_runs", "the slot is gone"),
        (replace(GOOD, state="PAUSED"), "pipeline_runs", "PAUSED, set to START"),
        (replace(GOOD, streams=(replace(STREAM, lag_ms=61_000),)), "lag_within_objective", "61,000 ms behind"),
        (replace(GOOD, streams=(replace(STREAM, lag_ms=None),)), "lag_within_objective", "nothing was reported yet"),
        (replace(GOOD, streams=(replace(STREAM, age_seconds=120.0),)), "lag_within_objective", "for 120 s"),
        (replace(GOOD, streams=(replace(STREAM, error="refused"),)), "lag_within_objective", "warehouse: refused"),
        (replace(GOOD, streams=()), "lag_within_objective", "no destination"),
        (replace(GOOD, slot_status="ERROR", slot_problem="no slot"), "slot_healthy", "no slot"),
        (replace(GOOD, tables=(replace(TABLE, error="type clash"),)), "tables_in_step", "public.orders in warehouse"),
    ],
)
def test_one_thing_wrong_fails_one_check_with_its_reason(health: PipelineHealth, check: str, words: str) -> None:
    failed = failing(health)
    assert list(failed) == [check]
    assert words in failed[check]
