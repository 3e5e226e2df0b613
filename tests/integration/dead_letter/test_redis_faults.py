"""Redis away, not durable, emptied: what was in Redis only is read from the source again, nothing else is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.integration.dead_letter.conftest import Configure
from tests.support.dead_letters import different_keys, replay, status_of, waiting_keys
from tests.support.servers import OwnServers, redis_server_of
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]


def test_without_a_durable_redis_the_slot_waits_and_goes_on_by_itself(
    strict: Configure, redis_client: redis.Redis
) -> None:
    """appendonly off, then an eviction policy: the destination says why it waits; nothing is put aside."""
    redis_client.config_set("appendonly", "no")
    try:
        pipeline = strict()
        source, target = pipeline.source, pipeline.targets["target"]
        before = pipeline.position("target")
        source.execute("UPDATE item SET amount = -5 WHERE id = 10")
        source.execute("UPDATE item SET amount = 11 WHERE id = 11")
        error = "SELECT error_kind, error_message FROM pipeline_destinations WHERE is_error"
        wait_for(lambda: pipeline.config.execute(error), 60, "the destination to say that it waits")
        kind, text = pipeline.config.execute(error)[0]
        assert kind == "dead_letter_unavailable"
        assert "appendonly" in text
        queue = "SELECT state, problem FROM dead_letter_queues"
        assert pipeline.config.execute(queue)[0][0] == "NOT_DURABLE"
        (confirmed,) = source.execute(
            "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE database = %s", (source.name,)
        )[0]
        assert confirmed <= pipeline.position("target")
        redis_client.config_set("maxmemory-policy", "allkeys-lru")
        redis_client.config_set("appendonly", "yes")
        wait_for(lambda: "evict" in pipeline.config.execute(error)[0][1], 60, "the other reason")
        assert pipeline.position("target") >= before
        assert not redis_client.keys("dlq:*")
        redis_client.config_set("maxmemory-policy", "noeviction")
        pipeline.wait_caught_up()
        assert waiting_keys(target) == {("10",)}
        wait_for(lambda: not pipeline.config.execute(error), 30, "the error to be gone")
    finally:
        redis_client.config_set("appendonly", "yes")
        redis_client.config_set("maxmemory-policy", "noeviction")


def test_a_killed_redis_loses_nothing_and_an_emptied_one_is_noticed(
    strict: Configure, own_servers: Callable[..., OwnServers]
) -> None:
    """Killed and started again it has its entries; emptied, the keys are read from the source again."""
    servers = own_servers("redis", fsync=True)
    assert servers.state.redis is not None
    server = redis_server_of(servers.state.redis, servers.stack)
    pipeline = strict(server.url)
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("UPDATE item SET amount = -5, note = 'first' WHERE id = 10")
    pipeline.wait_caught_up()
    servers.stack.stop()
    source.execute("UPDATE item SET amount = -6 WHERE id = 12; UPDATE item SET amount = 13 WHERE id = 13")
    wait_for(lambda: "cannot be reached" in pipeline.log_text(), 60, "the pipeline to miss Redis")
    pipeline.kill()
    pipeline.start()
    servers.stack.start()
    pipeline.wait_caught_up()
    assert waiting_keys(target) == {("10",), ("12",)}
    assert different_keys(pipeline) == {10, 12}
    with server.client() as client:
        client.flushall()
    source.execute(
        "UPDATE item SET note = 'after the flush' WHERE id = 10; UPDATE item SET note = 'flows' WHERE id = 14"
    )
    pipeline.wait_caught_up()
    wait_for(lambda: status_of(pipeline) == [("item", 2, 3, 2)], 90, "the loss to be shown")
    ((kind, text),) = pipeline.config.execute(
        "SELECT type, message FROM notification_log WHERE key_notification LIKE 'dead_letters:%'"
    )
    assert kind == "ERROR"
    assert "gone from Redis" in text
    # What is still refused is put into the queue again, from the source.
    result = replay(pipeline)
    assert (result["keys_refused"], result["keys_fetched_from_source"]) == (2, 0), result
    # The running pipeline may report once more what it saw before.
    wait_for(lambda: status_of(pipeline) == [("item", 2, 2, 0)], 60, "the status to tell")
    target.execute("ALTER TABLE item DROP CONSTRAINT positive")
    assert replay(pipeline)["keys_refused"] == 0
    pipeline.assert_equal()
