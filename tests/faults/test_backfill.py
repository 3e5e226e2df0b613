"""Backfills under fire: a writer at full speed inside and outside the chunks, and `kill -9` three times."""

from __future__ import annotations

import random
import threading

import pytest

from tests.support.backfills import Backfills, Writer, start_damaged
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(3600)]


def run(pipeline: PipelineHarness, rows: int, seed: int) -> None:
    """Resync a damaged table while it is written to and the process is killed three times; then both sides are equal."""
    chance = random.Random(seed)
    start_damaged(pipeline, rows)
    backfills = Backfills(pipeline)
    one = backfills.start("public.item", mode="resync")

    def completed() -> bool:
        return bool(backfills.show(one)["status"] == "COMPLETED")

    writer = Writer(pipeline, seed, rows)
    writer.start()
    try:
        for kill in range(1, 4):
            done = backfills.show(one)["chunks_done"]
            # A process that comes late may find little left to do: then fewer kills meet the backfill itself.
            wait_for(
                lambda done=done: backfills.show(one)["chunks_done"] > done or completed(),  # type: ignore[misc]
                300,
                "a chunk",
            )
            threading.Event().wait(chance.uniform(0.0, 1.0))
            pipeline.kill()
            pipeline.start()
            wait_for(
                lambda kill=kill: backfills.show(one)["resumed"] >= kill or completed(),  # type: ignore[misc]
                300,
                "the resume",
            )
        done = backfills.wait(one, timeout=900)
    finally:
        writer.finish()
    pipeline.wait_caught_up(600)
    pipeline.assert_equal()
    assert writer.changes > 50
    assert done["deleted"] == 300
    assert done["resumed"] >= 1, "no kill met the backfill"


def test_three_kills_under_a_writer(pipeline: PipelineHarness) -> None:
    """Fixed seed."""
    run(pipeline, 30_000, 3)


@pytest.mark.slow
@pytest.mark.both_engines
@pytest.mark.parametrize("seed", range(3))
def test_three_kills_under_a_writer_for_longer(pipeline: PipelineHarness, seed: int) -> None:
    """More rows, other moments."""
    run(pipeline, 400_000, seed)
