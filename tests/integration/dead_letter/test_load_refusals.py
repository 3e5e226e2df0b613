"""Rows that the target refuses in the initial load: the load goes on, and a replay brings them."""

from __future__ import annotations

import pytest
import redis

from tests.support.dead_letters import different_keys, operator, replay, status_of, waiting_entries, waiting_keys
from tests.support.pipelines import PipelineHarness
from tests.support.servers import RedisServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

SOURCE = """
CREATE TABLE item (id int PRIMARY KEY, code text, amount int, note text,
                   twice int GENERATED ALWAYS AS (amount * 2) STORED);
INSERT INTO item SELECT i, 'code' || i, i, repeat('n', 10) FROM generate_series(1, 60000) i;
UPDATE item SET amount = -5 WHERE id IN (7, 30000);
UPDATE item SET code = 'code50000' WHERE id = 50001;
UPDATE item SET note = repeat('canary', 50) WHERE id = 59999;
CREATE TABLE line (at int, what text);
ALTER TABLE line REPLICA IDENTITY FULL;
INSERT INTO line SELECT i, CASE WHEN i % 500 = 0 THEN 'bad' ELSE 'fine' END FROM generate_series(1, 1000) i;
INSERT INTO line VALUES (500, 'bad');
"""
TARGET = """
CREATE TABLE item (id int PRIMARY KEY, code text UNIQUE, amount int CONSTRAINT positive CHECK (amount >= 0),
                   note text CONSTRAINT short CHECK (length(note) <= 100),
                   twice int GENERATED ALWAYS AS (amount * 2) STORED);
CREATE TABLE line (at int, what text CONSTRAINT known CHECK (what <> 'bad'));
"""


def test_rows_refused_by_a_load_wait_and_all_others_are_there(
    pipeline: PipelineHarness, redis_client: redis.Redis, redis_server: RedisServer
) -> None:
    """CHECK, unique value, too long text, in several chunks; a table without a key; changes of such rows afterwards."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(SOURCE)
    target.execute(TARGET)
    pipeline.configure(settings={"dead_letter_retry_seconds": 0, "load_chunk_bytes": 1024 * 1024})
    pipeline.environment["REDIS_URL"] = redis_server.url
    pipeline.start()
    pipeline.wait_caught_up()
    ((twin,),) = target.execute("SELECT id FROM item WHERE code = 'code50000'")
    other = 100_001 - twin
    assert waiting_keys(target) == {("7",), ("30000",), (str(other),), ("59999",)}
    assert different_keys(pipeline) == {7, 30000, other, 59999}
    assert waiting_entries(target) == 4 + 3
    assert target.execute("SELECT count(*) FROM line") == [(998,)]
    wait_for(lambda: sorted(status_of(pipeline)) == [("item", 4, 4, 0), ("line", 2, 3, 0)], 30, "the status")
    assert not target.execute("SELECT FROM _rosetta.waiting_key WHERE reason LIKE '%canary%'")
    # Their later changes wait behind them, those of others flow.
    source.execute("UPDATE item SET note = 'later' WHERE id IN (7, 8); DELETE FROM item WHERE id = 30000")
    pipeline.kill()
    pipeline.start()
    pipeline.wait_caught_up()
    assert waiting_entries(target) == 4 + 3 + 2
    target.execute("ALTER TABLE item DROP CONSTRAINT positive, DROP CONSTRAINT item_code_key")
    target.execute("ALTER TABLE item DROP CONSTRAINT short; ALTER TABLE line DROP CONSTRAINT known")
    assert replay(pipeline)["keys_refused"] == 0
    assert not redis_client.keys("dlq:*")
    pipeline.assert_equal()


def test_a_load_of_which_too_much_is_refused_stops_and_leaves_nothing_behind(
    pipeline: PipelineHarness, redis_client: redis.Redis, redis_server: RedisServer
) -> None:
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(
        "CREATE TABLE item (id int PRIMARY KEY, v int); INSERT INTO item SELECT i, -i FROM generate_series(1, 300) i"
    )
    target.execute("CREATE TABLE item (id int PRIMARY KEY, v int CHECK (v > 0))")
    pipeline.configure(settings={"dead_letter_retry_seconds": 0, "dead_letter_max_entries": 100})
    pipeline.environment["REDIS_URL"] = redis_server.url
    pipeline.start()
    assert pipeline.wait_exit(60) == 75
    ((text,),) = pipeline.config.execute("SELECT last_error FROM pipeline_metadata")
    assert "refuses more than 100 rows of the initial load" in text
    assert not redis_client.keys("dlq:*")
    assert waiting_entries(target) == 0
    target.execute("ALTER TABLE item DROP CONSTRAINT item_v_check")
    pipeline.ensure_running()
    pipeline.wait_caught_up()
    pipeline.assert_equal()


def test_masked_values_of_refused_rows_do_not_reach_redis(
    pipeline: PipelineHarness, redis_client: redis.Redis, redis_server: RedisServer
) -> None:
    """What is put aside is what would be written: from the load and from the stream."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(
        "CREATE TABLE person (id int PRIMARY KEY, email text, phone text, age int);"
        "INSERT INTO person SELECT i, 'canary' || i || '@x', '0800canary' || i, i - 3 FROM generate_series(1, 10) i"
    )
    target.execute("CREATE TABLE person (id int PRIMARY KEY, email text, phone text, age int CHECK (age > 0))")
    shape = {"table": "public.person", "mask": {"email": "hash", "phone": {"truncate": 4}}}
    pipeline.configure(syncs=[shape], settings={"dead_letter_retry_seconds": 0})
    pipeline.environment["REDIS_URL"] = redis_server.url
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute("UPDATE person SET age = -1, email = 'canary@y', phone = '0801canary' WHERE id = 9")
    pipeline.wait_caught_up()
    assert waiting_keys(target, "person") == {("1",), ("2",), ("3",), ("9",)}
    stored = str([redis_client.xrange(name) for name in redis_client.keys("dlq:*")])
    assert "0801" in stored
    assert "canary" not in stored
    assert "canary" not in str(target.execute("SELECT * FROM _rosetta.waiting_key"))
    assert "canary" not in pipeline.log_text()
    target.execute("ALTER TABLE person DROP CONSTRAINT person_age_check")
    with operator(pipeline):
        assert replay(pipeline)["keys_refused"] == 0
    wanted = source.execute("SELECT id, left(phone, 4), age FROM person ORDER BY id")
    assert target.execute("SELECT id, phone, age FROM person ORDER BY id") == wanted
    assert target.execute("SELECT count(DISTINCT email), min(length(email)), max(length(email)) FROM person") == [
        (10, 64, 64)
    ]
