"""`kill -9` of the pipeline process, with its JVM if it has one, and of its supervisor, at random moments under load."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.support.pipelines import PipelineHarness
from tests.support.transfers import SETUP, Load, Transfers
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(3600)]


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
    with Transfers(pipeline, 7) as transfers:
        transfers.load.start()
        transfers.watcher.start()
        for number in range(kills):
            before = pipeline.position("target")
            if number % 5 == 1:
                _copy_rows(pipeline, 10_000, number)
            if number % 10 == 3:
                pipeline.source.execute("UPDATE whole SET v = v + 1")
            pipeline.wait_moved(300, beyond=before)
            threading.Event().wait(chance.uniform(0.0, 1.5))
            pipeline.kill()
            pipeline.start()
        transfers.assert_exact(600)


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
    try:
        with Transfers(pipeline, 13) as transfers:
            pipeline.wait_caught_up(120)
            transfers.load.start()
            transfers.watcher.start()
            for number in range(kills):
                pipeline.wait_moved(120)
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
            transfers.assert_exact(180)
    finally:
        runner.terminate()
        runner.wait(60)


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
    load = Load(pipeline, 11, first_id=10_000_000)
    load.start()
    chance = random.Random(5)
    for _ in range(4):
        pipeline.start()
        threading.Event().wait(chance.uniform(1.5, 3.5))
        pipeline.kill()
    pipeline.start()
    load.finish()
    pipeline.wait_caught_up(180)
    pipeline.assert_equal()


@pytest.mark.skipif("ROSETTA_TEST_ENGINE" in os.environ, reason="it is about both engines")
def test_engines_can_take_turns(pipeline: PipelineHarness) -> None:
    """Each goes on where the other was killed or stopped, in the middle of a load: they share positions and the slot."""
    chance = random.Random(77)
    pipeline.source.execute(SETUP)
    pipeline.configure()
    with Transfers(pipeline, 13) as transfers:
        for turn, engine in enumerate(("pgoutput", "debezium", "pgoutput", "pgoutput", "debezium", "pgoutput")):
            pipeline.config.execute("UPDATE sources SET capture_engine = %s", (engine,))
            pipeline.start()
            if turn == 0:
                pipeline.wait_caught_up(120)
                transfers.load.start()
                transfers.watcher.start()
            pipeline.wait_moved(120)
            _copy_rows(pipeline, 5_000, turn)
            threading.Event().wait(chance.uniform(0.0, 1.0))
            assert has_jvm(pipeline) == (engine == "debezium")
            if turn == 2:
                assert pipeline.stop() == 0
            elif turn < 5:
                pipeline.kill()
        transfers.assert_exact(120)


def has_jvm(harness: PipelineHarness) -> bool:
    """Tell whether the pipeline process has loaded a Java virtual machine."""
    assert harness.process is not None
    return "libjvm" in Path(f"/proc/{harness.process.pid}/maps").read_text()
