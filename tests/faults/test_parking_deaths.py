"""The process dies between two durable steps of parking batches or taking them out: each change arrives once."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
import redis

from cdc_runner.failpoints import Failpoint
from tests.support.parked import begin, confirmed, parked, wait_passed
from tests.support.pipelines import PipelineHarness
from tests.support.proxy import TcpProxy
from tests.support.servers import RedisServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(900)]

SETUP = """
CREATE TABLE account (id int PRIMARY KEY, n int NOT NULL, big text);
ALTER TABLE account ALTER big SET STORAGE EXTERNAL;
INSERT INTO account SELECT i, 0, repeat('x', 3000) FROM generate_series(1, 50) i;
CREATE TABLE entry (at int, n int);
ALTER TABLE entry REPLICA IDENTITY FULL;
"""
SYNCS: list[dict[str, object]] = [
    {"table": "public.account"},
    {"table": "public.entry"},
    {"table": "public.account", "target": "told", "mode": "history", "exclude": ["big"]},
]


class Changes:
    """Changes of the source, of which the history must tell each once and in order."""

    def __init__(self, pipeline: PipelineHarness) -> None:
        self._pipeline = pipeline
        self._numbers = itertools.count(1)
        self._told: list[tuple[str, int, int | None]] = []

    def write(self, times: int = 3) -> None:
        """Commit updates, inserts, key changes and deletes, and equal rows in the table without a key."""
        for _ in range(times):
            n = next(self._numbers)
            old, new = 1 + n % 50, 1000 + n
            self._pipeline.source.execute(
                f"BEGIN; UPDATE account SET n = {n} WHERE id = {old}; INSERT INTO account VALUES ({new}, {n}, 'new'); "
                f"INSERT INTO entry VALUES ({n % 3}, 0), ({n % 3}, 0); COMMIT; "
                f"UPDATE account SET id = id + 1000 WHERE id = {new}; DELETE FROM account WHERE id = {new + 1000}; "
                f"DELETE FROM entry WHERE ctid = (SELECT ctid FROM entry LIMIT 1)"
            )
            self._told += [
                ("u", old, n), ("c", new, n), ("d", new, None), ("c", new + 1000, n), ("d", new + 1000, None)
            ]  # fmt: skip

    def write_much(self) -> None:
        """Commit more than what leaves Redis together, and wait until the slot has passed it."""
        n = next(self._numbers)
        self._pipeline.source.execute(
            "UPDATE account SET n = %s, big = (SELECT string_agg(md5(i || 'at' || id || 'of' || %s), '') "
            "FROM generate_series(1, 6000) i) WHERE id <= 30",
            (n, n),
        )
        self._told += [("u", id, n) for id in range(1, 31)]
        wait_passed(self._pipeline)

    def assert_exact(self, target: str = "target") -> None:
        """Fail unless a target has each change once."""
        pipeline = self._pipeline
        pipeline.assert_equal(target)
        history = "SELECT _rosetta_operation, id, n FROM told WHERE _rosetta_ordinal > 0"
        # Rows of one statement come in the order of the table.
        found = pipeline.targets[target].execute(f"{history} ORDER BY _rosetta_lsn, _rosetta_ordinal")
        assert [one for one in found if one[1] > 50] == [one for one in self._told if one[1] > 50]
        assert sorted(map(str, found)) == sorted(map(str, self._told))
        assert [one[2] for one in found if one[1] <= 50] == sorted(one[2] or 0 for one in found if one[1] <= 50)


def _start(pipeline: PipelineHarness, place: Failpoint | None = None, times: int = 1) -> None:
    pipeline.environment.pop("ROSETTA_FAILPOINT", None)
    if place is not None:
        pipeline.environment["ROSETTA_FAILPOINT"] = f"{place}:{times}"
    pipeline.start()


def _wait_death(pipeline: PipelineHarness) -> None:
    assert pipeline.wait_exit(120) == -signal.SIGKILL, pipeline.log_text()[-2000:]
    pipeline.config.execute("UPDATE runner_leases SET expires_at = clock_timestamp()")


def _through(redis_client: redis.Redis) -> int:
    """Return the position of the batch of which something came into Redis last."""
    (name,) = (key for key in redis_client.keys("park:*") if b"schema" not in key)
    found: Any = redis_client.xrevrange(name, count=1)
    ((_, fields),) = found
    return int(json.loads(fields[b"head"])["through"])


@pytest.mark.both_engines(slow="debezium")
def test_a_death_at_each_step_of_parking_loses_and_repeats_nothing(
    pipeline: PipelineHarness,
    tcp_proxy: Callable[[str, int], TcpProxy],
    redis_server: RedisServer,
    redis_client: redis.Redis,
) -> None:
    target = pipeline.targets["target"]
    link = tcp_proxy(target.server.host, target.server.port)
    changes = Changes(pipeline)
    first = {"ROSETTA_FAILPOINT": f"{Failpoint.DURING_PARK}:2"}
    begin(pipeline, SETUP, link, redis_server.url, syncs=SYNCS, environment=first)
    for after_that in (Failpoint.AFTER_PARK, None):
        link.refuse()
        link.reset()
        changes.write()
        _wait_death(pipeline)
        assert confirmed(pipeline) < _through(redis_client), "the source was not told of what is in Redis last"
        changes.write(1)
        link.heal()
        _start(pipeline, after_that)
        pipeline.wait_caught_up()
        changes.assert_exact()
    link.refuse()
    link.reset()
    for _ in range(3):
        changes.write()
        changes.write_much()
    pipeline.kill()
    held, released = pipeline.position("target"), confirmed(pipeline)
    assert held < released
    changes.write(1)
    link.heal()
    for place in (Failpoint.BEFORE_UNPARK, Failpoint.AFTER_UNPARK):
        _start(pipeline, place)
        _wait_death(pipeline)
        assert held < pipeline.position("target") < released, "a part of what is parked has arrived"
        assert redis_client.keys("park:*"), "the rest is still parked"
        changes.write(1)
    _start(pipeline)
    pipeline.wait_caught_up()
    changes.assert_exact()
    assert not redis_client.keys("park:*")
    wait_for(lambda: parked(pipeline) == (0, 0), 60, "nothing to be told of as parked")
    wait_passed(pipeline)
