"""Rows that the target refuses, from the real stream: only their keys wait, and a replay brings everything in order."""

from __future__ import annotations

import pytest
import redis

from tests.support.dead_letters import different_keys, replay, waiting_keys
from tests.support.pipelines import PipelineHarness
from tests.support.servers import RedisServer

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

TABLES = """
CREATE TABLE item (id int PRIMARY KEY, code text, amount int, note text);
INSERT INTO item SELECT i, 'code' || i, i, 'n' FROM generate_series(1, 100) i;
CREATE TABLE line (at int, what text);
ALTER TABLE line REPLICA IDENTITY FULL;
INSERT INTO line VALUES (1, 'a'), (1, 'a'), (2, 'b');
"""
STRICT = """
ALTER TABLE item ADD CONSTRAINT one_code UNIQUE (code);
ALTER TABLE item ADD CONSTRAINT positive CHECK (amount >= 0);
ALTER TABLE item ADD CONSTRAINT short CHECK (length(note) < 20);
"""


@pytest.fixture
def letters(pipeline: PipelineHarness, redis_client: redis.Redis, redis_server: RedisServer) -> PipelineHarness:
    """A pipeline with tables that stream into a target which is stricter than the source."""
    pipeline.source.execute(TABLES)
    pipeline.configure(settings={"dead_letter_retry_seconds": 0})
    pipeline.environment["REDIS_URL"] = redis_server.url
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.targets["target"].execute(STRICT)
    return pipeline


def test_only_the_poisoned_keys_wait_and_a_replay_brings_them_in_order(letters: PipelineHarness) -> None:
    """A unique violation, a CHECK and a text that is too long, each followed by later changes."""
    source, target = letters.source, letters.targets["target"]
    source.execute("UPDATE item SET code = 'code2' WHERE id = 1")
    source.execute("UPDATE item SET amount = -5 WHERE id = 10; UPDATE item SET amount = 11 WHERE id = 11")
    source.execute("INSERT INTO item VALUES (200, 'code200', 1, repeat('long', 10)), (201, 'code201', 1, 'fine')")
    source.execute("UPDATE item SET note = 'other rows flow' WHERE id BETWEEN 20 AND 90")
    letters.wait_caught_up()
    assert waiting_keys(target) == {("1",), ("10",), ("200",)}
    assert different_keys(letters) == {1, 10, 200}
    # Later changes of these keys wait behind them, whatever they are: updates, a delete, a changed key.
    source.execute("UPDATE item SET note = 'later' WHERE id IN (1, 10)")
    source.execute("UPDATE item SET id = 300 WHERE id = 10")
    source.execute("UPDATE item SET amount = 7 WHERE id = 200; UPDATE item SET amount = 8 WHERE id = 55")
    letters.wait_caught_up()
    assert waiting_keys(target) >= {("1",), ("10",), ("200",)}
    assert different_keys(letters) <= {1, 10, 200, 300}
    target.execute("ALTER TABLE item DROP CONSTRAINT one_code, DROP CONSTRAINT positive, DROP CONSTRAINT short")
    result = replay(letters)
    assert result["keys_refused"] == 0, result
    assert waiting_keys(target) == set()
    letters.assert_equal()
    source.execute("UPDATE item SET note = 'all flow again'; DELETE FROM item WHERE id = 1")
    letters.wait_caught_up()
    letters.assert_equal()
