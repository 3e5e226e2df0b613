from __future__ import annotations

import pytest

from tests.support.waiting import wait_for


def test_waits_until_the_condition_holds_and_returns_its_value():
    answers = iter([None, 0, "ready"])
    assert wait_for(lambda: next(answers), 5, "an answer") == "ready"


def test_names_what_was_waited_for_and_what_was_seen_last():
    with pytest.raises(AssertionError, match=r"waited 0.05 s for the moon; last seen: 0"):
        wait_for(lambda: 0, 0.05, "the moon")


def test_an_assertion_counts_as_not_yet_and_other_errors_do_not():
    seen = []

    def condition() -> bool:
        seen.append(1)
        assert len(seen) > 2
        return True

    assert wait_for(condition, 5)
    with pytest.raises(ZeroDivisionError):
        wait_for(lambda: 1 // 0, 5)
