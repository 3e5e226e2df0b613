"""`kill -9` of the pipeline process, with its JVM if it has one, and of its supervisor, at random moments under load."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import psutil
import psycopg2
import pytest

from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(3600)]

SETUP = """
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, note text);
INSERT INTO account SELECT i, 1000, repeat('n', 50) FROM generate_series(1, 200) i;
CREATE TABLE entry (at int, line text);
ALTER TABLE entry REPLICA IDENTITY FULL;
INSERT INTO entry SELECT i % 5, 'same' FROM generate_series(1, 50) i;
CREATE TABLE bulk (id bigint PRIMARY KEY, v text);
"""


class Load(threading.Thread):
    """A mixed workload: transfers whose sum never changes, equal rows without a key, bulk statements now and then."""

    def __init__(self, harness: PipelineHarness, seed: int) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.transactions = 0
        self._harness = harness
        self._random = random.Random(seed)
        self._next = 0

    def run(self) -> None:
        with closing(self._harness.source.connect()) as connection:
            connection.autocommit = False
            while not self.stopping.is_set():
                with connection, connection.cursor() as cursor:
                    self._one(cursor)
                self.transactions += 1
                self.stopping.wait(0.004)

    def _one(self, cursor: psycopg2.extensions.cursor) -> None:
        draw = self._random.random()
        if draw < 0.7:
            first, second = self._random.sample(range(1, 201), 2)
            amount = self._random.randint(1, 50)
            cursor.execute("UPDATE account SET balance = balance - %s WHERE id = %s", (amount, first))
            cursor.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (amount, second))
            cursor.execute("INSERT INTO entry VALUES (%s, 'same')", (self._random.randint(0, 4),))
        elif draw < 0.8:
            cursor.execute("DELETE FROM entry WHERE ctid = (SELECT ctid FROM entry WHERE at = %s LIMIT 1)", (1,))
        elif draw < 0.9:
            old, new = self._random.randint(1, 200), self._random.randint(1, 200)
            cursor.execute("SELECT balance FROM account WHERE id IN (%s, %s) FOR UPDATE", (old, new))
            # Two accounts change their numbers.
            cursor.execute("UPDATE account SET id = -id WHERE id IN (%s, %s)", (old, new))
            if old != new:
                cursor.execute("UPDATE account SET id = CASE id WHEN %s THEN %s ELSE %s END WHERE id IN (%s, %s)",
                               (-old, new, old, -old, -new))  # fmt: skip
            else:
                cursor.execute("UPDATE account SET id = -id WHERE id = %s", (-old,))
        elif draw < 0.97:
            size = self._random.choice((10, 100, 500))
            cursor.execute(
                "INSERT INTO bulk SELECT i, 'v' FROM generate_series(%s, %s) i", (self._next, self._next + size - 1)
            )
            self._next += size
        elif draw < 0.99:
            # The last statements' rows: an update of everything would outrun any follower.
            cursor.execute("UPDATE bulk SET v = v || '.' WHERE id BETWEEN %s AND %s", (self._next - 3000, self._next))
        else:
            cursor.execute("DELETE FROM bulk WHERE id %% 7 = 1 AND id < %s", (self._next,))


class Watcher(threading.Thread):
    """Reads the sum of the balances at the target all the time: it must be that of the source at every moment."""

    def __init__(self, harness: PipelineHarness, total: int) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.wrong: list[object] = []
        self.reads = 0
        self._harness = harness
        self._total = total

    def run(self) -> None:
        with closing(self._harness.targets["target"].connect()) as connection, connection.cursor() as cursor:
            while not self.stopping.wait(0.005):
                cursor.execute("SELECT sum(balance), count(*) FROM account")
                row = cursor.fetchone()
                self.reads += 1
                if row != (self._total, 200):
                    self.wrong.append(row)


@pytest.mark.both_engines
@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)], ids=["five-kills", "thirty-kills"])
def test_kills_at_random_moments_lose_and_repeat_nothing(pipeline: PipelineHarness, kills: int) -> None:
    """The process dies again and again, also within a COPY of 10,000 rows and an update of a large table."""
    chance = random.Random(20260 + kills)
    pipeline.source.execute(SETUP)
    # The long version has a table of a million rows, the short one of fewer: it is updated whole, in one transaction.
    rows = 1_000_000 if kills > 10 else 50_000
    pipeline.source.execute("CREATE TABLE whole (id int PRIMARY KEY, v int)")
    pipeline.source.execute("INSERT INTO whole SELECT i, 0 FROM generate_series(1, %s) i", (rows,))
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(180)
    load, watcher = Load(pipeline, 7), Watcher(pipeline, 200 * 1000)
    load.start()
    watcher.start()
    try:
        for number in range(kills):
            before = pipeline.position("target")
            if number % 5 == 1:
                _copy_rows(pipeline, 10_000, number)
            if number % 10 == 3:
                pipeline.source.execute("UPDATE whole SET v = v + 1")
            wait_for(lambda before=before: pipeline.position("target") > before, 300, "the stream to move")  # type: ignore[misc]
            threading.Event().wait(chance.uniform(0.0, 1.5))
            pipeline.kill()
            pipeline.start()
        load.stopping.set()
        load.join(30)
        pipeline.wait_caught_up(600)
    finally:
        load.stopping.set()
        watcher.stopping.set()
    watcher.join(10)
    pipeline.assert_equal()
    assert watcher.reads > 100
    assert not watcher.wrong, f"{len(watcher.wrong)} of {watcher.reads} reads saw a sum that the source never had"


def _runner(harness: PipelineHarness) -> subprocess.Popen[bytes]:
    with (harness.home / "runner.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "rosetta_dagster.cli.main", "runner", "--health-port", "0"],
            env=harness.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _pipeline_process(runner: subprocess.Popen[bytes]) -> psutil.Process | None:
    try:
        found = psutil.Process(runner.pid).children()
        return next((child for child in found if "cdc_runner.pipeline" in child.cmdline()), None)
    except psutil.NoSuchProcess:
        return None


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)], ids=["four-kills", "twenty-kills"])
def test_kills_of_the_supervisor_lose_and_repeat_nothing(pipeline: PipelineHarness, kills: int) -> None:
    """The supervisor, its pipeline, or both die; the next supervisor goes on with what is there."""
    chance = random.Random(31 + kills)
    pipeline.source.execute(SETUP)
    pipeline.configure()
    runner = pipeline.process = _runner(pipeline)
    load, watcher = Load(pipeline, 13), Watcher(pipeline, 200 * 1000)
    try:
        pipeline.wait_caught_up(120)
        load.start()
        watcher.start()
        for number in range(kills):
            before = pipeline.position("target")
            wait_for(lambda before=before: pipeline.position("target") > before, 120, "the stream to move")  # type: ignore[misc]
            child = wait_for(lambda: _pipeline_process(runner), 60, "the pipeline process")  # noqa: B023
            assert child is not None
            threading.Event().wait(chance.uniform(0.0, 1.0))
            victim = ("supervisor", "pipeline", "both")[number % 3]
            if victim != "pipeline":
                runner.kill()
                runner.wait(10)
            if victim != "supervisor":
                child.kill()
            # The lease of a killed process ends by time; a test need not wait for that. A pipeline whose supervisor
            # has died may still write, and is fenced off.
            pipeline.config.execute("UPDATE runner_leases SET expires_at = clock_timestamp()")
            if victim != "pipeline":
                runner = pipeline.process = _runner(pipeline)
        load.stopping.set()
        load.join(30)
        pipeline.wait_caught_up(180)
    finally:
        load.stopping.set()
        watcher.stopping.set()
        runner.terminate()
        runner.wait(60)
    watcher.join(10)
    pipeline.assert_equal()
    assert watcher.reads > 100
    assert not watcher.wrong, f"{len(watcher.wrong)} of {watcher.reads} reads saw a sum that the source never had"


def _copy_rows(harness: PipelineHarness, rows: int, number: int) -> None:
    base = 1_000_000 * (number + 1)
    harness.source.execute(
        "INSERT INTO bulk SELECT i, 'copied' FROM generate_series(%s, %s) i", (base, base + rows - 1)
    )


def test_kills_during_the_initial_load_resume_by_chunk(pipeline: PipelineHarness) -> None:
    """Chunks that are in stay in; a table without a key starts again; changes meanwhile are neither lost nor doubled."""
    source = pipeline.source
    source.execute(SETUP)
    source.execute("INSERT INTO bulk SELECT i, repeat('b', 400) FROM generate_series(1, 60000) i")
    source.execute("INSERT INTO entry SELECT i % 7, repeat('e', 200) FROM generate_series(1, 30000) i")
    pipeline.configure(settings={"load_chunk_bytes": 1 << 20, "load_workers": 2})
    load = Load(pipeline, 11)
    load._next = 10_000_000
    load.start()
    chance = random.Random(5)
    for _ in range(4):
        pipeline.start()
        threading.Event().wait(chance.uniform(1.5, 3.5))
        pipeline.kill()
    pipeline.start()
    load.stopping.set()
    load.join(30)
    pipeline.wait_caught_up(180)
    pipeline.assert_equal()


@pytest.mark.skipif("ROSETTA_TEST_ENGINE" in os.environ, reason="it is about both engines")
def test_engines_can_take_turns(pipeline: PipelineHarness) -> None:
    """Each goes on where the other was killed or stopped, in the middle of a load: they share positions and the slot."""
    chance = random.Random(77)
    pipeline.source.execute(SETUP)
    pipeline.configure()
    load, watcher = Load(pipeline, 13), Watcher(pipeline, 200 * 1000)
    try:
        for turn, engine in enumerate(("pgoutput", "debezium", "pgoutput", "pgoutput", "debezium", "pgoutput")):
            pipeline.config.execute("UPDATE sources SET capture_engine = %s", (engine,))
            pipeline.start()
            if turn == 0:
                pipeline.wait_caught_up(120)
                load.start()
                watcher.start()
            before = pipeline.position("target")
            wait_for(lambda before=before: pipeline.position("target") > before, 120, "the stream to move")  # type: ignore[misc]
            _copy_rows(pipeline, 5_000, turn)
            threading.Event().wait(chance.uniform(0.0, 1.0))
            assert has_jvm(pipeline) == (engine == "debezium")
            if turn == 2:
                assert pipeline.stop() == 0
            elif turn < 5:
                pipeline.kill()
        load.stopping.set()
        load.join(30)
        pipeline.wait_caught_up(120)
    finally:
        load.stopping.set()
        watcher.stopping.set()
    watcher.join(10)
    pipeline.assert_equal()
    assert not watcher.wrong, f"{len(watcher.wrong)} of {watcher.reads} reads saw a sum that the source never had"


def has_jvm(harness: PipelineHarness) -> bool:
    """Tell whether the pipeline process has loaded a Java virtual machine."""
    assert harness.process is not None
    return "libjvm" in Path(f"/proc/{harness.process.pid}/maps").read_text()
