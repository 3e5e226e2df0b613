"""A commit that is in the WAL and that other sessions do not see yet: what is computed must wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.pipelines import PipelineHarness
from tests.support.servers import Database, OwnServers
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]


@pytest.fixture
def own(
    own_servers: Callable[..., OwnServers], config_database: Database, target_database: Database, tmp_path: Path
) -> Iterator[PipelineHarness]:
    """A pipeline from a server of its own, whose settings may be changed."""
    source = own_servers("source").postgres("source").create_database("visible")
    harness = PipelineHarness(config_database, source, {"target": target_database}, tmp_path, engine="pgoutput")
    try:
        yield harness
    finally:
        harness.close()


def test_rows_are_read_when_the_streamed_transaction_is_visible(own: PipelineHarness) -> None:
    """It waits for a synchronous standby that does not come, while the stream has told of it already."""
    source, target = own.source, own.targets["target"]
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, region text, n int); INSERT INTO t VALUES (1, 'a', 1), (2, 'a', 2)"
    )
    own.configure(
        syncs=[
            {"table": "public.t", "target": "sums", "custom_sql": "SELECT region, sum(n) AS s FROM t GROUP BY region"},
            {"table": "public.t", "target": "rows", "custom_sql": "SELECT id, region, n FROM t"},
        ]
    )
    own.start()
    own.wait_caught_up()
    _synchronous(source, "'nobody'")
    before = own.position("target")
    writer = threading.Thread(target=source.execute, args=("UPDATE t SET region = 'b', n = 10 WHERE id = 1",))
    writer.start()
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'UPDATE t%'"
    asks = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '% sql' AND query LIKE '%txid_current%'"
    wait_for(lambda: source.execute(waits) == [(1,)], 60, "the commit to wait for its standby")
    wait_for(
        lambda: own.position("target") > before or source.execute(asks) != [(0,)],
        60,
        "the stream to tell of the commit",
    )
    assert target.execute("SELECT region, s FROM sums") == [("a", 3)], "nobody at the source sees it either"
    _synchronous(source, "''")
    writer.join(60)
    own.wait_caught_up()
    assert target.execute("SELECT region, s::int FROM sums ORDER BY 1") == [("a", 2), ("b", 10)]
    assert target.execute("SELECT id, region, n FROM rows ORDER BY 1") == [(1, "b", 10), (2, "a", 2)]


def test_a_filter_decides_by_rows_that_show_the_streamed_transaction(own: PipelineHarness) -> None:
    """The deciding value is not in the stream, so the row is read; what stands there before the commit is too old."""
    source, target = own.source, own.targets["target"]
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, note text); ALTER TABLE t ALTER note SET STORAGE EXTERNAL;"
        "INSERT INTO t VALUES (1, 1, repeat('x', 3000)), (2, 2, repeat('y', 3000))"
    )
    own.configure(syncs=[{"table": "public.t", "target": "t", "filter": "note LIKE 'x%'"}])
    own.start()
    own.wait_caught_up()
    assert target.execute("SELECT id, n FROM t") == [(1, 1)]
    _synchronous(source, "'nobody'")
    before = own.position("target")
    writer = threading.Thread(target=source.execute, args=("UPDATE t SET n = 10 WHERE id = 1",))
    writer.start()
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'UPDATE t%'"
    asks = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '% rows' AND query LIKE '%txid_current%'"
    wait_for(lambda: source.execute(waits) == [(1,)], 60, "the commit to wait for its standby")
    wait_for(
        lambda: own.position("target") > before or source.execute(asks) != [(0,)],
        60,
        "the stream to tell of the commit",
    )
    _synchronous(source, "''")
    writer.join(60)
    own.wait_caught_up()
    assert target.execute("SELECT id, n FROM t") == [(1, 10)]


def _synchronous(source: Database, names: str) -> None:
    with closing(source.connect()) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER SYSTEM SET synchronous_standby_names = {names}")
            cursor.execute("SELECT pg_reload_conf()")
