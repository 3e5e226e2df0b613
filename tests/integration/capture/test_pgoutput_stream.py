"""The engine `pgoutput` against a real server: acknowledgement, lost links, idle sources, barriers, odd columns."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pytest

from cdc_runner.capture.assemble import BatchSettings
from cdc_runner.capture.pgoutput import link
from cdc_runner.position import Position
from tests.integration.capture.conftest import MARK, Source
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.timeout(120)]


def test_only_what_was_acknowledged_is_confirmed(source: Source) -> None:
    """However often the server tells how far it is: it says so with every keepalive."""
    source.begin("CREATE TABLE t (id int PRIMARY KEY)")
    stream = source.start()
    source.database.execute(MARK)
    source.wait_marks(1)
    first = source.batches[-1].last
    wait_for(lambda: source.confirmed() == first.lsn, 20, "the slot to be confirmed")
    source.acknowledging = False
    source.database.execute(MARK)
    source.wait_marks(2)
    for _ in range(20):
        source.database.execute("SELECT pg_switch_wal()")
        source.database.execute("SELECT txid_current()")
    _ask_for_keepalive(source)
    assert source.confirmed() == first.lsn
    stream.acknowledge(source.batches[-1].last)
    wait_for(lambda: source.confirmed() == source.batches[-1].last.lsn, 20, "the slot to be confirmed")


def _ask_for_keepalive(source: Source) -> None:
    """Wait for two rounds of status messages, whose replies are keepalives."""
    query = "SELECT reply_time FROM pg_stat_replication WHERE pid = %s"
    for _ in range(2):
        before = source.database.execute(query, (source.walsender(),))
        wait_for(lambda: source.database.execute(query, (source.walsender(),)) != before, 10, "a status")  # noqa: B023


def test_the_server_does_not_give_up_while_nothing_is_taken(source: Source) -> None:
    """The buffer is full and nobody reads from it for longer than the server waits for a sign of life."""
    source.database.execute(f"ALTER DATABASE \"{source.database.name}\" SET wal_sender_timeout = '2s'")
    source.begin("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.taking.clear()
    source.start(settings=BatchSettings(max_bytes=1 << 20, memory_bytes=1 << 20))
    pid = wait_for(source.walsender, 20, "the stream to begin")
    for low in range(0, 60_000, 1000):
        source.database.execute(
            f"INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({low + 1}, {low + 1000}) i"
        )
    query = "SELECT reply_time - backend_start > '6 seconds' FROM pg_stat_replication WHERE pid = %s"
    wait_for(lambda: source.database.execute(query, (pid,)) == [(True,)], 30, "status messages for three time-outs")
    source.database.execute(MARK)
    source.taking.set()
    source.wait_marks(1)
    assert source.walsender() == pid
    assert len(source.of("t")) == 60_000


def test_a_lost_connection_is_opened_again_and_nothing_comes_twice(source: Source) -> None:
    """Between transactions, and within one of which a part is in the buffer already."""
    source.begin("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.acknowledging = False
    source.start(settings=BatchSettings(memory_bytes=1 << 20))
    for round_ in range(3):
        low = round_ * 100_000
        source.database.execute(f"INSERT INTO t SELECT i, '' FROM generate_series({low + 1}, {low + 20}) i")
        source.database.execute(
            f"INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series({low + 21}, {low + 30000}) i"
        )
        pid = source.walsender()
        if pid is not None:
            source.database.execute("SELECT pg_terminate_backend(%s)", (pid,))
        source.database.execute(MARK)
    source.wait_marks(3)
    numbers = [int(row["c0"]) for row in source.of("t")]
    assert numbers == [low + number for low in (0, 100_000, 200_000) for number in range(1, 30001)]
    positions = [batch.last for batch in source.batches]
    assert positions == sorted(set(positions))


def test_a_slot_that_moved_while_the_connection_was_lost_ends_the_stream(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody dropped the slot and made it anew: changes are lost, so nothing goes on as if they were not."""
    source.begin("CREATE TABLE t (id int PRIMARY KEY)")
    source.start()
    source.database.execute(MARK)
    source.wait_marks(1)
    source.acknowledging = False
    name = source.database.name
    held = threading.Event()
    original = link.Link.__init__

    def wait_first(*arguments: Any, **named: Any) -> None:
        held.wait(20)
        original(*arguments, **named)

    monkeypatch.setattr(link.Link, "__init__", wait_first)
    source.database.execute("SELECT pg_terminate_backend(%s)", (source.walsender(),))
    wait_for(lambda: source.walsender() is None, 10, "the walsender to end")
    source.database.execute("SELECT pg_drop_replication_slot(%s)", (name,))
    source.database.execute("INSERT INTO t VALUES (1)")
    source.database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
    held.set()
    wait_for(lambda: bool(source.errors), 20, "the stream to end")
    assert "has moved" in str(source.errors[0])


