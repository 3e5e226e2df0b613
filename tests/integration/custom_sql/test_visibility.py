"""A commit that is in the WAL and that other sessions do not see yet: what is computed must wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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


def test_custom_sql_computes_from_rows_that_show_the_streamed_transaction(own: PipelineHarness) -> None:
    """Of the row's group and of the row itself."""
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
    with told_but_hidden(own, "UPDATE t SET region = 'b', n = 10 WHERE id = 1", "% sql"):
        assert target.execute("SELECT region, s FROM sums") == [("a", 3)], "nobody at the source sees it either"
    own.wait_caught_up()
    assert target.execute("SELECT region, s::int FROM sums ORDER BY 1") == [("a", 2), ("b", 10)]
    assert target.execute("SELECT id, region, n FROM rows ORDER BY 1") == [(1, "b", 10), (2, "a", 2)]


LARGE = (
    "CREATE TABLE t (id int PRIMARY KEY, n int, note text); ALTER TABLE t ALTER note SET STORAGE EXTERNAL;"
    "INSERT INTO t VALUES (1, 1, repeat('x', 3000)), (2, 2, repeat('y', 3000))"
)
"""An update that leaves `note` alone does not say it."""


def test_a_filter_decides_by_rows_that_show_the_streamed_transaction(own: PipelineHarness) -> None:
    """The deciding value is not in the stream, so the row is read; what stands there before the commit is too old."""
    target = own.targets["target"]
    own.source.execute(LARGE)
    own.configure(syncs=[{"table": "public.t", "target": "t", "filter": "note LIKE 'x%'"}])
    own.start()
    own.wait_caught_up()
    assert target.execute("SELECT id, n FROM t") == [(1, 1)]
    with told_but_hidden(own, "UPDATE t SET n = 10 WHERE id = 1", "% rows"):
        pass
    own.wait_caught_up()
    assert target.execute("SELECT id, n FROM t") == [(1, 10)]


@pytest.mark.parametrize("engine", ["pgoutput", pytest.param("debezium", marks=pytest.mark.jvm)])
def test_a_plain_copy_fetches_rows_that_show_the_streamed_transaction(own: PipelineHarness, engine: str) -> None:
    """The target lacks a row of which the stream does not say everything; this stream has no stamps."""
    target = own.targets["target"]
    own.engine = engine
    own.source.execute(LARGE)
    own.configure()
    own.start()
    own.wait_caught_up()
    target.execute("DELETE FROM t WHERE id = 1")
    own.source.execute("UPDATE t SET n = 3 WHERE id = 2")
    own.wait_caught_up()
    with told_but_hidden(own, "UPDATE t SET n = 10 WHERE id = 1", "% fetch"):
        pass
    own.wait_caught_up()
    own.assert_equal()
    assert target.execute("SELECT id, n FROM t ORDER BY 1") == [(1, 10), (2, 3)]


@contextmanager
def told_but_hidden(own: PipelineHarness, statement: str, asking: str) -> Iterator[None]:
    """Commit a statement that waits, until the end of the block, for a synchronous standby that does not come.

    The block begins when the stream has told of it: a session of this application name asks whether it is visible, or
    the target went on without asking.
    """
    source = own.source
    _synchronous(source, "'nobody'")
    before = own.position("target")
    writer = threading.Thread(target=source.execute, args=(statement,))
    writer.start()
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'UPDATE t%'"
    asks = (
        f"SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '{asking}' AND query LIKE '%txid_current%'"
    )
    try:
        wait_for(lambda: source.execute(waits) == [(1,)], 60, "the commit to wait for its standby")
        wait_for(
            lambda: own.position("target") > before or source.execute(asks) != [(0,)],
            60,
            "the stream to tell of the commit",
        )
        yield
    finally:
        _synchronous(source, "''")
        writer.join(60)


def _synchronous(source: Database, names: str) -> None:
    with closing(source.connect()) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER SYSTEM SET synchronous_standby_names = {names}")
            cursor.execute("SELECT pg_reload_conf()")
