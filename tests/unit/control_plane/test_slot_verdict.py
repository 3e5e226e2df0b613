from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import PostgresAddress
from rosetta_dagster.monitoring.slot import SlotReading, judge
from rosetta_dagster.monitoring.wal import Thresholds, WatchedSlot, failed_entirely, summary, watch

MB = 1024 * 1024
GOOD = SlotReading(5000 * MB, True, True, "reserved", 0, 0, 10 * MB, None, 64 * MB)
AWAY = RosettaError(ErrorKind.SOURCE_UNAVAILABLE, "source 10.0.0.1:5432/shop as rosetta: connection refused")


@pytest.mark.parametrize(
    ("reading", "state", "status", "words"),
    [
        (GOOD, {}, "OK", None),
        (AWAY, {}, "ERROR", "connection refused"),
        (SlotReading(1, False), {"started": False}, "OK", "no slot yet"),
        (SlotReading(1, False), {}, "ERROR", "slot is gone"),
        (replace(GOOD, wal_status="lost"), {}, "ERROR", "has removed WAL"),
        (replace(GOOD, wal_status="unreserved"), {}, "ERROR", "about to lose"),
        (replace(GOOD, retained_bytes=99 * MB), {}, "OK", None),
        (replace(GOOD, retained_bytes=100 * MB), {}, "WARNING", "keeps 100 MB of WAL (limit 100 MB)"),
        (replace(GOOD, retained_bytes=200 * MB), {}, "ERROR", "keeps 200 MB of WAL (limit 200 MB)"),
        (replace(GOOD, active=False), {}, "WARNING", "nobody reads"),
        (replace(GOOD, active=False), {"wanted": False}, "OK", None),
        (replace(GOOD, missing_operations=("delete", "truncate")), {}, "ERROR", "leaves out delete, truncate"),
        (replace(GOOD, missing_operations=None), {}, "ERROR", "publication is gone"),
    ],
)
def test_verdict(reading: SlotReading, state: dict[str, Any], status: str, words: str | None) -> None:
    verdict = judge(
        reading, **{"warning_megabytes": 100, "error_megabytes": 200, "wanted": True, "started": True, **state}
    )
    assert verdict.status == status
    assert (words is None and verdict.reason is None) or (words or "") in (verdict.reason or "")


def slot(number: int) -> WatchedSlot:
    address = PostgresAddress("127.0.0.1", number, "shop", "rosetta", "x")  # type: ignore[arg-type]
    return WatchedSlot(number, f"source{number}", "slot", "publication", address, True, True)


def test_source_that_hangs_delays_no_other() -> None:
    release = threading.Event()

    def reader(address: PostgresAddress, slot: str, publication: str) -> SlotReading:
        if address.port == 2:
            release.wait(30)
        return GOOD

    try:
        results = watch([slot(n) for n in range(4)], Thresholds(100, 200), reader=reader, timeout_seconds=0.5)
    finally:
        release.set()
    assert [result.verdict.status for result in results] == ["OK", "OK", "ERROR", "OK"]
    assert "does not answer" in str(results[2].reading)
    assert failed_entirely(results) is None
    assert summary(results) == "ERROR source2: the source does not answer; 3 others are well"


def test_look_at_which_no_source_answered_is_a_failure() -> None:
    def reader(address: PostgresAddress, slot: str, publication: str) -> SlotReading:
        raise AWAY

    results = watch([slot(1), slot(2)], Thresholds(100, 200), reader=reader)
    assert "no source answered" in (failed_entirely(results) or "")
    assert failed_entirely([]) is None


def test_summary_of_well_sources_names_the_one_that_keeps_most() -> None:
    results = watch([slot(1)], Thresholds(100, 200), reader=lambda *_: GOOD)
    assert summary(results) == "1 sources OK; most WAL kept: 10.0 MB (source1)"
    assert summary([]) == "no pipelines"
