"""`dagster dev` for tests: storage in PostgreSQL, on a free port, with questions asked by GraphQL."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil

from rosetta_dagster.embedded import port as loopback_port
from rosetta_dagster.local.dagster_server import POLL_MILLISECONDS
from tests.support.catalog import KEY
from tests.support.servers import Database
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
_WORKSPACE = """
load_from:
  - python_module:
      module_name: {module}
      working_directory: {root}
      location_name: rosetta
"""


@dataclass(frozen=True)
class DagsterPages:
    """A running Dagster with its config database.

    Attributes:
        url: of the webserver.
        catalog: the config database.
        home: ROSETTA_HOME.
    """

    url: str
    catalog: Database
    home: Path

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the data of a GraphQL answer."""
        answer = httpx.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=30, trust_env=False
        )
        body = answer.raise_for_status().json()
        assert "errors" not in body, body["errors"]
        data: dict[str, Any] = body["data"]
        return data

    def ticks(self, sensor: str) -> list[dict[str, Any]]:
        """Return the newest ticks of a sensor, the newest first."""
        query = """
        query Ticks($selector: SensorSelector!) {
          sensorOrError(sensorSelector: $selector) {
            ... on Sensor { sensorState { ticks(limit: 100) { status timestamp skipReason runIds } } }
          }
        }
        """
        found = self.ask(query, selector={**_SELECTOR, "sensorName": sensor})["sensorOrError"]
        ticks: list[dict[str, Any]] = found["sensorState"]["ticks"] if "sensorState" in found else []
        return ticks

    def schedule_ticks(self, schedule: str) -> list[dict[str, Any]]:
        """Return the newest ticks of a schedule, the newest first."""
        query = """
        query Ticks($selector: ScheduleSelector!) {
          scheduleOrError(scheduleSelector: $selector) {
            ... on Schedule { scheduleState { ticks(limit: 100) { status timestamp skipReason runIds } } }
          }
        }
        """
        found = self.ask(query, selector={**_SELECTOR, "scheduleName": schedule})["scheduleOrError"]
        ticks: list[dict[str, Any]] = found["scheduleState"]["ticks"]
        return ticks

    def launch(self, job: str, config: dict[str, Any] | None = None, partition: str | None = None) -> str:
        """Launch a job as the launchpad does, and return the id of its run."""
        query = """
        mutation Launch($parameters: ExecutionParams!) {
          launchRun(executionParams: $parameters) {
            __typename
            ... on LaunchRunSuccess { run { runId } }
            ... on PythonError { message }
            ... on RunConfigValidationInvalid { errors { message } }
          }
        }
        """
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        parameters = {
            "selector": {**_SELECTOR, "pipelineName": job},
            "runConfigData": config or {},
            "executionMetadata": {"tags": tags},
        }
        result = self.ask(query, parameters=parameters)["launchRun"]
        assert result["__typename"] == "LaunchRunSuccess", result
        return str(result["run"]["runId"])

    def wait_for_run(self, run_id: str, timeout: float = 180) -> str:
        """Wait until a run has ended, and return its status."""
        query = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"

        def ended() -> str | None:
            status = str(self.ask(query, id=run_id)["runOrError"]["status"])
            return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

        return wait_for(ended, timeout, f"run {run_id} to end") or ""

    def assets(self) -> dict[str, float | None]:
        """Return the assets with the time (seconds since 1970) of their newest materialization."""
        query = "{ assetNodes { assetKey { path } assetMaterializations(limit: 1) { timestamp } } }"
        return {
            "/".join(node["assetKey"]["path"]): (
                float(node["assetMaterializations"][0]["timestamp"]) / 1000 if node["assetMaterializations"] else None
            )
            for node in self.ask(query)["assetNodes"]
        }


_SELECTOR = {"repositoryName": "__repository__", "repositoryLocationName": "rosetta"}


def dagster_processes(url: str) -> dict[str, list[psutil.Process]]:
    """Return Dagster's own processes by their part: those below the one with this address's port in its command."""
    port = url.rpartition(":")[2]
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if "dagster" in command and "dev" in command and port in command:
            found: dict[str, list[psutil.Process]] = {}
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.setdefault(_part_of(one), []).append(one)
            return found
    raise AssertionError("Dagster is not there")


def _part_of(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    parts = {"_daemon": "daemon", "webserver": "webserver", "code-server": "code server", "api grpc": "code server"}
    return next((part for word, part in parts.items() if word in command), "other")


@contextlib.contextmanager
def running_pages(
    catalog: Database,
    storage: Database,
    directory: Path,
    variables: Mapping[str, str] = MappingProxyType({}),
    *,
    module: str = "tests.support.dagster_definitions",
    instance: str | None = None,
) -> Iterator[DagsterPages]:
    """Start Dagster with more variables, wait until its daemon has ticked once, and end it afterwards.

    `module` has the definitions; `instance` is the text of another dagster.yaml than the delivered one.
    """
    dagster_home, home = directory / "dagster", directory / "home"
    for path in (dagster_home, home, directory / "runner"):
        path.mkdir(parents=True)
    (dagster_home / "dagster.yaml").write_text(instance or (ROOT / "dagster.yaml").read_text())
    (directory / "workspace.yaml").write_text(_WORKSPACE.format(root=ROOT, module=module))
    port = loopback_port.choose([], set())
    url = f"http://127.0.0.1:{port}"
    pages = DagsterPages(url, catalog, home)
    command = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)]
    command += ["--live-data-poll-rate", str(POLL_MILLISECONDS)]
    with (directory / "dagster.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-w", str(directory / "workspace.yaml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={**_environment(pages, storage, directory), **variables},
            start_new_session=True,
        )
    try:
        wait_for(lambda: _is_up(pages, process, directory / "dagster.log"), 180, "Dagster to tick")
        yield pages
    finally:
        _end(process)


def _environment(pages: DagsterPages, storage: Database, directory: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DAGSTER_HOME": str(directory / "dagster"),
        "DAGSTER_PG_HOST": storage.server.host,
        "DAGSTER_PG_PORT": str(storage.server.port),
        "DAGSTER_PG_USER": storage.server.username,
        "DAGSTER_PG_PASSWORD": storage.server.password,
        "DAGSTER_PG_DB": storage.name,
        "CONFIG_DATABASE_URL": pages.catalog.url(),
        "CREDENTIAL_ENCRYPTION_KEY": KEY,
        "ROSETTA_HOME": str(pages.home),
        "ROSETTA_DAGSTER_URL": pages.url,
        "ROSETTA_TEST_RUNNER": str(directory / "runner"),
        "PYTHONPATH": str(ROOT),
    }


def _is_up(pages: DagsterPages, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"dagster dev ended: {log.read_text()[-3000:]}")
    try:
        return bool(pages.ticks("runner_alive"))
    except httpx.HTTPError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    # Whatever is left of its session, so that a failed test leaves nothing behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
