from __future__ import annotations

from rosetta_dagster.monitoring.workers import assess
from rosetta_dagster.resources.pipeline_health import PipelineHealth
from rosetta_dagster.resources.runner_heartbeats import RunnerHeartbeat

RUNNER = RunnerHeartbeat("host:1:x", "host", 1, "RUNNING", 1.0, 10.0, 8001, None)


def pipeline(name: str, wanted: str = "START", state: str = "RUNNING", error: str | None = None) -> PipelineHealth:
    return PipelineHealth(name, "shop", wanted, state, error, (), ())


def test_all_well() -> None:
    health = assess([RUNNER], [pipeline("a"), pipeline("b", wanted="PAUSE")], {"a"})
    assert health.healthy
    assert health.line == "1 runners, 1 of 1 wanted pipelines held"


def test_nothing_wanted_needs_no_runner() -> None:
    assert assess([], [pipeline("a", wanted="PAUSE")], set()).healthy


def test_each_problem_is_named() -> None:
    pipelines = [pipeline("a"), pipeline("b", state="ERROR", error="the slot was dropped")]
    assert assess([], pipelines, set()).problems == ("no runner lives", "b: the slot was dropped")
    assert assess([RUNNER], pipelines, {"b"}).problems == (
        "a: wanted, but no runner holds it",
        "b: the slot was dropped",
    )
