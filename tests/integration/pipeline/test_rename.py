"""A pipeline, its source and its destination get other names, and everything goes on as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
import redis
from sqlalchemy.orm import Session

from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.repositories import get_pipeline
from cdc_runner.reconcile.result import Outcome
from cdc_runner.services.create import create_pipeline
from cdc_runner.services.edit import change_source, duplicate_source
from cdc_runner.services.pipeline import change_status, remove_pipeline
from cdc_runner.services.rename import rename_destination, rename_pipeline, rename_source
from cdc_runner.services.verify import Request, verify_pipeline
from tests.support.backfills import WRITTEN, Backfills, Writer, fill
from tests.support.dead_letters import operator, replay, waiting_keys
from tests.support.pipelines import PipelineHarness
from tests.support.servers import RedisServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

STATE = "SELECT s::text FROM _rosetta.table_state s WHERE pipeline = %s ORDER BY 1"
REGISTERED = "SELECT DISTINCT pipeline FROM _rosetta.table_state ORDER BY 1"
OTHER = "CREATE SCHEMA other; CREATE TABLE other.t (id int PRIMARY KEY); INSERT INTO other.t VALUES (1), (2)"


@contextmanager
def _catalog(pipeline: PipelineHarness) -> Iterator[Session]:
    with operator(pipeline) as engine, session_scope(engine) as session:
        yield session


def _loads(text: str) -> int:
    return text.count('"load.snapshot"')


@pytest.fixture
def refusing(pipeline: PipelineHarness, redis_client: redis.Redis, redis_server: RedisServer) -> PipelineHarness:
    """A pipeline that has copied its table; the change of row 7 waits, as the target refuses it."""
    pipeline.source.execute(WRITTEN)
    fill(pipeline, 3_000)
    pipeline.configure(tables=["public.*"], settings={"dead_letter_retry_seconds": 0})
    pipeline.environment["REDIS_URL"] = redis_server.url
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.targets["target"].execute("ALTER TABLE item ADD CONSTRAINT positive CHECK (v >= 0)")
    pipeline.source.execute("UPDATE item SET v = -7 WHERE id = 7")
    pipeline.wait_caught_up()
    return pipeline


def _take_the_old_names(pipeline: PipelineHarness) -> None:
    """Let a new source and a new pipeline have the names that were given up, and wait until it has copied its table."""
    pipeline.source.execute(OTHER)
    with _catalog(pipeline) as session:
        duplicate_source(session, "sales", "shop")
        change_source(session, "shop", {"tables": ["other.*"]})
        create_pipeline(session, "shop", "shop", ["dwh"], start=True)
        pipeline.pipeline_id = get_pipeline(session, "shop").id
    pipeline.start()
    target = pipeline.targets["target"]
    made, copied = "SELECT to_regclass('other.t') IS NOT NULL", "SELECT count(*) FROM other.t"
    wait_for(lambda: target.execute(made) == [(True,)], 120, "the new pipeline to make its table")
    wait_for(lambda: target.execute(copied) == [(2,)], 120, "the new pipeline to copy its table")


def _remove(pipeline: PipelineHarness, name: str) -> list[str]:
    with _catalog(pipeline) as session:
        change_status(session, name, "PAUSE")
        result = remove_pipeline(session, name)
    assert result.left_over == []
    return result.removed


@pytest.mark.both_engines(slow="debezium")
def test_a_pipeline_that_stands_is_renamed_and_goes_on(refusing: PipelineHarness, redis_client: redis.Redis) -> None:
    """Pipeline, source and destination at once: no second load, and what waited is replayed under the new name."""
    pipeline, source, target = refusing, refusing.source, refusing.targets["target"]
    assert waiting_keys(target) == {("7",)}
    assert pipeline.stop() == 0
    before = target.execute(STATE, ("shop",))
    source.execute("UPDATE item SET note = 'meanwhile' WHERE id < 100; DELETE FROM item WHERE id = 50")
    with _catalog(pipeline) as session:
        assert rename_pipeline(session, "shop", "store")["identity"] == "shop"
        rename_source(session, "shop", "sales")
        rename_destination(session, "target", "dwh")
    pipeline.start()
    pipeline.wait_caught_up()
    assert '"pipeline": "store"' in pipeline.log_text()
    assert _loads(pipeline.log_text()) == 1
    assert target.execute(STATE, ("shop",)) == before
    assert waiting_keys(target) == {("7",)}

    target.execute("ALTER TABLE item DROP CONSTRAINT positive")
    replay(pipeline, "store", destination="dwh")
    assert waiting_keys(target) == set()
    pipeline.assert_equal()
    with operator(pipeline) as engine:
        assert verify_pipeline(engine, Request("store", destinations=["dwh"])).outcome is Outcome.EQUAL

    backfills = Backfills(pipeline, "store")
    target.execute("UPDATE item SET note = 'wrong' WHERE id % 3 = 0; INSERT INTO item VALUES (90000, 0)")
    backfills.wait(backfills.start("public.item", mode="resync"))
    pipeline.assert_equal()
    backfills.wait(backfills.start("public.item", mode="rebuild"))
    with operator(pipeline):
        (confirmed,) = backfills.confirm("public.item")
    assert target.execute("SELECT to_regclass(%s)::text", (confirmed["dropped"],)) == [(None,)]
    pipeline.assert_equal()
    assert _loads(pipeline.log_text()) == 1
    assert pipeline.stop() == 0

    # One that takes the old name keeps its things elsewhere, and takes them with it when it goes.
    before = target.execute(STATE, ("shop",))
    _take_the_old_names(pipeline)
    assert target.execute(REGISTERED) == [("shop",), ("shop-2",)]
    assert pipeline.stop() == 0
    assert target.execute(STATE, ("shop",)) == before
    _remove(pipeline, "shop")
    assert target.execute(REGISTERED) == [("shop",)]
    assert target.execute(STATE, ("shop",)) == before
    assert "pipeline store" in _remove(pipeline, "store")
    for table in ("stream_position", "table_state", "load_chunk", "waiting_key", "table_rebuild"):
        assert target.execute(f"SELECT count(*) FROM _rosetta.{table}") == [(0,)], table
    assert redis_client.keys("*") == []


def _runner(harness: PipelineHarness) -> subprocess.Popen[bytes]:
    with (harness.home / "runner.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "rosetta_dagster.cli.main", "runner", "--health-port", "0"],
            env=harness.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def _logs(harness: PipelineHarness) -> dict[str, str]:
    return {path.name: path.read_text(errors="replace") for path in (harness.home / "logs").glob("pipeline-*.log")}


def _kill_the_pipeline(runner: subprocess.Popen[bytes], harness: PipelineHarness) -> None:
    for child in psutil.Process(runner.pid).children():
        child.kill()
    harness.config.execute("UPDATE runner_leases SET expires_at = clock_timestamp()")


def test_a_running_pipeline_is_renamed_under_load_and_kills(pipeline: PipelineHarness) -> None:
    """The runner starts it anew under its new name, whatever dies meanwhile; nothing is copied again or lost."""
    pipeline.source.execute(WRITTEN)
    fill(pipeline, 3_000)
    pipeline.configure()
    runner = pipeline.process = _runner(pipeline)
    writer = Writer(pipeline, 3, 3_000)
    try:
        pipeline.wait_caught_up(120)
        state = pipeline.targets["target"].execute(STATE, ("shop",))
        writer.start()
        before = "shop"
        for number, name in enumerate(("store", "market", "shop", "depot")):
            with _catalog(pipeline) as session:
                rename_pipeline(session, before, name)
            if number % 2:
                _kill_the_pipeline(runner, pipeline)
            before, position = name, pipeline.position("target")

            def renamed(name: str = name) -> bool:
                return f'"pipeline": "{name}"' in _logs(pipeline).get(f"pipeline-{name}.log", "")

            wait_for(renamed, 120, f"a process that calls itself {name}")
            pipeline.wait_moved(120, beyond=position)
        writer.finish()
        pipeline.wait_caught_up(120)
    finally:
        if writer.is_alive():
            writer.finish()
        runner.terminate()
        runner.wait(60)
    pipeline.assert_equal()
    assert sum(_loads(text) for text in _logs(pipeline).values()) == 1
    assert pipeline.targets["target"].execute(STATE, ("shop",)) == state
    assert pipeline.targets["target"].execute(REGISTERED) == [("shop",)]


def test_a_rename_that_does_not_commit_changes_nothing(pipeline: PipelineHarness) -> None:
    """Whoever dies in the middle of it leaves the old name, and all that is told of it."""
    pipeline.source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    pipeline.configure()
    rows: Any = "SELECT p.name, p.identity, p.generation, (SELECT count(*) FROM notification_log) FROM pipelines p"
    before = pipeline.config.execute(rows)

    class Killed(Exception):
        pass

    with pytest.raises(Killed), _catalog(pipeline) as session:
        rename_pipeline(session, "shop", "store")
        raise Killed
    assert pipeline.config.execute(rows) == before
