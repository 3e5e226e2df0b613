"""Rows of custom SQL that the target refuses: they wait with their key, others flow, NULL in the key or not."""

from __future__ import annotations

import pytest

from tests.support.dead_letters import replay, waiting_keys
from tests.support.pipelines import PipelineHarness
from tests.support.servers import RedisServer

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]

SUMS = "SELECT region, sum(n) AS s FROM t GROUP BY region"


def test_a_refused_group_waits_and_the_others_flow(pipeline: PipelineHarness, redis_server: RedisServer) -> None:
    pipeline.engine = "pgoutput"
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, region text, n int);"
        "INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, NULL, 3), (4, NULL, 4)"
    )
    pipeline.configure(
        syncs=[{"table": "public.t", "target": "sums", "custom_sql": SUMS}], settings={"dead_letter_retry_seconds": 0}
    )
    pipeline.environment["REDIS_URL"] = redis_server.url
    pipeline.start()
    pipeline.wait_caught_up()
    target.execute("ALTER TABLE sums ADD CONSTRAINT small CHECK (s < 100)")
    source.execute("UPDATE t SET n = 200 WHERE id = 1; UPDATE t SET n = 5 WHERE id IN (2, 3)")
    pipeline.wait_caught_up()
    assert target.execute("SELECT region, s::int FROM sums ORDER BY 1") == [("a", 1), ("b", 5), (None, 9)]
    source.execute("UPDATE t SET n = 300 WHERE id = 3; UPDATE t SET n = 6 WHERE id = 2")
    pipeline.wait_caught_up()
    source.execute("UPDATE t SET n = 10 WHERE id IN (1, 3)")
    pipeline.wait_caught_up()
    assert waiting_keys(target, "sums") == {("a",), (None,)}
    assert target.execute("SELECT region, s::int FROM sums ORDER BY 1") == [("a", 1), ("b", 6), (None, 9)]
    assert replay(pipeline)["keys_refused"] == 0
    assert target.execute("SELECT region, s::int FROM sums ORDER BY 1") == [("a", 10), ("b", 6), (None, 14)]
    source.execute("DELETE FROM t WHERE region IS NULL; UPDATE t SET region = NULL WHERE id = 2")
    pipeline.wait_caught_up()
    assert target.execute("SELECT region, s::int FROM sums ORDER BY 1") == [("a", 10), (None, 6)]
