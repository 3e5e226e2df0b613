"""The process dies exactly between two durable steps, which a kill at a random moment seldom meets."""

from __future__ import annotations

import signal
from contextlib import closing

import pytest
import redis

from cdc_runner.errors import RosettaError
from cdc_runner.failpoints import Failpoint, arm
from tests.support.backfills import WRITTEN, Backfills, Writer, fill
from tests.support.dead_letters import different_keys, waiting_entries
from tests.support.pipelines import PipelineHarness
from tests.support.servers import RedisServer
from tests.support.transfers import SETUP, Transfers
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(900)]

PLACES = (
    Failpoint.AFTER_COPY,
    Failpoint.BEFORE_COMMIT,
    Failpoint.AFTER_COMMIT,
    Failpoint.BEFORE_ACKNOWLEDGE,
    Failpoint.BEFORE_BATCH_FINISHED,
)


def _die_at(pipeline: PipelineHarness, place: Failpoint, times: int) -> None:
    """Start the process and wait until it has died at the place."""
    pipeline.environment["ROSETTA_FAILPOINT"] = f"{place}:{times}"
    pipeline.start()
    assert pipeline.wait_exit(120) == -signal.SIGKILL, pipeline.log_text()[-2000:]
    del pipeline.environment["ROSETTA_FAILPOINT"]
    pipeline.config.execute("UPDATE runner_leases SET expires_at = clock_timestamp()")


@pytest.mark.both_engines
def test_a_death_at_each_step_loses_and_repeats_nothing(pipeline: PipelineHarness) -> None:
    """A table without a key and a sum that never changes would show a change that was applied twice, or half."""
    source = pipeline.source
    source.execute(SETUP)
    source.execute("INSERT INTO bulk SELECT i, repeat('b', 100) FROM generate_series(1000001, 1020000) i")
    pipeline.configure(settings={"load_chunk_bytes": 1 << 20})
    with Transfers(pipeline, 19) as transfers:
        transfers.load.start()
        for place in PLACES:
            # A start of the JVM takes its time.
            for times in (2,) if pipeline.engine == "debezium" else (1, 3):
                _die_at(pipeline, place, times)
            if place is Failpoint.AFTER_COPY:
                pipeline.start()
                pipeline.wait_caught_up(180)
                pipeline.kill()
                transfers.watcher.start()
        pipeline.start()
        transfers.assert_exact(180)


def test_a_death_at_the_exchange_of_a_rebuild_leaves_the_old_table_or_the_new_one(pipeline: PipelineHarness) -> None:
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(WRITTEN)
    fill(pipeline, 3_000)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(180)
    target.execute("DELETE FROM item WHERE id % 3 = 0")
    old = target.execute("SELECT 'item'::regclass::oid")
    backfills = Backfills(pipeline)
    with closing(target.connect()) as holder:
        holder.autocommit = False
        with holder.cursor() as cursor:
            # While the old table is read, nothing takes its place.
            cursor.execute("SELECT count(*) FROM item")
        one = backfills.start("public.item", mode="rebuild")
        wait_for(lambda: "readers" in str(backfills.show(one)["note"]), 120, "the rebuild to wait")
        pipeline.kill()
    writer = Writer(pipeline, 8, 3_000)
    writer.start()
    try:
        _die_at(pipeline, Failpoint.BEFORE_EXCHANGE, 1)
        assert target.execute("SELECT 'item'::regclass::oid") == old
        _die_at(pipeline, Failpoint.AFTER_EXCHANGE, 1)
        assert target.execute(f"SELECT '_rosetta_kept_{one}.item'::regclass::oid") == old
        assert backfills.show(one)["status"] == "EXECUTING"
        pipeline.start()
        assert backfills.wait(one)["kept"] == f"_rosetta_kept_{one}.item"
    finally:
        writer.finish()
    pipeline.wait_caught_up(180)
    pipeline.assert_equal()


def test_a_death_before_dead_letters_leave_the_queue(
    pipeline: PipelineHarness, redis_client: redis.Redis, redis_server: RedisServer
) -> None:
    """They are in the target already: the next process removes them, and applies none again."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(
        "CREATE TABLE item (id int PRIMARY KEY, v int); INSERT INTO item SELECT i, 1 FROM generate_series(1, 50) i"
    )
    pipeline.configure(settings={"dead_letter_retry_seconds": 1})
    pipeline.environment["REDIS_URL"] = redis_server.url
    pipeline.start()
    pipeline.wait_caught_up()
    target.execute("ALTER TABLE item ADD CONSTRAINT positive CHECK (v > 0)")
    source.execute("UPDATE item SET v = -1 WHERE id <= 5; UPDATE item SET v = 7 WHERE id = 1")
    pipeline.wait_caught_up()
    assert waiting_entries(target) > 0
    pipeline.kill()
    target.execute("ALTER TABLE item DROP CONSTRAINT positive")
    _die_at(pipeline, Failpoint.BEFORE_XACK, 1)
    assert redis_client.keys("dlq:*"), "the entries are still in the queue"
    pipeline.start()
    wait_for(lambda: not redis_client.keys("dlq:*"), 60, "the queue to be emptied")
    source.execute("UPDATE item SET v = v + 1")
    pipeline.wait_caught_up()
    assert (waiting_entries(target), different_keys(pipeline)) == (0, set())


@pytest.mark.parametrize("text", ["nowhere", "after_commit:x", "after_commit:-1"])
def test_an_unknown_place_is_refused(text: str) -> None:
    with pytest.raises(RosettaError, match="ROSETTA_FAILPOINT"):
        arm(text)
