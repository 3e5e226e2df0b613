"""`kill -9` at random moments while rows are refused: the marks, the queue and the target agree in the end."""

from __future__ import annotations

import random
import threading

import pytest
import redis

from tests.support.dead_letters import different_keys, replay, waiting_entries
from tests.support.pipelines import PipelineHarness
from tests.support.servers import RedisServer

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)], ids=["three-kills", "twenty-kills"])
def test_kills_while_rows_are_refused_lose_and_repeat_nothing(
    pipeline: PipelineHarness, redis_client: redis.Redis, redis_server: RedisServer, kills: int
) -> None:
    chance = random.Random(4711)
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(
        "CREATE TABLE item (id int PRIMARY KEY, v int); INSERT INTO item SELECT i, 1 FROM generate_series(1, 300) i"
    )
    pipeline.configure(settings={"dead_letter_retry_seconds": 0})
    pipeline.environment["REDIS_URL"] = redis_server.url
    pipeline.start()
    pipeline.wait_caught_up()
    target.execute("ALTER TABLE item ADD CONSTRAINT positive CHECK (v > 0)")
    stopping = threading.Event()

    def write() -> None:
        while not stopping.wait(0.02):
            draw, key = chance.random(), chance.randint(1, 300)
            if draw < 0.05:
                source.execute("UPDATE item SET v = -v WHERE id = %s", (key,))
            elif draw < 0.1:
                source.execute("DELETE FROM item WHERE id = %s", (key,))
            elif draw < 0.2:
                source.execute("INSERT INTO item VALUES (%s, %s) ON CONFLICT DO NOTHING", (key, chance.randint(1, 9)))
            else:
                source.execute("UPDATE item SET v = v + sign(v)::int WHERE id = %s", (key,))

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        for _ in range(kills):
            pipeline.wait_moved(120)
            threading.Event().wait(chance.uniform(0.2, 1.5))
            pipeline.kill()
            pipeline.start()
    finally:
        stopping.set()
        writer.join(30)
    pipeline.wait_caught_up(180)
    assert waiting_entries(target) > 0, "no row was refused: the test shows nothing"
    waiting = {row[0] for row in target.execute("SELECT (key_text::json ->> 0)::int FROM _rosetta.waiting_key")}
    assert different_keys(pipeline) <= waiting
    target.execute("ALTER TABLE item DROP CONSTRAINT positive")
    assert replay(pipeline)["keys_refused"] == 0
    assert not redis_client.keys("dlq:*")
    pipeline.assert_equal()
