"""A destination is away under load, Redis is restarted meanwhile, the runner killed: everything arrives, in order."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import psycopg2
import pytest
import redis

from cdc_runner.pipeline.process import EXIT_NEEDS_PERSON, EXIT_RETRY
from tests.support.parked import begin, confirmed, cut_off, parked, wait_passed
from tests.support.pipelines import PipelineHarness
from tests.support.proxy import TcpProxy
from tests.support.servers import Database, OwnServers, RedisServer, redis_server_of
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(2400)]

SETUP = """
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, note text, code text UNIQUE);
INSERT INTO account SELECT i, 100, repeat('x', 3000), 'c' || i FROM generate_series(1, 200) i;
ALTER TABLE account ALTER note SET STORAGE EXTERNAL;
CREATE TABLE entry (at int, what text);
ALTER TABLE entry REPLICA IDENTITY FULL;
"""


class Writer(threading.Thread):
    """Changes both tables a few hundred times a second: values, keys, deletes, values that change places."""

    def __init__(self, source: Database, pause: float) -> None:
        super().__init__(name="writer", daemon=True)
        self._source, self._pause = source, pause
        self._chance = random.Random(20)
        self.stopping = threading.Event()
        self.committed = 0

    def run(self) -> None:
        connection = self._source.connect()
        connection.autocommit = True
        with connection.cursor() as cursor:
            while not self.stopping.wait(self._pause):
                try:
                    cursor.execute(self._statement())
                except psycopg2.errors.UniqueViolation:
                    continue
                self.committed += 1
        connection.close()

    def _statement(self) -> str:
        draw, one, other = self._chance.random(), self._chance.randint(1, 200), self._chance.randint(1, 200)
        if draw < 0.05:
            return f"UPDATE account SET id = id + 1000 WHERE id = {one}"
        if draw < 0.1:
            return f"UPDATE account SET id = id - 1000 WHERE id = {one + 1000}"
        if draw < 0.15:
            return (
                f"BEGIN; DELETE FROM account WHERE id = {one}; "
                f"INSERT INTO account VALUES ({one}, 1, 'again', 'c{one}') ON CONFLICT DO NOTHING; COMMIT"
            )
        if draw < 0.2:
            return (
                f"WITH p AS (SELECT id, code FROM account WHERE id IN ({one}, {other})) "
                "UPDATE account a SET code = p.code || 's' FROM p WHERE a.id IN (SELECT id FROM p) AND a.id <> p.id"
            )
        if draw < 0.5:
            return f"INSERT INTO entry VALUES ({one}, 'w{other}')"
        if draw < 0.55:
            return f"DELETE FROM entry WHERE at = {one}"
        return f"UPDATE account SET balance = balance + {other} WHERE id IN ({one}, {other})"


def _keep_alive(pipeline: PipelineHarness, seconds: float) -> None:
    """Start the runner again whenever it has ended, for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pipeline.ensure_running()
        threading.Event().wait(0.5)


@pytest.mark.parametrize("away", [6.0, pytest.param(600.0, marks=pytest.mark.slow)], ids=["short", "ten-minutes"])
def test_a_destination_that_is_away_under_load_gets_everything(
    pipeline: PipelineHarness,
    tcp_proxy: Callable[[str, int], TcpProxy],
    own_servers: Callable[..., OwnServers],
    away: float,
) -> None:
    servers = own_servers("redis", fsync=True)
    assert servers.state.redis is not None
    redis = redis_server_of(servers.state.redis, servers.stack)
    target = pipeline.targets["target"]
    link = tcp_proxy(target.server.host, target.server.port)
    begin(pipeline, SETUP, link, redis.url, park_max_megabytes=512)
    writer = Writer(pipeline.source, 0.005)
    writer.start()
    try:
        held = cut_off(pipeline, link)
        wait_for(lambda: confirmed(pipeline) > held, 30, "the slot to pass the destination")
        assert pipeline.config.execute(
            "SELECT count(*) FROM notification_log WHERE key_notification LIKE 'destination_parked:%' AND status = 'OPEN'"
        ) == [(1,)]
        servers.stack.stop()
        threading.Event().wait(away / 4)
        servers.stack.start()
        before = confirmed(pipeline)
        wait_for(lambda: confirmed(pipeline) > before, 60, "parking to go on after the restart of Redis")
        # The runner dies while the destination is away, and is started again and again until that is back.
        pipeline.kill()
        _keep_alive(pipeline, away / 2)
        assert pipeline.position("target") == held
        link.heal()
        wait_for(lambda: _revived(pipeline) and pipeline.position("target") > before, 120, "what was parked to arrive")
        # Once more, with the runner alive until the end.
        cut_off(pipeline, link)
        threading.Event().wait(away / 4)
        link.heal()
        wait_for(lambda: parked(pipeline) == (0, 0), 120, "nothing to be parked any more")
    finally:
        writer.stopping.set()
        writer.join(30)
    pipeline.wait_caught_up(180, revive=True)
    pipeline.assert_equal()
    assert writer.committed > 300, "too little was written to show anything"
    with redis.client() as client:
        assert not client.keys("park:*")
    assert not target.execute("SELECT FROM _rosetta.waiting_key")


