"""Backfills beside the stream: what differs becomes equal, what the stream has touched since stays as it is."""

from __future__ import annotations

import pytest

from tests.support.backfills import WRITTEN, Backfills, Writer, fill
from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

SMALL: dict[str, object] = {"load_chunk_bytes": 1 << 20, "backfill_window_seconds": 3}

CORRUPT = """
SET session_replication_role = replica;
UPDATE item SET note = 'wrong', big = 'wrong' WHERE id % 7 = 0;
DELETE FROM item WHERE id % 11 = 0;
INSERT INTO item SELECT 1000000 + i, 0, 'extra', 'extra', NULL FROM generate_series(1, 500) i;
"""


def _ready(pipeline: PipelineHarness, rows: int) -> Backfills:
    pipeline.source.execute(WRITTEN)
    fill(pipeline, rows)
    pipeline.configure(settings=SMALL)
    pipeline.start()
    pipeline.wait_caught_up(180)
    return Backfills(pipeline)


@pytest.mark.both_engines
def test_resync_makes_a_corrupted_table_equal_while_it_is_written_to(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, 30_000)
    pipeline.targets["target"].execute(CORRUPT)
    writer = Writer(pipeline, 5, 30_000)
    writer.start()
    try:
        done = backfills.wait(backfills.start("public.item", mode="resync"))
    finally:
        writer.finish()
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()
    assert writer.changes > 20
    assert done["deleted"] == 500
    assert done["changed"] > 1000
    assert done["percent"] == 100.0


def test_backfill_writes_what_differs_and_leaves_the_rest_alone(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, 5_000)
    target = pipeline.targets["target"]
    target.execute("UPDATE item SET note = 'wrong' WHERE id <= 10; DELETE FROM item WHERE id = 11")
    target.execute("INSERT INTO item VALUES (1000000, 0, 'extra', 'extra', NULL)")
    before = target.execute("SELECT xmin::text, id FROM item WHERE id > 11 ORDER BY id")
    done = backfills.wait(backfills.start("public.item"))
    assert (done["rows"], done["changed"], done["deleted"]) == (5_000, 11, 0)
    assert target.execute("SELECT xmin::text, id FROM item WHERE id > 11 ORDER BY id") == before
    assert target.execute("SELECT count(*) FROM item WHERE id = 1000000") == [(1,)]
    # Nothing is left behind at either side.
    assert target.execute("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'backfill_journal%'") == [(0,)]
    assert pipeline.source.execute("SELECT count(*) FROM pg_replication_slots WHERE temporary") == [(0,)]
