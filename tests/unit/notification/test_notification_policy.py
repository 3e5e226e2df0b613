from __future__ import annotations

from typing import Any

import pytest

from cdc_runner.notification.message import Message
from cdc_runner.notification.policy import Rules, Standing, announcement, backoff_seconds

RULES = Rules(iterations=3, quiet_seconds=120, reminder_seconds=3600)


def said(status: str = "OPEN", severity: str = "WARNING", count: int = 1, at_once: bool = True, **more) -> str | None:
    return announcement(Standing(status, severity, count, at_once, **more), RULES)


def test_condition_is_told_when_it_was_seen_often_enough() -> None:
    assert [said(count=count, at_once=False) for count in (1, 2, 3)] == [None, None, "OPENED"]
    assert said() == "OPENED"


def test_open_condition_is_told_again_only_when_worse_or_after_a_long_time() -> None:
    told: dict[str, Any] = {"announced_status": "OPEN", "announced_severity": "WARNING"}
    assert said(announced_age=60.0, **told) is None
    assert said(severity="ERROR", announced_age=60.0, **told) == "ESCALATED"
    assert said(announced_age=3600.0, **told) == "REMINDER"
    assert said(announced_age=3600.0, is_read=True, **told) is None
    assert announcement(Standing("OPEN", "WARNING", 1, True, announced_status="OPEN", announced_severity="WARNING",
                                 announced_age=1e9), Rules(3, 120, 0)) is None  # fmt: skip


def test_resolution_is_told_after_the_quiet_period_and_only_to_who_heard_of_it() -> None:
    assert said("RESOLVED", announced_status="OPEN", resolved_age=60.0) is None
    assert said("RESOLVED", announced_status="OPEN", resolved_age=120.0) == "RESOLVED"
    assert said("RESOLVED", resolved_age=500.0) is None
    assert said("RESOLVED", announced_status="RESOLVED", resolved_age=500.0) is None


def test_happening_is_told_once() -> None:
    assert said("EVENT") == "EVENT"
    assert said("EVENT", announced_status="EVENT") is None


def test_pauses_grow_to_half_an_hour() -> None:
    assert [backoff_seconds(n) for n in (1, 2, 3, 100)] == [30, 60, 120, 1800]


def test_message_is_cut_and_keeps_its_facts() -> None:
    message = Message("OPENED", "wal/shop", "wal", "ERROR", "title", "<b>&" * 3000, 7, "2026-01-01", "2026-01-02")
    body = message.body(500)
    assert len(body) <= 500
    assert "wal: wal/shop" in body
    assert "seen 7 times" in body
    assert "…" in body
    assert message.headline.endswith("ERROR title")


@pytest.mark.parametrize("word", ["RESOLVED", "REMINDER", "ESCALATED", "TEST"])
def test_headline_tells_what_it_is_about(word: str) -> None:
    message = Message(word, "k", "wal", "ERROR", "title", "text", 1, "", "", "now")
    assert "(" in message.headline