def test_others_flow_while_one_is_away_also_over_a_restart(
    two_target_pipeline: PipelineHarness, tcp_proxy: Callable[[str, int], TcpProxy], redis_server: RedisServer
) -> None:
    """The second of two is parked; the runner dies and starts without it; when it is back, the stream takes it in."""
    pipeline = two_target_pipeline
    source = pipeline.source
    link = tcp_proxy("127.0.0.1", pipeline.targets["second"].server.port)
    begin(pipeline, SETUP, link, redis_server.url, behind_link="second")
    link.refuse()
    link.reset()
    source.execute("UPDATE account SET balance = 7 WHERE id < 50")
    pipeline.wait_caught_up(60, ["target"])
    wait_for(lambda: parked(pipeline)[0] > 0, 60, "batches to be parked")
    held = pipeline.position("second")
    wait_for(lambda: confirmed(pipeline) > held, 30, "the slot to pass the destination that is away")
    pipeline.kill()
    source.execute("DELETE FROM account WHERE id BETWEEN 40 AND 60; INSERT INTO entry VALUES (1, 'meanwhile')")
    pipeline.start()
    pipeline.wait_caught_up(90, ["target"])
    pipeline.assert_equal("target")
    assert pipeline.position("second") == held
    link.heal()
    pipeline.wait_caught_up(90)
    pipeline.assert_equal("second")
    wait_for(lambda: parked(pipeline) == (0, 0), 30, "nothing to be parked any more")


def _revived(pipeline: PipelineHarness) -> bool:
    pipeline.ensure_running()
    return True


def test_parked_changes_that_redis_loses_are_named_and_a_refresh_recovers(
    pipeline: PipelineHarness,
    tcp_proxy: Callable[[str, int], TcpProxy],
    own_servers: Callable[..., OwnServers],
) -> None:
    """The slot has passed them, so they are lost: said, never passed over."""
    servers = own_servers("redis", fsync=True)
    assert servers.state.redis is not None
    redis = redis_server_of(servers.state.redis, servers.stack)
    source, target = pipeline.source, pipeline.targets["target"]
    link = tcp_proxy(target.server.host, target.server.port)
    begin(pipeline, SETUP, link, redis.url, park_max_megabytes=1)
    link.refuse()
    link.reset()
    source.execute("UPDATE account SET balance = 1 WHERE id = 1")
    wait_for(lambda: parked(pipeline)[0] > 0, 60, "a batch to be parked")
    # More than may be parked: the slot waits for it, and memory does not grow.
    source.execute("INSERT INTO entry SELECT i, md5(i::text) || md5((i + 1)::text) FROM generate_series(1, 60000) i")
    (committed,) = source.execute("SELECT (pg_current_wal_lsn() - '0/0')::bigint")[0]
    error = "SELECT error_message FROM pipeline_destinations WHERE is_error"
    wait_for(lambda: "park_max_megabytes" in str(pipeline.config.execute(error)), 60, "the limit to be told")
    assert parked(pipeline)[1] <= 1024 * 1024
    assert confirmed(pipeline) < committed
    with redis.client() as client:
        client.flushall()
    assert pipeline.wait_exit(60) == 78
    ((text,),) = pipeline.config.execute("SELECT last_error FROM pipeline_metadata")
    assert "lost changes that were parked" in text
    link.heal()
    pipeline.ensure_running()
    assert pipeline.wait_exit(60) == 78
    ((text,),) = pipeline.config.execute("SELECT last_error FROM pipeline_metadata")
    assert "the changes in between are lost" in text
    pipeline.config.execute("UPDATE pipelines SET status = 'REFRESH'")
    pipeline.ensure_running()
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()


