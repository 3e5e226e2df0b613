"""The whole path into the independent stand-in."""

from __future__ import annotations

import pytest

from tests.integration.snowflake.test_snowflake_pipeline import SETUP
from tests.support.snowduck_pipeline import DuckPipeline

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_independent_stand_in_ends_equal(duck_pipeline: DuckPipeline) -> None:
    """Load, changes, deletes, truncate, a schema change and a kill; the test runs the tasks' statements."""
    pipeline, source = duck_pipeline, duck_pipeline.source
    source.execute(SETUP)
    # It inserts row by row, through a translation of each statement.
    source.execute("DELETE FROM item WHERE id > 20; DELETE FROM emptied WHERE a > 10; DELETE FROM log WHERE at > 5")
    source.execute("DELETE FROM toast WHERE id > 6")
    pipeline.configure(settings={"heartbeat_seconds": 1})
    pipeline.start()
    pipeline.wait_landed()
    source.execute("UPDATE item SET price = price + 1 WHERE id % 2 = 0; DELETE FROM item WHERE id % 5 = 0")
    source.execute(
        "DELETE FROM log WHERE line = 'line 3'; INSERT INTO log SELECT 1, 'line 1' FROM generate_series(1, 3)"
    )
    source.execute("TRUNCATE emptied; INSERT INTO emptied VALUES (1, 2, 'after')")
    source.execute("UPDATE toast SET n = 1 WHERE id < 5; UPDATE toast SET id = id + 100 WHERE id IN (3, 4)")
    pipeline.kill()
    pipeline.start()
    pipeline.wait_landed()
    pipeline.duck.run_tasks()
    pipeline.assert_same(pipeline.duck.query)
    source.execute("ALTER TABLE emptied ADD d int DEFAULT 5; INSERT INTO emptied VALUES (7, 7, 'with', 8)")
    source.execute("ALTER TABLE emptied RENAME c TO named; UPDATE emptied SET named = 'n' WHERE a = 7")
    pipeline.wait_landed()
    pipeline.duck.run_tasks()
    pipeline.assert_same(pipeline.duck.query)
    assert not pipeline.duck.failed
