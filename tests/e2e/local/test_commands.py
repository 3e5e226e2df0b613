"""`rosetta up`, `down` and `demo` as a person calls them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rosetta_dagster.embedded import EmbeddedStack
from rosetta_dagster.local.up import LocalRosetta
from tests.support.servers import temporary_home
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.slow]

ROSETTA = str(Path(sys.executable).with_name("rosetta"))


@pytest.fixture(scope="module")
def used_home() -> Iterator[Path]:
    """One home for all tests of this module: databases are made once."""
    home = temporary_home()
    try:
        yield home
    finally:
        EmbeddedStack(home).remove()


@pytest.fixture
def home(used_home: Path) -> Iterator[Path]:
    """A home where nothing runs; it is stopped at the end, whatever the test left running."""
    try:
        yield used_home
    finally:
        LocalRosetta(used_home).stop()


def environment(home: Path) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ROSETTA_", "DAGSTER_", "CONFIG_"))
    }
    return {**kept, "ROSETTA_HOME": str(home)}


def run(home: Path, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROSETTA, *arguments],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def processes_of(home: Path) -> list[str]:
    """Command lines that name the home: servers, runner's pipelines, Dagster."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        command = " ".join(process.info["cmdline"] or [])
        variables = process.info["environ"] or {}
        if process.pid != os.getpid() and (str(home) in command or variables.get("ROSETTA_HOME") == str(home)):
            found.append(command)
    return found


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as response:
        document: dict[str, Any] = json.load(response)
        return document


def test_a_detached_start_outlives_its_command_until_it_is_stopped(home: Path) -> None:
    started = run(home, "up", "--detach", "--no-dagster", "--json")
    assert started.returncode == 0, started.stderr
    addresses = json.loads(started.stdout)
    health = get(addresses["health"])
    assert health["ok"]
    # Every part that runs is found again, not started twice.
    again = json.loads(run(home, "up", "--detach", "--no-dagster", "--json").stdout)
    assert again == addresses
    assert get(again["health"])["pid"] == health["pid"]
    stopped = run(home, "down")
    assert stopped.returncode == 0, stopped.stderr
    assert processes_of(home) == []
    assert run(home, "down").returncode == 0


def test_a_runner_that_was_killed_is_replaced_at_once(home: Path) -> None:
    addresses = json.loads(run(home, "up", "--detach", "--no-dagster", "--json").stdout)
    killed = get(addresses["health"])["pid"]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(killed), 10, "the runner to be gone")
    again = json.loads(run(home, "up", "--detach", "--no-dagster", "--json").stdout)
    assert get(again["health"])["pid"] != killed


def test_an_interrupted_start_stops_everything(home: Path, tmp_path: Path) -> None:
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [ROSETTA, "up", "--no-dagster"],
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    wait_for(lambda: "Ctrl-C" in (tmp_path / "output").read_text(), 90, "everything to run")
    assert processes_of(home)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert processes_of(home) == []


@pytest.mark.dagster
def test_dagster_runs_and_is_stopped(home: Path) -> None:
    started = run(home, "up", "--detach", "--json", timeout=200)
    assert started.returncode == 0, started.stderr
    addresses = json.loads(started.stdout)
    assert get(addresses["dagster"] + "/server_info")["dagster_version"]
    assert run(home, "down").returncode == 0
    assert processes_of(home) == []


@pytest.mark.jvm
@pytest.mark.timeout(420)
def test_the_demo_ends_equal_and_leaves_nothing_running(home: Path) -> None:
    done = run(home, "demo", "--headless", "--seconds", "10", "--rate", "60", "--no-dagster", "--json", timeout=400)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["equal"] is True
    assert report["differences"] == []
    assert report["tables"] == 11
    # Both targets hold the pgbench accounts at least.
    assert report["rows_replicated"] > 200_000
    assert report["lag_samples"] > 0
    assert report["seconds_to_first_row"] > 0
    assert processes_of(home) == []
