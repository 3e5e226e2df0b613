"""A pipeline whose target is stricter than its source."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.support.pipelines import PipelineHarness
from tests.support.servers import RedisServer

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
ALTER TABLE item ALTER note TYPE varchar(19);
ALTER TABLE line ADD CONSTRAINT known CHECK (what <> 'bad');
"""

Configure = Callable[..., PipelineHarness]


@pytest.fixture
def strict(pipeline: PipelineHarness, redis_client: redis.Redis, redis_server: RedisServer) -> Configure:
    """A factory of the pipeline, streaming into its strict target; `url` names another Redis, None none."""

    def start(
        url: str | None = redis_server.url, tables: str = TABLES, rules: str = STRICT, **settings: object
    ) -> PipelineHarness:
        pipeline.source.execute(tables)
        pipeline.configure(settings={"dead_letter_retry_seconds": 0, **settings})
        pipeline.environment.pop("REDIS_URL", None)
        if url is not None:
            pipeline.environment["REDIS_URL"] = url
        pipeline.start()
        pipeline.wait_caught_up()
        pipeline.targets["target"].execute(rules)
        return pipeline

    return start
