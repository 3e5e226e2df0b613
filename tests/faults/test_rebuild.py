"""Rebuilds under fire: a writer, and `kill -9` while the new table is filled, while it waits, and right after it came."""

from __future__ import annotations

import random
import threading
from contextlib import closing

import pytest

from tests.support.backfills import Backfills, Writer, start_damaged
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(3600)]


def run(pipeline: PipelineHarness, rows: int, seed: int, kills: int) -> None:
    """Rebuild a damaged table while it is written to and the process is killed; then both sides are equal."""
    chance = random.Random(seed)
    start_damaged(pipeline, rows)
    target = pipeline.targets["target"]
    old = target.execute("SELECT 'item'::regclass::oid")
    backfills = Backfills(pipeline)
    one = backfills.start("public.item", mode="rebuild")
    writer = Writer(pipeline, seed, rows)
    writer.start()
    try:
        with closing(target.connect()) as holder:
            holder.autocommit = False
            with holder.cursor() as cursor:
                # Nothing can take the old table's place while it is read.
                cursor.execute("SELECT count(*) FROM item")
            for kill in range(1, kills + 1):
                done = backfills.show(one)["chunks_done"]
                wait_for(
                    lambda done=done: backfills.show(one)["chunks_done"] > done or _waits(backfills, one),  # type: ignore[misc]
                    300,
                    "a chunk",
                )
                threading.Event().wait(chance.uniform(0.0, 1.0))
                _kill(pipeline, backfills, one, kill)
            wait_for(lambda: _waits(backfills, one), 600, "the rebuild to wait for the reader")
            _kill(pipeline, backfills, one, kills + 1)
            wait_for(lambda: _waits(backfills, one), 600, "the rebuild to wait for the reader again")
            assert target.execute("SELECT 'item'::regclass::oid") == old
            with closing(pipeline.config.connect()) as blocker:
                # The tables are exchanged, and the config database is not told.
                blocker.autocommit = False
                with blocker.cursor() as cursor:
                    cursor.execute("SELECT FROM queue_backfill_data FOR UPDATE")
                holder.rollback()
                changed = "SELECT 'item'::regclass::oid <> %s"
                wait_for(lambda: target.execute(changed, old[0]) == [(True,)], 120, "the new table in its place")
                assert pipeline.process is not None
                pipeline.process.kill()
                pipeline.process.wait(10)
        _kill(pipeline, backfills, one, kills + 2)
        done = backfills.wait(one, timeout=900)
    finally:
        writer.finish()
    pipeline.wait_caught_up(600)
    pipeline.assert_equal()
    assert writer.changes > 50
    assert target.execute(f"SELECT '{done['kept']}'::regclass::oid") == old
    assert target.execute("SELECT count(*) FROM pg_namespace WHERE nspname LIKE '\\_rosetta\\_new%'") == [(0,)]


def _waits(backfills: Backfills, one: int) -> bool:
    return "readers of the old table" in str(backfills.show(one)["note"])


def _kill(pipeline: PipelineHarness, backfills: Backfills, one: int, kill: int) -> None:
    pipeline.kill()
    pipeline.start()
    wait_for(lambda: backfills.show(one)["resumed"] >= kill, 300, "the resume")


def test_kills_under_a_writer(pipeline: PipelineHarness) -> None:
    """Fixed seed."""
    run(pipeline, 15_000, 3, 1)


@pytest.mark.slow
@pytest.mark.both_engines
@pytest.mark.parametrize("seed", range(3))
def test_kills_under_a_writer_for_longer(pipeline: PipelineHarness, seed: int) -> None:
    """More rows, other moments."""
    run(pipeline, 200_000, seed, 4)
