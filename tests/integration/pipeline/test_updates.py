"""Batches that hold updates only, which the engine pgoutput tells of: they are written by UPDATE, not by an upsert."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.timeout(300)]

ROWS = 3000


def _start(pipeline: PipelineHarness) -> None:
    pipeline.engine = "pgoutput"
    pipeline.source.execute("CREATE TABLE t (a int, b text, v int, u int UNIQUE, PRIMARY KEY (b, a))")
    pipeline.source.execute(f"INSERT INTO t SELECT i, 'b' || i % 3, 0, i FROM generate_series(1, {ROWS}) i")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(90)


def test_updates_touch_rows_in_place_and_bring_back_those_that_the_target_lacks(pipeline: PipelineHarness) -> None:
    _start(pipeline)
    target = pipeline.targets["target"]
    pipeline.source.execute("UPDATE t SET v = v + 1")
    pipeline.wait_caught_up(60)
    pipeline.assert_equal()
    target.execute("DELETE FROM t WHERE a % 100 = 0")
    pipeline.source.execute("UPDATE t SET v = v + 1; UPDATE t SET v = v + 1 WHERE a < 50")
    pipeline.wait_caught_up(60)
    pipeline.assert_equal()


def test_unique_values_that_change_places(pipeline: PipelineHarness) -> None:
    _start(pipeline)
    with closing(pipeline.source.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; UPDATE t SET u = -u")
        cursor.execute(f"UPDATE t SET u = {ROWS + 1} - a; COMMIT")
    pipeline.wait_caught_up(60)
    pipeline.assert_equal()
    assert pipeline.targets["target"].execute("SELECT u FROM t WHERE a = 1") == [(ROWS,)]


@pytest.mark.both_engines
def test_many_rows_that_the_target_lacks_are_read_from_the_source(pipeline: PipelineHarness) -> None:
    """Updates leave a stored value out, so that rows which are gone at the target can only come from the source."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute('CREATE TABLE t (a int, b char(4), "odd %s" int, big text, PRIMARY KEY (b, a))')
    source.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    source.execute(f"INSERT INTO t SELECT i, 'b' || i % 3, 0, repeat('x', 3000) || i FROM generate_series(1, {ROWS}) i")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    target.execute("DELETE FROM t WHERE a % 3 = 0")
    # In one transaction, so that the rows of the first change are gone when it is applied.
    source.execute('BEGIN; UPDATE t SET "odd %s" = 1; DELETE FROM t WHERE a % 9 = 0; COMMIT')
    source.execute('UPDATE t SET "odd %s" = 2 WHERE a % 2 = 0')
    pipeline.wait_caught_up()
    pipeline.assert_equal()
    assert '"event": "apply.rows_fetched"' in pipeline.log_text()
