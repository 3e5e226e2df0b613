from __future__ import annotations

import pytest

from rosetta_dagster.sensors.outcome import alone


def test_second_tick_finds_the_first_at_work_and_another_work_does_not() -> None:
    with alone("schema_monitor") as first, alone("schema_monitor") as second, alone("wal_monitor") as other:
        assert (first, second, other) == (True, False, True)
    with alone("schema_monitor") as again:
        assert again


def test_tick_that_fails_lets_the_next_one_in() -> None:
    with pytest.raises(RuntimeError), alone("schema_monitor"):
        raise RuntimeError
    with alone("schema_monitor") as free:
        assert free


def test_tick_that_was_turned_away_does_not_let_others_in() -> None:
    with alone("schema_monitor"):
        with alone("schema_monitor") as second:
            assert not second
        with alone("schema_monitor") as third:
            assert not third
