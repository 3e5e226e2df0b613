"""The cursor stays a few letters, and a tick whose events were not stored is as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dagster import DagsterInstance

from rosetta_dagster.sensors.observation_memory import recall, remember
from rosetta_dagster.sensors.observation_plan import Memory


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def told(rows: int) -> Memory:
    return Memory({f"{number:010}": ("STREAMING", rows, 7) for number in range(1000)})


def test_what_a_cursor_names_comes_back_and_a_look_that_failed_leaves_it(instance: DagsterInstance) -> None:
    assert recall(instance, None) == Memory()
    first = remember(instance, None, told(1))
    second = remember(instance, first, told(2))
    assert max(len(first), len(second)) < 30
    assert recall(instance, second) == told(2)
    for rows in (3, 4):
        # Its events were not stored: Dagster asks again with the cursor from before.
        remember(instance, second, told(rows))
        assert recall(instance, second) == told(2)


@pytest.mark.parametrize("cursor", ["look 7", "look", "{broken", "[]"])
def test_all_is_told_again_after_a_cursor_that_names_nothing(instance: DagsterInstance, cursor: str) -> None:
    remember(instance, None, told(1))
    assert recall(instance, cursor) == Memory()


def test_a_cursor_of_before_is_understood(instance: DagsterInstance) -> None:
    assert recall(instance, told(1).to_text()) == told(1)
