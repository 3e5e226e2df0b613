from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from cdc_runner.catalog.database import open_catalog
from tests.support import stand_in_runner
from tests.support.servers import Database
from tests.support.waiting import wait_for

pytestmark = pytest.mark.pg

PASSWORD = "00000000.AAAA"


class Stage:
    """A config database, a directory of stand-ins, and runners."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self.directory = directory
        self.runners: list[subprocess.Popen[bytes]] = []

    def add(self, name: str, mode: str = "run", status: str = "START") -> int:
        """Add a pipeline with a source of its own and return its id."""
        ((source,),) = self.database.execute(
            "INSERT INTO sources (name, host, database_name, username, password, publication_name, slot_name,"
            " table_patterns) VALUES (%s, 'h', 'd', 'u', %s, 'p', %s, '{public.*}') RETURNING id",
            (name, PASSWORD, name),
        )
        ((identifier,),) = self.database.execute("SELECT nextval(pg_get_serial_sequence('pipelines', 'id'))")
        self.mode(identifier, mode)
        self.database.execute(
            "INSERT INTO pipelines (id, name, source_id, status) VALUES (%s, %s, %s, %s)",
            (identifier, name, source, status),
        )
        return int(identifier)

    def mode(self, pipeline: int, mode: str) -> None:
        (self.directory / f"{pipeline}.mode").write_text(mode)

    def events(self, pipeline: int) -> list[str]:
        path = self.directory / f"{pipeline}.events"
        return path.read_text().splitlines() if path.exists() else []

    def starts(self, pipeline: int) -> list[int]:
        """Process ids of the starts so far."""
        return [int(line.split()[1]) for line in self.events(pipeline) if line.startswith("start")]

    def wait_started(self, pipeline: int, times: int = 1, timeout: float = 20.0) -> int:
        """Wait for so many starts and return the last process id."""
        wait_for(lambda: len(self.starts(pipeline)) >= times, timeout, f"{times} starts of pipeline {pipeline}")
        return self.starts(pipeline)[-1]

    def runner(self) -> subprocess.Popen[bytes]:
        """Start a runner as a process of its own."""
        environment = {
            **os.environ,
            "CONFIG_DATABASE_URL": self.database.url(),
            "ROSETTA_HOME": str(self.directory / "home"),
            "PYTHONPATH": os.getcwd(),
        }
        log = (self.directory / f"runner-{len(self.runners)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, stand_in_runner.__file__, str(self.directory)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.runners.append(process)
        return process

    def health(self, process: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any]]:
        def port() -> int:
            found = self.database.execute("SELECT health_port FROM runner_heartbeats WHERE pid = %s", (process.pid,))
            return int(found[0][0]) if found and found[0][0] else 0

        url = f"http://127.0.0.1:{wait_for(port, 20, 'the health port')}/health"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def metadata(self, pipeline: int) -> tuple[str, str] | None:
        rows = self.database.execute(
            "SELECT status, last_error FROM pipeline_metadata WHERE pipeline_id = %s", (pipeline,)
        )
        return rows[0] if rows else None

    def log(self, number: int = 0) -> str:
        return (self.directory / f"runner-{number}.log").read_text()

    def close(self) -> None:
        for process in self.runners:
            if process.poll() is None:
                process.kill()
                process.wait(10)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pid: int) -> bool:
    return not alive(pid)


@pytest.fixture
def stage(config_database: Database, tmp_path: Path) -> Iterator[Stage]:
    open_catalog(config_database.url()).dispose()
    stage = Stage(config_database, tmp_path)
    try:
        yield stage
    finally:
        stage.close()


def test_a_wanted_pipeline_runs_and_an_unwanted_one_does_not(stage: Stage) -> None:
    wanted, unwanted = stage.add("wanted"), stage.add("unwanted", status="PAUSE")
    runner = stage.runner()
    pid = stage.wait_started(wanted)
    # A change is followed at once, not at the next look.
    stage.database.execute("UPDATE pipelines SET status = 'START' WHERE id = %s", (unwanted,))
    stage.wait_started(unwanted, timeout=3)
    stage.database.execute("UPDATE pipelines SET status = 'PAUSE' WHERE id = %s", (wanted,))
    wait_for(lambda: not alive(pid), 3, "the paused pipeline to stop")
    stage.database.execute("DELETE FROM pipelines WHERE id = %s", (unwanted,))
    wait_for(lambda: not alive(stage.starts(unwanted)[-1]), 3, "the removed pipeline to stop")
    assert stage.events(wanted)[-1] == "stopped"
    assert runner.poll() is None


def test_a_changed_configuration_restarts_the_process(stage: Stage) -> None:
    pipeline = stage.add("changed")
    stage.runner()
    first = stage.wait_started(pipeline)
    stage.database.execute('UPDATE pipelines SET settings = \'{"a": "1"}\' WHERE id = %s', (pipeline,))
    second = stage.wait_started(pipeline, 2, timeout=5)
    assert first != second
    assert not alive(first)
    assert stage.events(pipeline)[1] == "stopped"


def test_a_refresh_asked_for_restarts_the_process_once(stage: Stage) -> None:
    pipeline = stage.add("refreshed")
    stage.runner()
    stage.wait_started(pipeline)
    stage.database.execute(
        "UPDATE pipelines SET status = 'REFRESH', last_refresh_at = now() WHERE id = %s", (pipeline,)
    )
    stage.wait_started(pipeline, 2, timeout=5)
    # What the engine does when the refresh is under way; it is no reason to start again.
    stage.database.execute("UPDATE pipelines SET status = 'START' WHERE id = %s", (pipeline,))
    marker = stage.add("marker")
    stage.wait_started(marker, timeout=5)
    assert len(stage.starts(pipeline)) == 2


def test_a_crash_is_recorded_and_followed_by_a_restart_with_backoff(stage: Stage) -> None:
    pipeline = stage.add("crashing", mode="raise")
    runner = stage.runner()
    stage.wait_started(pipeline)
    metadata = wait_for(lambda: stage.metadata(pipeline), 10, "the error to be recorded")
    assert metadata == ("ERROR", "the pipeline process ended unexpectedly (exit code 1, LookupError)")
    stage.wait_started(pipeline, 3)
    status, document = stage.health(runner)
    assert status == 503
    assert document["pipelines"][0]["restarts"] >= 2
    stage.mode(pipeline, "run")
    known = len(stage.starts(pipeline))
    pid = stage.wait_started(pipeline, known + 1)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "signal SIGKILL" in (stage.metadata(pipeline) or ("", ""))[1], 10, "the signal to be recorded")
    assert "4711" not in stage.log()


def test_a_process_that_asks_to_be_tried_again_is_not_reported_as_crashed(stage: Stage) -> None:
    pipeline = stage.add("retrying", mode="exit 75")
    stage.runner()
    stage.wait_started(pipeline, 3)
    assert stage.metadata(pipeline) is None


def test_a_process_that_needs_a_person_waits_for_a_change(stage: Stage) -> None:
    pipeline = stage.add("broken", mode="exit 78")
    runner = stage.runner()
    stage.wait_started(pipeline)
    wait_for(lambda: stage.health(runner)[1]["pipelines"][0]["process"] == "blocked", 10, "the pipeline to be blocked")
    assert stage.health(runner)[0] == 503
    other = stage.add("other", mode="exit 75")
    stage.wait_started(other, 3)  # 1 s and 2 s of back-off have passed
    assert len(stage.starts(pipeline)) == 1
    stage.mode(pipeline, "run")
    stage.database.execute("UPDATE pipelines SET generation = generation + 1 WHERE id = %s", (pipeline,))
    stage.wait_started(pipeline, 2, timeout=5)


def test_a_java_heap_that_is_too_small_is_named_and_waits_for_a_change(stage: Stage) -> None:
    """It was started again and again, with nothing but an exit code to tell."""
    pipeline = stage.add("large", mode="heap")
    runner = stage.runner()
    wait_for(lambda: stage.health(runner)[1]["pipelines"][0]["process"] == "blocked", 60, "the pipeline to be blocked")
    assert len(stage.starts(pipeline)) == 3
    wait_for(lambda: "not started again" in (stage.metadata(pipeline) or ("", ""))[1], 20, "the reason")
    state, reason = stage.metadata(pipeline) or ("", "")
    assert state == "ERROR"
    assert "192 MB" in reason
    assert "jvm_heap_megabytes to 384" in reason
    stage.mode(pipeline, "run")
    stage.database.execute("UPDATE pipelines SET generation = generation + 1 WHERE id = %s", (pipeline,))
    stage.wait_started(pipeline, 4)


def test_a_killed_supervisor_leaves_no_process_behind(stage: Stage) -> None:
    pipelines = [stage.add("one"), stage.add("two", mode="deaf")]
    runner = stage.runner()
    pids = [stage.wait_started(pipeline) for pipeline in pipelines]
    runner.kill()
    runner.wait(10)
    for pid in pids:
        wait_for(partial(gone, pid), 10, "the pipeline to see the end of its input")
    assert all("eof" in stage.events(pipeline) for pipeline in pipelines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_supervisor_stops_its_pipelines_first(stage: Stage, number: signal.Signals) -> None:
    pipelines = [stage.add("one"), stage.add("two")]
    runner = stage.runner()
    pids = [stage.wait_started(pipeline) for pipeline in pipelines]
    runner.send_signal(number)
    assert runner.wait(10) == 0
    assert not any(alive(pid) for pid in pids)
    assert all(stage.events(pipeline)[-1] == "stopped" for pipeline in pipelines)
    assert stage.database.execute("SELECT state FROM runner_heartbeats") == [("STOPPED",)]


def test_a_second_signal_kills_what_does_not_stop(stage: Stage) -> None:
    pipeline = stage.add("deaf", mode="deaf")
    runner = stage.runner()
    pid = stage.wait_started(pipeline)
    stage.database.execute(
        "INSERT INTO runner_leases (pipeline_id, holder, expires_at) SELECT %s, runner_id, now() + interval '1 hour'"
        " FROM runner_heartbeats",
        (pipeline,),
    )
    runner.send_signal(signal.SIGTERM)
    wait_for(lambda: stage.database.execute("SELECT state FROM runner_heartbeats") == [("DRAINING",)], 10, "draining")
    assert alive(pid)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(10) == 0
    assert not alive(pid)
    # The killed process could not give its lease back.
    assert stage.database.execute("SELECT holder FROM runner_leases") == [(None,)]


def test_a_pipeline_whose_lease_another_runner_holds_is_left_alone(stage: Stage) -> None:
    pipeline = stage.add("held")
    stage.database.execute(
        "INSERT INTO runner_leases (pipeline_id, holder, expires_at) VALUES (%s, 'other', now() + interval '1 hour')",
        (pipeline,),
    )
    runner = stage.runner()
    marker = stage.add("marker")
    stage.wait_started(marker)
    states = {each["pipeline"]: each["process"] for each in stage.health(runner)[1]["pipelines"]}
    assert states["held"] == "held_elsewhere"
    assert stage.starts(pipeline) == []
    stage.database.execute("UPDATE runner_leases SET holder = NULL, expires_at = now()")
    stage.wait_started(pipeline, timeout=10)


def test_two_runners_and_a_lease_held_exit_make_no_noise(stage: Stage) -> None:
    pipeline = stage.add("contended", mode="exit 73")
    stage.runner()
    stage.wait_started(pipeline, 3, timeout=30)
    assert stage.log().count("lease_held") == 1
    assert stage.metadata(pipeline) is None


def test_health_tells_positions_and_errors(stage: Stage) -> None:
    pipeline = stage.add("healthy")
    stage.database.execute("INSERT INTO pipeline_metadata (pipeline_id, status) VALUES (%s, 'RUNNING')", (pipeline,))
    stage.database.execute(
        "WITH d AS (INSERT INTO destinations (name, type, config) VALUES ('target', 'postgres',"
        """ '{"host":"h","port":1,"database":"d","username":"u"}') RETURNING id),"""
        " pd AS (INSERT INTO pipeline_destinations (pipeline_id, destination_id) SELECT %s, id FROM d RETURNING *)"
        " INSERT INTO stream_offsets (pipeline_destination_id, pipeline_id, captured_lsn, applied_lsn,"
        " acknowledged_lsn, lag_bytes, lag_ms) SELECT id, pipeline_id, 3, 2, 1, 7, 8 FROM pd",
        (pipeline,),
    )
    runner = stage.runner()
    stage.wait_started(pipeline)

    def well() -> dict[str, Any] | None:
        status, document = stage.health(runner)
        return document if status == 200 else None

    document = wait_for(well, 10, "health to be well") or {}
    (told,) = document["pipelines"]
    assert told["pid"] == stage.starts(pipeline)[-1]
    assert (
        told["destinations"][0] | {"destination": "target", "captured_position": "0/3", "applied_position": "0/2"}
        == (told["destinations"][0])
    )
    stage.database.execute("UPDATE pipeline_metadata SET status = 'ERROR', last_error = 'no such slot'")
    wait_for(lambda: stage.health(runner)[0] == 503, 10, "the error to be told")
    assert stage.health(runner)[1]["pipelines"][0]["last_error"] == "no such slot"


def test_an_outage_of_the_config_database_stops_nothing(stage: Stage, tcp_proxy: Any) -> None:
    pipeline = stage.add("steady")
    server = stage.database.server
    proxy = tcp_proxy(server.host, server.port)
    url = stage.database.url().replace(f":{server.port}/", f":{proxy.port}/")
    through_proxy = Stage(stage.database, stage.directory)
    through_proxy.database = _At(stage.database, url)  # type: ignore[assignment]
    try:
        runner = through_proxy.runner()
        pid = stage.wait_started(pipeline)
        proxy.refuse()
        proxy.reset()
        wait_for(lambda: "config_database.unreachable" in through_proxy.log(), 15, "the outage to be seen")
        os.kill(pid, signal.SIGKILL)
        # A crash during the outage is answered all the same.
        stage.wait_started(pipeline, 2, timeout=10)
        assert stage.health(runner)[1]["config_database"]["reachable"] is False
        proxy.heal()
        wait_for(lambda: stage.metadata(pipeline), 20, "the crash to be recorded after the outage")
        assert runner.poll() is None
        assert through_proxy.log().count("config_database.unreachable") == 1
    finally:
        through_proxy.close()


class _At:
    """A database under another URL."""

    def __init__(self, database: Database, url: str) -> None:
        self._url = url
        self.execute = database.execute

    def url(self) -> str:
        return self._url
