"""Servers that crash, end sessions, fall silent, or throw away what the slot needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from tests.support.pipelines import PipelineHarness
from tests.support.proxy import TcpProxy
from tests.support.servers import Database, OwnServers
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

SETUP = """
CREATE TABLE keyed (id int PRIMARY KEY, v int NOT NULL);
INSERT INTO keyed SELECT i, 0 FROM generate_series(1, 500) i;
CREATE TABLE keyless (v int);
ALTER TABLE keyless REPLICA IDENTITY FULL;
"""


class Writer(threading.Thread):
    """Writes to the source until told to stop, through its crashes; what it did not see committed it does not count on."""

    def __init__(self, source: Database) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self._source = source

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                with closing(self._source.connect()) as connection, connection.cursor() as cursor:
                    while not self.stopping.wait(0.005):
                        cursor.execute("UPDATE keyed SET v = v + 1 WHERE id % 50 = (random() * 50)::int")
                        cursor.execute("INSERT INTO keyless SELECT 7 FROM generate_series(1, 3)")
                        cursor.execute("DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless)")
            except psycopg2.Error:
                self.stopping.wait(0.1)


@pytest.fixture
def own(
    own_servers: Callable[..., OwnServers], config_database: Database, tmp_path: Path
) -> Iterator[tuple[PipelineHarness, OwnServers]]:
    """A pipeline between two servers of its own, which write to disk as they do in earnest."""
    servers = own_servers("source", "target", fsync=True)
    source = servers.postgres("source").create_database("faults")
    target = servers.postgres("target").create_database("faults")
    harness = PipelineHarness(config_database, source, {"target": target}, tmp_path)
    try:
        yield harness, servers
    finally:
        harness.close()


@pytest.mark.parametrize("name", ["source", "target"])
def test_a_server_that_crashes_under_load_costs_nothing(own: tuple[PipelineHarness, OwnServers], name: str) -> None:
    """The main process is killed three times; what was committed is there on both sides in the end."""
    pipeline, servers = own
    server = servers.postgres(name)
    pipeline.source.execute(SETUP)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(120)
    writer = Writer(pipeline.source)
    writer.start()
    try:
        for _ in range(3):
            pipeline.wait_moved(60)
            server.kill()
            server.start()
            pipeline.ensure_running()
            pipeline.wait_caught_up(120, revive=True)
    finally:
        writer.stopping.set()
        writer.join(30)
    pipeline.wait_caught_up(120, revive=True)
    pipeline.assert_equal()


def test_sessions_at_the_destination_that_are_ended_cost_nothing(pipeline: PipelineHarness) -> None:
    """Sessions are ended while they write, so that the answer to a COMMIT may be missing."""
    target = pipeline.targets["target"]
    pipeline.source.execute(SETUP)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(120)
    writer = Writer(pipeline.source)
    writer.start()
    ended = 0
    try:
        for _ in range(20):
            pipeline.wait_moved(60)
            found = target.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = %s AND application_name LIKE 'rosetta%%' AND pid <> pg_backend_pid()",
                (target.name,),
            )
            ended += len(found)
    finally:
        writer.stopping.set()
        writer.join(30)
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()
    assert ended >= 10


def test_a_source_that_falls_silent_is_noticed(
    pipeline: PipelineHarness, tcp_proxy: Callable[[str, int], TcpProxy]
) -> None:
    """Connections stay open and carry nothing, as when a firewall forgets them; the pipeline opens others."""
    link = tcp_proxy(pipeline.source.server.host, pipeline.source.server.port)
    pipeline.ports["source"] = link.port
    pipeline.source.execute(SETUP)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(120)
    link.stall()
    pipeline.source.execute("UPDATE keyed SET v = 7")
    process = pipeline.process
    assert process is not None
    before = link.connection_count
    # The silent ones are given up for new ones, or the process ends and says why; only then does the network heal.
    wait_for(lambda: link.connection_count != before or process.poll() is not None, 180, "the silence to be noticed")
    link.reset()
    link.heal()
    pipeline.wait_caught_up(180, revive=True)
    pipeline.assert_equal()


def test_a_slot_that_lost_its_wal_is_named_and_a_refresh_recovers(own: tuple[PipelineHarness, OwnServers]) -> None:
    """The server threw away WAL that the slot needed: no endless retries, and nothing is passed over."""
    pipeline, _ = own
    source = pipeline.source
    source.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    source.execute("SELECT pg_reload_conf()")
    source.execute(SETUP)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(120)
    assert pipeline.stop() == 0
    source.execute("UPDATE keyed SET v = 1")

    def lost() -> bool:
        source.execute("CREATE TABLE noise AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
        source.execute("DROP TABLE noise")
        source.execute("SELECT pg_switch_wal()")
        source.execute("CHECKPOINT")
        return bool(source.execute("SELECT wal_status = 'lost' FROM pg_replication_slots")[0][0])

    wait_for(lost, 60, "the slot to be invalidated")
    pipeline.start()
    assert pipeline.wait_exit(120) == 78
    error = pipeline.config.execute("SELECT last_error FROM pipeline_metadata")[0][0]
    assert "invalidated" in error
    pipeline.config.execute("UPDATE pipelines SET status = 'REFRESH'")
    pipeline.start()
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()