def test_an_idle_source_gives_empty_batches(source: Source) -> None:
    """The way for servers to which no heartbeat can be written: PostgreSQL 12 and 13, standbys."""
    source.begin("CREATE TABLE t (id int PRIMARY KEY)")
    source.start(idle_seconds=0.5)
    other = source.database.server.create_database(f"{source.database.name}_other")
    try:
        other.execute("CREATE TABLE noise AS SELECT i FROM generate_series(1, 10000) i")
        reached = source.wal()
        wait_for(lambda: source.confirmed() >= reached, 30, "the slot to pass the other database's WAL")
        assert source.confirmed() <= source.batches[-1].last.lsn
        assert not source.rows
    finally:
        source.database.server.drop_database(other.name)


def test_a_barrier_is_never_spanned(source: Source) -> None:
    source.begin("CREATE TABLE t (id int PRIMARY KEY)")
    ends = []
    for number in range(30):
        source.database.execute("INSERT INTO t VALUES (%s)", (number,))
        ends.append(source.wal())
    barriers = [Position(ends[9]), Position(ends[19])]
    source.database.execute(MARK)
    source.start(barriers=barriers)
    source.wait_marks(1)
    lasts = [batch.last for batch in source.batches]
    for barrier, inside in zip(barriers, (10, 20), strict=True):
        events = sum(batch.events for batch in source.batches if batch.last <= barrier)
        assert events == inside, f"{lasts} {barrier}"


def test_unusual_columns_do_not_make_new_versions(source: Source) -> None:
    """Domains, enums, arrays, generated and identity columns: the stream and the catalog describe the same table."""
    source.begin(
        """CREATE DOMAIN short AS varchar(10); CREATE DOMAIN shorter AS short CHECK (length(VALUE) < 5);
        CREATE TYPE mood AS ENUM ('sad'); CREATE TYPE pair AS (a int, b short);
        CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, d shorter, m mood, ms mood[], p pair,
                        ds short[],
                        g int GENERATED ALWAYS AS (1) STORED, "A" int, a int, "odd ""name" text)"""
    )
    source.start()
    source.database.execute("INSERT INTO t (d, m, ms, p, ds) VALUES ('d', 'sad', '{sad}', '(1,x)', '{a,b}')")
    source.database.execute('ANALYZE t; UPDATE t SET a = 1, "A" = 2')
    source.database.execute(MARK)
    source.wait_marks(1)
    assert source.versions["t"] == {1}
    last = source.of("t")[-1]
    values = [last[f"c{number}"] for number in range(9)]
    assert values == ["1", "d", "sad", "{sad}", "(1,x)", "{a,b}", "2", "1", None]


def test_changes_that_came_by_replication_can_be_left_out(source: Source) -> None:
    if source.database.execute("SHOW server_version_num")[0][0] < "160000":
        pytest.skip("the origin filter needs PostgreSQL 16")
    source.begin("CREATE TABLE t (id int PRIMARY KEY)")
    source.start(origin="none")
    origin = f"{source.database.name}_elsewhere"
    source.database.execute("SELECT pg_replication_origin_create(%s)", (origin,))
    try:
        with closing(source.database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_replication_origin_session_setup(%s)", (origin,))
            cursor.execute("INSERT INTO t VALUES (1)")
        source.database.execute("INSERT INTO t VALUES (2)")
        source.database.execute(MARK)
        source.wait_marks(1)
        assert [row["c0"] for row in source.of("t")] == ["2"]
    finally:
        source.close()
        source.database.execute("SELECT pg_replication_origin_drop(%s)", (origin,))
