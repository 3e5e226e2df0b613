"""The daemon reads all definitions seldom while a thread of its own watches the code server, and freshness seldom."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import DagsterInstance
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RegisteredCodeLocationOrigin
from dagster._daemon import controller as dagster_controller
from dagster._daemon.controller import DagsterDaemonController, create_daemon_of_type
from dagster._daemon.freshness import FreshnessDaemon

from rosetta_dagster.resources.lean_daemon import (
    FRESHNESS_SECONDS,
    REFRESH_SECONDS,
    judge_freshness_seldom,
    refresh_seldom,
)

WATCHED = GrpcServerCodeLocationOrigin(host="code", port=4000, location_name="rosetta")
IN_PROCESS = RegisteredCodeLocationOrigin("rosetta")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which Dagster's own method was reached, under ours."""
    made: list[float] = []

    def usual(_: object, last: float) -> float:
        made.append(last)
        return last + 1

    monkeypatch.setattr(DagsterDaemonController, "check_workspace_freshness", usual)
    assert refresh_seldom()
    assert refresh_seldom()
    return made


def controller(origin: object = WATCHED, location: object = "loaded") -> Any:
    entry = SimpleNamespace(origin=origin, code_location=location)
    workspace = SimpleNamespace(code_location_entries={"rosetta": entry})
    return SimpleNamespace(_workspace_process_context=SimpleNamespace(get_current_workspace=lambda: workspace))


def check(one: Any, last: float) -> float:
    return DagsterDaemonController.check_workspace_freshness(one, last)


def test_a_watched_location_is_read_again_after_a_quarter_of_an_hour_only(reads: list[float]) -> None:
    now = time.time()
    assert check(controller(), now - 100) == now - 100
    assert reads == []
    last = now - REFRESH_SECONDS - 1
    assert check(controller(), last) == last + 1
    assert reads == [last]


@pytest.mark.parametrize("one", [controller(location=None), controller(origin=IN_PROCESS)])
def test_one_that_is_not_loaded_or_not_watched_is_looked_at_as_ever(reads: list[float], one: Any) -> None:
    last = time.time() - 100
    assert check(one, last) == last + 1
    assert reads == [last]


def test_freshness_is_judged_each_two_minutes_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dagster_controller, "FreshnessDaemon", FreshnessDaemon)
    monkeypatch.delenv("FRESHNESS_DAEMON_INTERVAL_SECONDS", raising=False)
    assert judge_freshness_seldom()
    assert judge_freshness_seldom()
    with DagsterInstance.ephemeral() as instance:
        usual = create_daemon_of_type(FreshnessDaemon.daemon_type(), instance)
        monkeypatch.setenv("FRESHNESS_DAEMON_INTERVAL_SECONDS", "30")
        wanted = create_daemon_of_type(FreshnessDaemon.daemon_type(), instance)
    assert isinstance(usual, FreshnessDaemon)
    assert isinstance(wanted, FreshnessDaemon)
    assert (usual.interval_seconds, wanted.interval_seconds) == (FRESHNESS_SECONDS, 30)
