"""Backfills beside the stream: what differs becomes equal, what the stream has touched since stays as it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.support.backfills import WRITTEN, Backfills, Writer, fill
from tests.support.pipelines import PipelineHarness
from tests.support.proxy import TcpProxy

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


def test_rows_that_get_other_keys_around_the_snapshot_end_right(
    pipeline: PipelineHarness, tcp_proxy: Callable[[str, int], TcpProxy]
) -> None:
    """Wrong values that the stream does not tell go with a row to its new key, in a batch that spans the snapshot."""
    pipeline.engine = "pgoutput"
    link = tcp_proxy("127.0.0.1", pipeline.targets["target"].server.port)
    pipeline.ports["target"] = link.port
    backfills = _ready(pipeline, 8_000)
    target = pipeline.targets["target"]
    target.execute("UPDATE item SET big = 'wrong' WHERE id % 10 = 0")
    wanted = pipeline.source.execute("SELECT count(*) FROM item WHERE length(big) > 1000")[0][0]
    # Each apply takes some round trips: a batch holds what is committed meanwhile, and the snapshot lies inside of one.
    link.delay(0.002)
    moved, stopping = [0], threading.Event()

    def move() -> None:
        with closing(pipeline.source.connect()) as connection, connection.cursor() as cursor:
            for number in range(10, 8_001, 10):
                cursor.execute("UPDATE item SET id = id + 1000000 WHERE id = %s", (number,))
                moved[0] += 1
                if stopping.wait(0.004):
                    return

    thread = threading.Thread(target=move, daemon=True)
    thread.start()
    try:
        done = backfills.wait(backfills.start("public.item"), timeout=60)
    finally:
        thread.join(60)
        stopping.set()
    link.delay(0)
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()
    assert (moved[0], wanted) == (800, 800)
    assert done["changed"] > 100
