"""A stop that comes while Debezium is starting ends the process, and leaves nothing at the source."""

from __future__ import annotations

import threading

import pytest

from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm]

READERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'Debezium%'"
)


def test_a_stop_while_the_engine_starts_is_clean(pipeline: PipelineHarness) -> None:
    """It refuses to be closed while its tasks are starting, which was the end of the thread that asked."""
    pipeline.source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.stop()
    for step in range(6):
        pipeline.start()
        wait_for(lambda: pipeline.source.execute(READERS)[0][0] > 0, 60, "the engine to look at the source")
        # Not a wait for a state: the moment is what is tried.
        threading.Event().wait(0.06 * step)
        assert pipeline.stop() == 0
        assert "Traceback" not in pipeline.log_text()
        assert pipeline.source.execute("SELECT count(*) FROM pg_replication_slots WHERE active") == [(0,)]
    pipeline.source.execute("INSERT INTO t VALUES (2)")
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal()
