"""Search and replay without a stream: the cost of many refused rows, and of bringing them in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from cdc_runner.capture.base import TableVersion
from cdc_runner.capture.fetch import SourceRows
from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.dead_letter.replay import Replayer
from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.destinations.base import ApplyMode, TableState
from cdc_runner.destinations.marks import Selection
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.postgres.divert import merge_rows
from cdc_runner.position import Position
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import DestinationSpec, PipelineSettings, ResolvedSync
from tests.support.servers import Database, RedisServer

pytestmark = [pytest.mark.pg, pytest.mark.timeout(300)]

SCHEMA = TableSchema(
    TableId("public", "t"),
    (Column("id", "integer", "int4", number=1), Column("v", "text", "text", number=2)),
    ("id",),
    ("id",),
    ReplicaIdentity.DEFAULT,
)
SYNC = ResolvedSync(None, SCHEMA.table, SCHEMA.table)
ISOLATE = ApplyMode(careful=True, isolate=True)
LEAST_ROWS_PER_SECOND = 200
"""Far below what is asked of a quiet machine (5,000): tests share theirs, some with many others."""


@pytest.fixture
def destination(target_database: Database, source_database: Database, tmp_path: Path) -> Iterator[PostgresDestination]:
    """A destination with an empty table `t` whose `v` must not be `bad`."""
    target_database.execute("CREATE TABLE t (id int PRIMARY KEY, v text CHECK (v <> 'bad'))")
    spec = DestinationSpec(1, 1, "target", "postgres", target_database.address(), None)
    source = SourceRows(source_database.address(), "test")
    made = PostgresDestination(
        spec, "shop", PipelineSettings(), directory=tmp_path, fetch=source.fetch, source=source.connection
    )
    made.open()
    made.start_at(Position(1))
    made.remember_all([TableState(SYNC, ready=True, snapshot=Position(0), schema=SCHEMA)])
    yield made
    made.close()
    source.close()


@pytest.fixture
def queue(redis_client: redis.Redis, redis_server: RedisServer) -> Iterator[DeadLetterQueue]:
    store = LetterStore(SecretStr(redis_server.url))
    yield DeadLetterQueue(store, "shop", 1, 1)
    store.close()


def change(rows: list[tuple[int, str]]) -> list[list[tuple[ResolvedSync, NetChange]]]:
    table = merge_rows([{"d": False, "x": None, "c0": str(key), "c1": value} for key, value in rows], 2)
    net = NetChange(NetKind.MERGE, TableVersion(SCHEMA, 0), False, table, False, False, len(rows))
    return [[(SYNC, net)]]


def test_a_few_refused_rows_among_many_are_found_and_all_others_written(
    destination: PostgresDestination,
    queue: DeadLetterQueue,
    target_database: Database,
) -> None:
    bad = {7, 5000, 5001, 19_999}
    rows = [(key, "bad" if key in bad else "good") for key in range(20_000)]
    started = time.monotonic()
    destination.apply(change(rows), Position(2), mode=ISOLATE, sink=queue)
    took = time.monotonic() - started
    marks = target_database.execute("SELECT key_text, sqlstate FROM _rosetta.waiting_key ORDER BY number")
    assert marks == [(f'["{key}"]', "23514") for key in sorted(bad)]
    assert target_database.execute("SELECT count(*) FROM t") == [(20_000 - len(bad),)]
    assert took < 120


def test_a_replay_is_fast(
    destination: PostgresDestination,
    queue: DeadLetterQueue,
    target_database: Database,
) -> None:
    count = 20_000
    destination.apply(change([(key, "bad") for key in range(count)]), Position(2), mode=ISOLATE, sink=queue)
    # Later changes go behind them without a search.
    destination.apply(change([(key, "later") for key in range(count)]), Position(3), sink=queue)
    target_database.execute("ALTER TABLE t DROP CONSTRAINT t_v_check")
    started = time.monotonic()
    result = Replayer(destination, "shop", queue, lambda *_: {}, "test").replay(Selection())
    took = time.monotonic() - started
    assert (result.keys, result.entries, result.refused) == (count, 2 * count, 0)
    assert target_database.execute("SELECT count(*), min(v), max(v) FROM t") == [(count, "later", "later")]
    assert count / took > LEAST_ROWS_PER_SECOND, f"{count / took:.0f} keys/s"
