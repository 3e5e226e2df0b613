from __future__ import annotations

import itertools

import pytest

from rosetta_dagster.resources.runner_heartbeats import RunnerHeartbeat
from rosetta_dagster.sensors.runner_policy import LAST_DELAY_SECONDS, Decision, Incident, decide

NOW = 1_800_000_000.0


def heartbeat(age_seconds: float = 1.0, state: str = "RUNNING") -> RunnerHeartbeat:
    return RunnerHeartbeat("host:1:x", "host", 1, state, age_seconds, 100.0, 8001, None)


def tick(incident: Incident, now: float, *, auto_start: bool = True, busy: bool = False) -> Decision:
    return decide([], None, auto_start=auto_start, start_in_progress=busy, incident=incident, now=now)


def test_living_runner_is_left_alone_and_ends_the_incident() -> None:
    runner = heartbeat()
    decision = decide(
        [runner], runner, auto_start=True, start_in_progress=False, incident=Incident(NOW, 3, NOW), now=NOW
    )
    assert decision.run_key is None
    assert decision.incident == Incident()
    assert "RUNNING on host" in decision.status


@pytest.mark.parametrize(("age", "state", "alive"), [
    (1, "RUNNING", True), (1, "STARTING", True), (29, "DRAINING", True), (31, "RUNNING", False),
    (1, "STOPPED", False), (1, "ERROR", False),
])  # fmt: skip
def test_heartbeat_tells_who_lives(age: float, state: str, alive: bool) -> None:
    assert heartbeat(age, state).alive is alive


def test_dead_runner_is_started_at_once_then_with_growing_pauses() -> None:
    incident, starts = Incident(), []
    for second in range(0, 3600, 10):
        decision = tick(incident, NOW + second)
        incident = decision.incident
        if decision.run_key:
            starts.append(second)
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert starts[0] == 0
    assert gaps[:4] == [20, 40, 80, 160]
    assert max(gaps) == LAST_DELAY_SECONDS


def test_run_keys_never_repeat_within_or_across_incidents() -> None:
    keys = []
    for begin in (NOW, NOW + 86_400):
        incident = Incident()
        for second in range(0, 600, 10):
            decision = tick(incident, begin + second)
            incident = Incident.from_cursor(decision.incident.to_cursor())
            keys += [decision.run_key] if decision.run_key else []
    assert len(keys) == len(set(keys)) > 6


def test_runner_stopped_on_purpose_stays_stopped() -> None:
    decision = tick(Incident(), NOW, auto_start=False)
    assert decision.run_key is None
    assert "runner_auto_start is off" in decision.status


def test_start_in_progress_is_not_doubled() -> None:
    assert tick(Incident(), NOW, busy=True).run_key is None


@pytest.mark.parametrize("cursor", [None, "", "x", "[]", "5", '{"version": 99}', '{"version": 1, "other": 2}'])
def test_strange_cursor_starts_afresh(cursor: str | None) -> None:
    assert Incident.from_cursor(cursor) == Incident()
