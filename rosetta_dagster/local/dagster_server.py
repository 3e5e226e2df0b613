"""Dagster's processes: code location, daemon and webserver, started together and stopped together.

Nothing here imports Dagster. `home/dagster` is DAGSTER_HOME; `server.json` in it says which process group is ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

import rosetta_dagster
from cdc_runner.errors import ErrorKind, RosettaError
from rosetta_dagster.embedded.waiting import until
from rosetta_dagster.resources.webserver import URL_VARIABLE

DEFAULT_PORT = 3000
READY_SECONDS = 120.0
STOP_SECONDS = 25.0
_FILES = ("definitions.py", "workspace.yaml", "dagster.yaml")
POLL_MILLISECONDS = 5000
"""Between two questions of an open page for what is new. At Dagster's 2,000 a page that shows twenty assets keeps a
fifth of a core busy, and nothing is told of an asset more than once a minute."""
_LOG_LIMIT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A started process group; the time tells it from a later process of the same number."""

    pid: int
    created_at: float
    port: int


class DagsterServer:
    """Dagster of one home.

    Args:
        home: ROSETTA_HOME.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.directory = home / "dagster"
        self.log = home / "logs" / "dagster.log"
        self._child: subprocess.Popen[bytes] | None = None

    @staticmethod
    def project() -> Path | None:
        """Return the directory of Dagster's files; None when this installation has none (a wheel alone)."""
        root = Path(rosetta_dagster.__file__).resolve().parent.parent
        return root if all((root / name).is_file() for name in _FILES) else None

    def url(self) -> str | None:
        """Return the address of the running webserver; None when it does not run."""
        recorded = self._recorded()
        return None if recorded is None else f"http://127.0.0.1:{recorded.port}"

    def start(self, port: int, environment: Mapping[str, str]) -> str:
        """Start Dagster on a loopback port unless it runs, and return its address; does not wait until it answers.

        Raises:
            RosettaError: the installation has no definitions, or the program cannot be started.
        """
        running = self.url()
        if running is not None:
            return running
        project = self.project()
        if project is None:
            raise RosettaError(ErrorKind.NOT_FOUND, "this installation has no definitions.py beside its packages")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # A copy: Dagster wants the file in its home, and the home is not the checkout.
        shutil.copyfile(project / "dagster.yaml", self.directory / "dagster.yaml")
        url = f"http://127.0.0.1:{port}"
        self._child = self._spawn(
            project, port, {**environment, "DAGSTER_HOME": str(self.directory), URL_VARIABLE: url}
        )
        created_at = psutil.Process(self._child.pid).create_time()
        (self.directory / "server.json").write_text(json.dumps(asdict(_Recorded(self._child.pid, created_at, port))))
        return url

    def wait_ready(self, interrupted: threading.Event, timeout_seconds: float = READY_SECONDS) -> None:
        """Wait until the webserver answers, or somebody interrupts.

        Raises:
            RosettaError: it ended, or did not answer in time; the message names the log.
        """

        def over() -> bool:
            return interrupted.is_set() or self.url() is None or self._answers()

        until(over, timeout_seconds=timeout_seconds, interval_seconds=0.25)
        if not interrupted.is_set() and not self._answers():
            state = "ended" if self.url() is None else f"does not answer after {timeout_seconds:.0f} s"
            raise RosettaError(ErrorKind.INTERNAL, f"Dagster {state}; see {self.log}", {"log": str(self.log)})

    def stop(self) -> None:
        """Stop every process of Dagster; nothing when none runs."""
        recorded = self._recorded()
        if recorded is None:
            return
        members = _group(recorded.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(recorded.pid, signal.SIGTERM)
        if not until(lambda: not any(map(_lives, members)), timeout_seconds=STOP_SECONDS):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(recorded.pid, signal.SIGKILL)
        if self._child is not None:
            self._child.wait(5)
        (self.directory / "server.json").unlink(missing_ok=True)

    def _spawn(self, project: Path, port: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        workspace = str(project / "workspace.yaml")
        command = [sys.executable, "-m", "dagster", "dev", "-w", workspace, "-h", "127.0.0.1", "-p", str(port)]
        command += ["--live-data-poll-rate", str(POLL_MILLISECONDS)]
        with self.log.open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=project,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C on the terminal is for us: we stop it in its turn.
                start_new_session=True,
                env=dict(environment),
            )

    def _recorded(self) -> _Recorded | None:
        """Return the recorded process when it lives."""
        try:
            recorded = _Recorded(**json.loads((self.directory / "server.json").read_text()))
            process = psutil.Process(recorded.pid)
            same = abs(process.create_time() - recorded.created_at) < 1.0
        except (OSError, ValueError, TypeError, psutil.Error):
            return None
        return recorded if same and _lives(process) else None

    def _answers(self) -> bool:
        url = self.url()
        if url is None:
            return False
        try:
            # A proxy of the environment is for the world outside.
            return httpx.get(f"{url}/server_info", timeout=3.0, trust_env=False).is_success
        except httpx.HTTPError:
            return False


def _group(leader: int) -> list[psutil.Process]:
    """Return the processes of a process group."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == leader:
                found.append(process)
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
