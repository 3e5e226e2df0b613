"""A source that goes back: restored, or failed over to a standby that had not received everything."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.pipelines import PipelineHarness
from tests.support.servers import Database, OwnServers, PostgresServer

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(400)]


@pytest.fixture
def own(
    own_servers: Callable[..., OwnServers], config_database: Database, target_database: Database, tmp_path: Path
) -> Iterator[tuple[PipelineHarness, PostgresServer, Path]]:
    """A pipeline from a server of its own, and where that server's data is."""
    servers = own_servers("source")
    server = servers.postgres("source")
    data = (servers.stack.home / "postgres" / "source").resolve() / "data"
    source = server.create_database("history")
    harness = PipelineHarness(config_database, source, {"target": target_database}, tmp_path, engine="pgoutput")
    try:
        yield harness, server, data
    finally:
        harness.close()


def _copy_owned(origin: Path, copy: Path) -> None:
    """Copy a data directory with the owners of its files."""
    shutil.copytree(origin, copy)
    for one in (copy, *copy.rglob("*")):
        state = (origin / one.relative_to(copy)).stat()
        shutil.chown(one, state.st_uid, state.st_gid)


def _branch_off(data: Path) -> None:
    """Have the server's next start end its timeline where its WAL ends, as the promotion of a standby does."""
    with (data / "postgresql.auto.conf").open("a") as file:
        file.write("restore_command = 'false'\n")
    signal = data / "recovery.signal"
    signal.touch()
    state = data.stat()
    shutil.chown(signal, state.st_uid, state.st_gid)


def test_a_source_that_went_back_is_noticed_though_its_lsn_has_passed_the_position(
    own: tuple[PipelineHarness, PostgresServer, Path],
) -> None:
    """It stops, and a refresh recovers; a failover that lost nothing goes on."""
    pipeline, server, data = own
    source = pipeline.source
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.execute("INSERT INTO t SELECT i, 'v' FROM generate_series(1, 50) i")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    assert pipeline.stop() == 0

    server.stop()
    older = data.with_name("older")
    _copy_owned(data, older)
    server.start()
    source.execute("UPDATE t SET v = 'lost in the failover'")
    pipeline.start()
    pipeline.wait_caught_up()
    assert pipeline.stop() == 0

    server.stop()
    shutil.rmtree(data)
    older.rename(data)
    _branch_off(data)
    server.start()
    while pipeline.position("target") > _lsn(source):
        source.execute("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000000))")
    source.execute("UPDATE t SET v = 'on timeline 2' WHERE id < 10")
    pipeline.start()
    assert pipeline.wait_exit(90) == 78
    assert "left timeline 1" in pipeline.config.execute("SELECT last_error FROM pipeline_metadata")[0][0]
    pipeline.config.execute("UPDATE pipelines SET status = 'REFRESH'")
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal()
    assert pipeline.stop() == 0

    server.stop()
    _branch_off(data)
    server.start()
    source.execute("UPDATE t SET v = 'on timeline 3'")
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal()


def _lsn(source: Database) -> int:
    return int(source.execute("SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint")[0][0])


def test_another_server_under_the_same_address_is_named(pipeline: PipelineHarness) -> None:
    """The identity that was recorded with the position is compared at each start."""
    pipeline.engine = "pgoutput"
    pipeline.source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    assert pipeline.stop() == 0
    pipeline.config.execute(
        "UPDATE capture_offsets SET offset_value = '7000000000000000001/1/0' WHERE offset_key = 'source_identity'"
    )
    pipeline.start()
    assert pipeline.wait_exit(90) == 78
    assert "another server" in pipeline.config.execute("SELECT last_error FROM pipeline_metadata")[0][0]
    assert pipeline.targets["target"].execute("SELECT * FROM t") == [(1,)]
