"""Starts and stops the replication runner as a process of its own. Nothing here knows Dagster.

The process gets its own session and its output goes to a file, so that neither the end of a run nor that of the code
server ends it. What it does is read from its heartbeats in the config database, never from the process table alone.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cdc_runner.errors import ErrorKind, RosettaError
from rosetta_dagster.resources.runner_heartbeats import RunnerHeartbeat

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 45.0
"""The runner stops its pipelines within 30 s; the rest is for the config database."""
_LOG_LIMIT_BYTES = 64 * 1024 * 1024
_LAST_LINE_LIMIT = 400
_POLL_SECONDS = 0.5
_END_SECONDS = 10.0
_BELIEVED_HEARTBEAT_SECONDS = 10.0

ReadRunners = Callable[[], list[RunnerHeartbeat]]


@dataclass(frozen=True, slots=True)
class StartedRunner:
    """What came of a start: the runner that lives now, and whether it is a new one."""

    heartbeat: RunnerHeartbeat
    log: Path | None
    is_new: bool


def runner_command() -> list[str]:
    """Return the command line of the runner, from the same installation as this process."""
    return [str(Path(sys.executable).with_name("rosetta")), "runner"]


def runner_environment(variables: dict[str, str]) -> dict[str, str]:
    """Return the variables for the runner: all but Dagster's own, which hold the password of its storage."""
    return {name: value for name, value in variables.items() if not name.startswith("DAGSTER_")}


def living(runners: Sequence[RunnerHeartbeat]) -> list[RunnerHeartbeat]:
    """Return the runners that live.

    One of this host whose process is gone does not, though its last heartbeat is recent: a killed runner is replaced
    within seconds, not after the time that another host's silence takes.
    """
    return [runner for runner in runners if runner.alive and not _is_gone(runner)]


def _is_gone(runner: RunnerHeartbeat) -> bool:
    # A recent heartbeat is believed even so: two containers may share a host name and not their processes.
    is_local = runner.host == socket.gethostname()
    return is_local and runner.age_seconds > _BELIEVED_HEARTBEAT_SECONDS and not psutil.pid_exists(runner.pid)


def start_runner(
    home: Path,
    read_runners: ReadRunners,
    *,
    command: Sequence[str] | None = None,
    timeout_seconds: float = START_TIMEOUT_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> StartedRunner:
    """Start a runner on this host, unless one lives, and return when it reports RUNNING.

    Two starts at once start one runner: the second waits for the first, then finds it alive.

    Raises:
        RosettaError: the process ended or did not report RUNNING in time; the message has its last line.
    """
    with _start_lock(home):
        alive = living(read_runners())
        if alive:
            return StartedRunner(alive[0], None, is_new=False)
        log = home / "logs" / "runner.log"
        process = _spawn(list(command or runner_command()), home, log)
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            code = process.poll()
            if code is not None:
                raise _start_failure(f"the runner ended at once with exit code {code}", log)
            for runner in read_runners():
                if runner.pid == process.pid and runner.host == socket.gethostname() and runner.state == "RUNNING":
                    # It is meant to outlive this process: without this, Popen warns that it was left running.
                    process.returncode = 0
                    return StartedRunner(runner, log, is_new=True)
            sleep(_POLL_SECONDS)
        # Half-started and unknown to the config database: a second attempt beside it would not be better.
        _end(process)
        raise _start_failure(f"the runner did not report RUNNING within {timeout_seconds:.0f} s", log)


def stop_runner(
    read_runners: ReadRunners,
    *,
    timeout_seconds: float = STOP_TIMEOUT_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> list[RunnerHeartbeat]:
    """Ask every living runner of this host to drain and end; return those that ended.

    Raises:
        RosettaError: a runner lives on another host, or did not end in time.
    """
    alive = living(read_runners())
    elsewhere = [runner for runner in alive if runner.host != socket.gethostname()]
    here = [runner for runner in alive if runner.host == socket.gethostname()]
    processes = [process for runner in here if (process := _process_of(runner)) is not None]
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + timeout_seconds
    while any(_lives(process) for process in processes) and time.monotonic() < deadline:
        sleep(_POLL_SECONDS)
    left = [process.pid for process in processes if _lives(process)]
    if left:
        raise RosettaError(
            ErrorKind.RUNNER_FAILED,
            f"the runner (pid {left[0]}) was asked to stop and did not within {timeout_seconds:.0f} s",
        )
    if elsewhere:
        raise RosettaError(
            ErrorKind.LEASE_HELD,
            f"a runner lives on host {elsewhere[0].host} (pid {elsewhere[0].pid}) and can only be stopped there",
        )
    return here


def _process_of(runner: RunnerHeartbeat) -> psutil.Process | None:
    """Return the runner's process, or None when its number belongs to another program by now."""
    try:
        process = psutil.Process(runner.pid)
        command = process.cmdline()
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        raise RosettaError(
            ErrorKind.RUNNER_FAILED,
            f"the runner (pid {runner.pid}) belongs to another user and cannot be stopped from here",
        ) from None
    return process if any("runner" in word for word in command) else None


def _lives(process: psutil.Process) -> bool:
    try:
        # Started by this very process, it stays as a zombie until it is waited for.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _start_lock(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    with (home / "runner-start.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _spawn(command: list[str], home: Path, log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    environment = {**runner_environment(dict(os.environ)), "ROSETTA_HOME": str(home.resolve())}
    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
    except OSError as error:
        raise RosettaError(ErrorKind.RUNNER_FAILED, f"cannot start {command[0]}: {error.strerror}") from None


def _start_failure(reason: str, log: Path) -> RosettaError:
    last = _last_line(log)
    text = f"{reason}: {last}" if last else reason
    return RosettaError(ErrorKind.RUNNER_FAILED, text, {"log": str(log)})


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:_LAST_LINE_LIMIT] for line in reversed(lines) if line.strip()), "")
