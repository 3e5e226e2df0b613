"""The source's side: idle databases, tables that come later, names, restarts and cut links."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cdc_runner.position import parse_lsn
from tests.support.pipelines import PipelineHarness
from tests.support.proxy import TcpProxy
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.both_engines, pytest.mark.timeout(600)]


def test_an_idle_database_moves_its_slot_while_another_writes(pipeline: PipelineHarness) -> None:
    """Heartbeats go through the slot, so WAL of the server is not kept for a database where nothing happens."""
    source = pipeline.source
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    pipeline.configure(settings={"heartbeat_seconds": 1})
    pipeline.start()
    pipeline.wait_caught_up()
    other = source.server.create_database(f"{source.name}_other")
    try:
        other.execute("CREATE TABLE noise AS SELECT i, repeat('x', 100) AS v FROM generate_series(1, 100000) i")
        reached = parse_lsn(other.execute("SELECT pg_current_wal_lsn()::text")[0][0])

        def confirmed() -> int:
            rows = source.execute(
                "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE database = %s", (source.name,)
            )
            return parse_lsn(rows[0][0])

        wait_for(lambda: confirmed() >= reached, 150, "the slot to pass the other database's WAL")
        assert confirmed() <= pipeline.position("target"), "the slot is never ahead of the destination"
    finally:
        source.server.drop_database(other.name)


def test_a_cut_link_to_the_source_heals(pipeline: PipelineHarness, tcp_proxy: Callable[[str, int], TcpProxy]) -> None:
    """The link is reset under load: the process says why it ended, and the next one goes on where the target is."""
    source = pipeline.source
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v int)")
    link = tcp_proxy(source.server.host, source.server.port)
    pipeline.ports["source"] = link.port
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 2000) i")
    link.reset()
    source.execute("UPDATE t SET v = v + 1")
    pipeline.wait_caught_up(120, revive=True)
    pipeline.assert_equal()


def test_walsender_terminated_and_server_restarted(
    pipeline: PipelineHarness,
) -> None:
    """The server ends our walsender: the stream is not silently over."""
    source = pipeline.source
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i"
    )
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = %s", (source.name,)
    )
    source.execute("UPDATE t SET v = 5")
    pipeline.wait_caught_up(120, revive=True)
    pipeline.assert_equal()


def test_a_second_process_for_one_pipeline_is_refused_and_a_frozen_one_is_fenced(pipeline: PipelineHarness) -> None:
    """The lease names its holder; a process whose lease ran out writes nothing after it wakes up."""
    import os
    import signal

    source = pipeline.source
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    first = pipeline.process
    assert first is not None
    pipeline.process = None
    pipeline.start()
    assert pipeline.wait_exit(90) == 73
    os.kill(first.pid, signal.SIGSTOP)
    try:
        pipeline.config.execute("UPDATE runner_leases SET expires_at = clock_timestamp()")
        source.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = %s", (source.name,)
        )
        pipeline.start()
        source.execute("UPDATE t SET v = 1")
        pipeline.wait_caught_up(120, revive=True)
        os.kill(first.pid, signal.SIGCONT)
        # The slot has moved on without it: still no fault that needs a person, nor a state to report.
        assert first.wait(60) in (75, 0)
        status, error = pipeline.config.execute("SELECT status, last_error FROM pipeline_metadata")[0]
        assert (status, error) == ("RUNNING", None)
        source.execute("UPDATE t SET v = 2; INSERT INTO t VALUES (2, 2)")
        pipeline.wait_caught_up(120, revive=True)
        pipeline.assert_equal()
    finally:
        if first.poll() is None:
            first.kill()
            first.wait(10)
        if first.stdin is not None:
            first.stdin.close()


def test_a_transaction_larger_than_memory_stays_whole(pipeline: PipelineHarness) -> None:
    """One transaction of 300,000 rows with a small buffer: spilled to disk, seen at the target all at once or not at all."""
    source = pipeline.source
    source.execute("CREATE TABLE big (id int PRIMARY KEY, v text); CREATE TABLE mark (id int PRIMARY KEY)")
    pipeline.configure(settings={"spill_bytes": 4 << 20, "batch_max_bytes": 4 << 20})
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute(
        "BEGIN; INSERT INTO big SELECT i, repeat('x', 100) FROM generate_series(1, 300000) i; "
        "UPDATE big SET v = 'y' WHERE id % 1000 = 0; INSERT INTO mark VALUES (1); COMMIT"
    )
    spill = pipeline.home / "spill" / str(pipeline.pipeline_id)
    seen: set[tuple[int, int]] = set()
    spilled = [0]

    def done() -> bool:
        spilled[0] = max(spilled[0], len(list(spill.glob("*.part"))))
        row = pipeline.targets["target"].execute("SELECT (SELECT count(*) FROM big), (SELECT count(*) FROM mark)")[0]
        seen.add(row)
        return bool(row[1] == 1)

    wait_for(done, 400, "the transaction")
    assert seen <= {(0, 0), (300000, 1)}
    assert spilled[0] > 0
    pipeline.wait_caught_up()
    pipeline.assert_equal()
