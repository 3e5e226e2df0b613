from __future__ import annotations

import pytest

from rosetta_dagster.sensors.cadence import interval_for
from rosetta_dagster.sensors.reload_policy import ReloadState, is_reload_due, seen

NOW = 1_800_000_000.0


def test_change_is_loaded_when_it_is_quiet() -> None:
    state = ReloadState("old")
    assert not is_reload_due("old", "new", state, NOW)
    assert is_reload_due("old", "new", seen(state, "new"), NOW + 10)


def test_catalog_that_keeps_changing_is_not_loaded() -> None:
    state, reloads = ReloadState("old"), 0
    for tick in range(20):
        current = f"version {tick}"
        reloads += is_reload_due("old", current, state, NOW + 10 * tick)
        state = seen(state, current)
    assert reloads == 0


def test_reloads_are_half_a_minute_apart() -> None:
    state = ReloadState("new", reloaded_at=NOW)
    assert not is_reload_due("old", "new", state, NOW + 29)
    assert is_reload_due("old", "new", state, NOW + 30)


def test_same_or_unknown_catalog_is_never_loaded() -> None:
    assert not is_reload_due("same", "same", ReloadState("same"), NOW)
    assert not is_reload_due("old", "", ReloadState(""), NOW)


@pytest.mark.parametrize("cursor", [None, "", "x", "[]", '{"version": 9}', '{"version": 1, "other": 2}'])
def test_strange_cursor_starts_afresh(cursor: str | None) -> None:
    assert ReloadState.from_cursor(cursor) == ReloadState()


def test_state_survives_the_cursor() -> None:
    state = ReloadState("abc", 5.5)
    assert ReloadState.from_cursor(state.to_cursor()) == state


def test_interval_is_one_second_below_the_wanted_one() -> None:
    assert [interval_for(wanted) for wanted in (5, 10, 60)] == [4, 9, 59]
