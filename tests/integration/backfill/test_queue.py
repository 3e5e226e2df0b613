"""The queue of backfills: cancelled, paused by the ladder of WAL, gone on with, in order of priority, refused."""

from __future__ import annotations

from typing import Any

import pytest

from cdc_runner.errors import RosettaError
from tests.support.backfills import WRITTEN, Backfills, fill
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

SLOW: dict[str, object] = {"load_chunk_bytes": 1 << 20, "backfill_megabytes_per_second": 1, "backfill_workers": 1}
WRONG = "SET session_replication_role = replica; UPDATE item SET note = 'wrong'"


def _ready(pipeline: PipelineHarness, rows: int, settings: dict[str, object]) -> Backfills:
    pipeline.source.execute(WRITTEN)
    fill(pipeline, rows)
    pipeline.configure(settings=settings)
    pipeline.start()
    pipeline.wait_caught_up(180)
    return Backfills(pipeline)


def _wrong_rows(pipeline: PipelineHarness) -> int:
    return int(str(pipeline.targets["target"].execute("SELECT count(*) FROM item WHERE note = 'wrong'")[0][0]))


def _left_behind(pipeline: PipelineHarness) -> tuple[Any, Any]:
    slots = pipeline.source.execute("SELECT count(*) FROM pg_replication_slots WHERE temporary")
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = '_rosetta' AND tablename LIKE 'backfill_journal%'"
    return slots[0][0], pipeline.targets["target"].execute(tables)[0][0]


def test_cancel_ends_the_work_and_keeps_what_was_written(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, 60_000, SLOW)
    pipeline.targets["target"].execute(WRONG)
    one = backfills.start("public.item")
    wait_for(lambda: backfills.show(one)["chunks_done"] > 0, 120, "the first chunk")
    backfills.cancel(one)
    # The rest would take longer than this.
    wait_for(lambda: _left_behind(pipeline) == (0, 0), 30, "nothing to be left behind")
    shown = backfills.show(one)
    assert shown["status"] == "CANCELLED"
    assert shown["chunks_done"] < shown["chunks"]
    wrong = _wrong_rows(pipeline)
    assert 0 < wrong < 60_000
    # The stream goes on, and another one can be asked for.
    pipeline.source.execute("UPDATE item SET v = v + 1 WHERE id = 1")
    pipeline.wait_caught_up()
    pipeline.config.execute("UPDATE pipelines SET settings = settings - 'backfill_megabytes_per_second'")
    assert pipeline.stop() == 0
    pipeline.start()
    backfills.wait(backfills.start("public.item"))
    pipeline.assert_equal()


def test_a_backfill_goes_on_after_a_stop_and_a_kill(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, 40_000, SLOW)
    pipeline.targets["target"].execute(WRONG)
    one = backfills.start("public.item")
    for number, end in enumerate((pipeline.stop, pipeline.kill), 1):
        done = wait_for(lambda number=number: backfills.show(one)["chunks_done"] >= number, 120, "a chunk")  # type: ignore[misc]
        assert done
        end()
        before = backfills.show(one)
        assert before["status"] == "EXECUTING"
        pipeline.start()
        wait_for(lambda number=number: backfills.show(one)["resumed"] == number, 120, "the resume")  # type: ignore[misc]
        assert backfills.show(one)["chunks_done"] >= before["chunks_done"]
    shown = backfills.wait(one)
    assert shown["rows"] == 40_000
    pipeline.assert_equal()


def test_the_ladder_of_wal_pauses_backfills(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, 3_000, {})
    pipeline.targets["target"].execute(WRONG)
    pipeline.config.execute(
        "INSERT INTO wal_monitor (source_id, ladder_step, retained_wal_bytes) "
        "SELECT id, 'PAUSE_BACKFILLS', 9000000000 FROM sources "
        "ON CONFLICT (source_id) DO UPDATE SET ladder_step = EXCLUDED.ladder_step"
    )
    one = backfills.start("public.item")
    wait_for(lambda: "of WAL" in (backfills.show(one)["note"] or ""), 60, "the reason")
    assert backfills.show(one)["status"] == "PENDING"
    assert _wrong_rows(pipeline) == 3_000
    pipeline.config.execute("UPDATE wal_monitor SET ladder_step = 'NONE'")
    backfills.wait(one)
    pipeline.assert_equal()


def test_the_highest_priority_comes_first(pipeline: PipelineHarness) -> None:
    pipeline.source.execute("CREATE TABLE low (id int PRIMARY KEY); CREATE TABLE high (id int PRIMARY KEY)")
    backfills = _ready(pipeline, 100, {})
    assert pipeline.stop() == 0
    # Asked for while the pipeline does not run: they begin with it.
    low, high = backfills.start("public.low"), backfills.start("public.high", priority=5)
    pipeline.start()
    for one in (low, high):
        backfills.wait(one)
    assert backfills.show(high)["finished_at"] < backfills.show(low)["finished_at"]


def test_what_cannot_be_is_refused_with_a_reason(pipeline: PipelineHarness) -> None:
    pipeline.source.execute("CREATE TABLE bag (a int); ALTER TABLE bag REPLICA IDENTITY FULL")
    backfills = _ready(pipeline, 100, {})
    failed = backfills.wait(backfills.start("public.bag"), "FAILED")
    assert "no key" in failed["error"]
    failed = backfills.wait(backfills.start("public.item", filter="nothing = 1"), "FAILED")
    assert "names nothing" in failed["error"]
    failed = backfills.wait(backfills.start("public.item", filter="note > 7"), "FAILED")
    assert "cannot be computed" in failed["error"]
    with pytest.raises(RosettaError, match="no table"):
        backfills.start("public.absent")
    with pytest.raises(RosettaError, match="filter goes with"):
        backfills.start("public.item", filter="v = 1", mode="resync")
    # One that somebody wrote into the queue by hand is checked like any other.
    assert pipeline.stop() == 0
    one = backfills.start("public.item", filter="v = 1")
    evil = ("v = 1); SELECT pg_sleep(1", one)
    pipeline.config.execute("UPDATE queue_backfill_data SET filter_sql = %s WHERE id = %s", evil)
    pipeline.start()
    failed = backfills.wait(one, "FAILED")
    assert "filter" in failed["error"]
