"""A pipeline from end to end: initial load, every operation, restart."""

from __future__ import annotations

import pytest

from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.both_engines, pytest.mark.timeout(600)]


def test_initial_load_and_every_operation_end_equal(pipeline: PipelineHarness) -> None:
    """Rows from before, and insert, update, delete, key change and truncate from after the start."""
    source = pipeline.source
    source.execute("CREATE TABLE item (id int PRIMARY KEY, name text, price numeric(10,2), tags text[])")
    source.execute(
        "INSERT INTO item SELECT i, 'item ' || i, i / 7.0, ARRAY['a', NULL, 'b,c'] FROM generate_series(1, 5000) i"
    )
    source.execute("CREATE TABLE log (at timestamptz, line text)")
    source.execute("ALTER TABLE log REPLICA IDENTITY FULL")
    source.execute("INSERT INTO log SELECT now(), 'line ' || i % 10 FROM generate_series(1, 100) i")
    source.execute("CREATE TABLE emptied (a int, b int, c text, PRIMARY KEY (a, b))")
    source.execute("INSERT INTO emptied SELECT i, i % 3, repeat('x', 10) FROM generate_series(1, 100) i")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal()

    source.execute("INSERT INTO item VALUES (6001, 'new', 1.10, '{}'), (6002, NULL, NULL, NULL)")
    source.execute("UPDATE item SET price = price + 1 WHERE id % 2 = 0")
    source.execute("DELETE FROM item WHERE id % 5 = 0")
    source.execute("UPDATE item SET id = id + 100000 WHERE id BETWEEN 11 AND 13")
    source.execute("DELETE FROM log WHERE line = 'line 3'")
    source.execute("INSERT INTO log SELECT now(), 'line 1' FROM generate_series(1, 3)")
    source.execute("UPDATE log SET line = NULL WHERE line = 'line 4'")
    source.execute("TRUNCATE emptied; INSERT INTO emptied VALUES (1, 2, 'after')")
    pipeline.wait_caught_up()
    pipeline.assert_equal()

    assert pipeline.stop() == 0
    source.execute("DELETE FROM item WHERE id < 50")
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal()
