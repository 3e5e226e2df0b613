"""A table that joins beside the stream under fire: written to all the time, and `kill -9` three times."""

from __future__ import annotations

import random
import threading

import pytest

from cdc_runner.catalog.database import session_scope
from cdc_runner.services.pipeline_edit import add_table
from tests.support.backfills import WRITTEN, Writer, fill
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(3600)]

REQUESTS = "SELECT coalesce(max(chunks_done), 0), coalesce(max(resume_attempts), 0) FROM queue_backfill_data"
STATE = "SELECT load_state FROM pipelines_destination_table_sync WHERE origin = 'RESOLVED' AND target_table = 'item'"


def run(pipeline: PipelineHarness, rows: int, seed: int) -> None:
    """Add a table that is written to, kill the process three times while it joins; then both sides are equal."""
    chance = random.Random(seed)
    pipeline.source.execute("CREATE TABLE first (id int PRIMARY KEY, v int); INSERT INTO first VALUES (1, 0)")
    pipeline.source.execute(WRITTEN)
    fill(pipeline, rows)
    pipeline.configure(
        syncs=[{"table": "public.first"}],
        settings={
            "load_beside_megabytes": 0,
            "load_chunk_bytes": 1 << 20,
            "backfill_window_seconds": 5,
            "backfill_megabytes_per_second": max(1, rows // 50_000),
        },
    )
    writer = Writer(pipeline, seed, rows)
    pipeline.start()
    pipeline.wait_caught_up(300)
    writer.start()
    try:
        # A process that is killed while it takes the table over begins that anew.
        with pipeline.catalog() as (engine, keyring), session_scope(engine) as session:
            add_table(session, "shop", "target", {"table": "public.item"}, keyring)
        pipeline.kill()
        pipeline.start()
        wait_for(lambda: "load.beside" in pipeline.log_text(), 300, "the table to join")
        for _ in range(3):
            done, resumed = pipeline.config.execute(REQUESTS)[0]
            wait_for(
                lambda done=done: joined(pipeline) or pipeline.config.execute(REQUESTS)[0][0] > done,  # type: ignore[misc]
                300,
                "a chunk",
            )
            threading.Event().wait(chance.uniform(0.0, 1.0))
            pipeline.kill()
            pipeline.start()
            wait_for(
                lambda resumed=resumed: joined(pipeline) or pipeline.config.execute(REQUESTS)[0][1] > resumed,  # type: ignore[misc]
                300,
                "the resume",
            )
        wait_for(lambda: joined(pipeline), 900, "the table to have joined")
    finally:
        writer.finish()
    pipeline.wait_caught_up(600)
    pipeline.assert_equal()
    assert writer.changes > 50
    requests = pipeline.config.execute("SELECT status, requested_by, resume_attempts FROM queue_backfill_data")
    assert [one[:2] for one in requests] == [("COMPLETED", "joins the pipeline")]
    assert requests[0][2] >= 1, "no kill met the load"


def joined(pipeline: PipelineHarness) -> bool:
    return bool(pipeline.config.execute(STATE) == [("STREAMING",)])


@pytest.mark.both_engines(slow="debezium")
def test_three_kills_while_a_table_joins(pipeline: PipelineHarness) -> None:
    """Fixed seed."""
    run(pipeline, 30_000, 4)


@pytest.mark.slow
@pytest.mark.both_engines
@pytest.mark.parametrize("seed", range(2))
def test_three_kills_while_a_larger_table_joins(pipeline: PipelineHarness, seed: int) -> None:
    """More rows, other moments."""
    run(pipeline, 400_000, seed)