def _kill_both(pipeline: PipelineHarness, servers: OwnServers) -> None:
    """Kill Redis and the runner in the same second."""
    servers.kill("redis")
    pipeline.kill()


def test_redis_and_the_runner_are_killed_at_once_and_nothing_is_lost(
    pipeline: PipelineHarness, tcp_proxy: Callable[[str, int], TcpProxy], own_servers: Callable[..., OwnServers]
) -> None:
    """What the slot has passed is on Redis' disk; what it has not passed comes again."""
    servers = own_servers("redis", fsync=True)
    assert servers.state.redis is not None
    redis = redis_server_of(servers.state.redis, servers.stack)
    pipeline.engine = "pgoutput"
    target = pipeline.targets["target"]
    link = tcp_proxy(target.server.host, target.server.port)
    begin(pipeline, SETUP, link, redis.url)
    writer = Writer(pipeline.source, 0.005)
    writer.start()
    try:
        held = cut_off(pipeline, link)
        wait_for(lambda: confirmed(pipeline) > held, 30, "the slot to pass the destination")
        _kill_both(pipeline, servers)
        passed = confirmed(pipeline)
        link.heal()
        # Without Redis nobody knows what is parked: the pipeline waits for it, and says so.
        pipeline.ensure_running()
        assert pipeline.wait_exit(60) == EXIT_RETRY
        assert "cannot be reached" in last_error(pipeline)
        assert pipeline.position("target") == held
        servers.stack.start()
        wait_for(lambda: _revived(pipeline) and pipeline.position("target") > passed, 120, "what was parked to arrive")
    finally:
        writer.stopping.set()
        writer.join(30)
    pipeline.wait_caught_up(180, revive=True)
    pipeline.assert_equal()


def test_redis_emptied_while_the_runner_is_killed_is_told_at_the_next_start(
    two_target_pipeline: PipelineHarness, tcp_proxy: Callable[[str, int], TcpProxy], redis_client: redis.Redis,
    redis_server: RedisServer,
) -> None:  # fmt: skip
    """The other destination goes on; when the one is back, its loss is named, and a refresh recovers."""
    pipeline = two_target_pipeline
    pipeline.engine = "pgoutput"
    link = tcp_proxy("127.0.0.1", pipeline.targets["second"].server.port)
    begin(pipeline, SETUP, link, redis_server.url, behind_link="second")
    held = cut_off(pipeline, link, "second")
    pipeline.source.execute("UPDATE account SET balance = 7 WHERE id < 50")
    wait_passed(pipeline)
    redis_client.flushall()
    pipeline.kill()
    pipeline.source.execute("UPDATE account SET balance = 8 WHERE id < 20")
    pipeline.start()
    pipeline.wait_caught_up(90, ["target"])
    pipeline.assert_equal("target")
    assert pipeline.position("second") == held
    link.heal()
    assert pipeline.wait_exit(60) == EXIT_NEEDS_PERSON
    text = last_error(pipeline)
    assert "destination second ends at" in text and "the changes in between are lost" in text
    assert f"parked in Redis at {redis_server.host}:{redis_server.port}" in text and "rosetta pipeline refresh" in text
    pipeline.config.execute("UPDATE pipelines SET status = 'REFRESH'")
    pipeline.ensure_running()
    pipeline.wait_caught_up(120)
    pipeline.assert_equal("target")
    pipeline.assert_equal("second")


def last_error(pipeline: PipelineHarness) -> str:
    """Return why the pipeline ended last."""
    ((text,),) = pipeline.config.execute("SELECT last_error FROM pipeline_metadata")
    return str(text)
