from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cdc_runner.catalog.database import session_scope
from cdc_runner.errors import ErrorKind, RosettaError
from rosetta_dagster.resources import runner_process
from rosetta_dagster.resources.catalog import catalog_engine
from rosetta_dagster.resources.runner_heartbeats import RunnerHeartbeat, read_runners
from rosetta_dagster.resources.runner_process import start_runner, stop_runner
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg]

STAND_IN = str(Path(__file__).parents[2] / "support" / "stand_in_runner.py")


def read() -> list[RunnerHeartbeat]:
    with session_scope(catalog_engine()) as session:
        return read_runners(session)


@pytest.fixture
def command(catalog, tmp_path: Path) -> Iterator[list[str]]:
    """The runner with stand-in pipelines; whatever is left of it at the end is killed."""
    # The last word is its working directory, and lets the process be known as a runner.
    directory = tmp_path / "runner"
    directory.mkdir()
    words = [sys.executable, STAND_IN, str(directory)]
    yield words
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] == words:
            process.kill()


def test_runner_outlives_the_process_that_started_it_and_stops_when_asked(command, tmp_path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from rosetta_dagster.resources.catalog import catalog_session\n"
        "from rosetta_dagster.resources.runner_heartbeats import read_runners\n"
        "from rosetta_dagster.resources.runner_process import start_runner\n"
        "def read():\n"
        "    with catalog_session() as session: return read_runners(session)\n"
        "print(start_runner(Path(sys.argv[1]), read, command=sys.argv[2:]).heartbeat.pid)\n"
    )
    started = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), *command], capture_output=True, text=True, timeout=90
    )
    assert started.returncode == 0, started.stderr
    process = psutil.Process(int(started.stdout))
    assert os.getsid(process.pid) == process.pid
    assert (tmp_path / "logs" / "runner.log").exists()
    assert [runner.pid for runner in stop_runner(read)] == [process.pid]
    wait_for(lambda: not process.is_running(), 10, "the runner to end")
    assert read()[0].state == "STOPPED"


def test_two_starts_at_once_start_one_runner(command, tmp_path) -> None:
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(start_runner(tmp_path, read, command=command))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert sorted(result.is_new for result in results) == [False, True]
    assert len({result.heartbeat.pid for result in results}) == 1
    stop_runner(read)


def test_runner_that_ends_at_once_is_a_failure_with_its_last_line(catalog, tmp_path) -> None:
    command = [sys.executable, "-c", "print('REDIS_URL is not set'); raise SystemExit(2)"]
    with pytest.raises(RosettaError, match="exit code 2: REDIS_URL is not set") as caught:
        start_runner(tmp_path, read, command=command)
    assert caught.value.kind is ErrorKind.RUNNER_FAILED
    assert caught.value.detail["log"] == str(tmp_path / "logs" / "runner.log")


def test_runner_that_never_reports_is_ended(catalog, tmp_path) -> None:
    command = [sys.executable, "-c", "import signal; signal.pause()", str(tmp_path)]
    with pytest.raises(RosettaError, match="did not report RUNNING within 1 s"):
        start_runner(tmp_path, read, command=command, timeout_seconds=1)
    wait_for(lambda: not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == command], 10, "it to end")


def test_missing_program_is_named(catalog, tmp_path) -> None:
    with pytest.raises(RosettaError, match="cannot start /nowhere/rosetta: No such file"):
        start_runner(tmp_path, read, command=["/nowhere/rosetta", "runner"])


def test_number_that_belongs_to_another_program_by_now_is_left_alone(catalog) -> None:
    import socket

    from cdc_runner.catalog.leases import report_runner

    bystander = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        with session_scope(catalog_engine()) as session:
            report_runner(session, "here:1:x", "RUNNING", host=socket.gethostname(), pid=bystander.pid)
        stop_runner(read)
        assert bystander.poll() is None
    finally:
        bystander.send_signal(signal.SIGKILL)
        bystander.wait(10)


def test_runner_of_another_host_cannot_be_stopped_from_here(catalog) -> None:
    from cdc_runner.catalog.leases import report_runner

    with session_scope(catalog_engine()) as session:
        report_runner(session, "elsewhere:1:x", "RUNNING", host="elsewhere", pid=os.getpid())
    with pytest.raises(RosettaError, match="on host elsewhere"):
        stop_runner(read)


def test_runner_does_not_get_the_password_of_dagsters_storage() -> None:
    kept = runner_process.runner_environment({"DAGSTER_PG_PASSWORD": "x", "DAGSTER_HOME": "y", "PATH": "z"})
    assert kept == {"PATH": "z"}
