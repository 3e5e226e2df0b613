from __future__ import annotations

import dataclasses

import pytest

from cdc_runner.supervisor.reconcile import Action, Situation, backoff_seconds, decide

NOW = 1000.0
IDLE = Situation(wanted=True)
RUNNING = Situation(wanted=True, running=True)


@pytest.mark.parametrize(
    ("situation", "action"),
    [
        (IDLE, Action.START),
        (Situation(wanted=False), Action.NOTHING),
        (dataclasses.replace(IDLE, outdated=True), Action.START),
        (dataclasses.replace(IDLE, start_not_before=NOW + 0.1), Action.NOTHING),
        (dataclasses.replace(IDLE, start_not_before=NOW), Action.START),
        (dataclasses.replace(IDLE, held_elsewhere=True), Action.NOTHING),
        (dataclasses.replace(IDLE, blocked=True), Action.NOTHING),
        (dataclasses.replace(IDLE, draining=True), Action.NOTHING),
        (RUNNING, Action.NOTHING),
        (dataclasses.replace(RUNNING, wanted=False), Action.STOP),
        (dataclasses.replace(RUNNING, outdated=True), Action.STOP),
        (dataclasses.replace(RUNNING, draining=True), Action.STOP),
        # A lease that looks lost is the process's own business: it stops itself.
        (dataclasses.replace(RUNNING, held_elsewhere=True), Action.NOTHING),
        (dataclasses.replace(RUNNING, draining=True, stopping_since=NOW - 24.9), Action.NOTHING),
        (dataclasses.replace(RUNNING, draining=True, stopping_since=NOW - 25.0), Action.KILL),
        # Once it was asked to stop there is no way back: it will be started anew.
        (dataclasses.replace(RUNNING, stopping_since=NOW - 1), Action.NOTHING),
    ],
)
def test_decision_follows_from_the_situation(situation: Situation, action: Action) -> None:
    assert decide(situation, NOW) is action


def test_backoff_doubles_up_to_a_minute() -> None:
    assert [backoff_seconds(n) for n in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff_seconds(1_000_000) == 60
