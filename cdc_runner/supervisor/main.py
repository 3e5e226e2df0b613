"""The runner's main process.

    run(health_port)   until SIGTERM or SIGINT; returns the exit code
    Supervisor         the same without signals, for tests

The main thread looks after processes and never waits for the network; one thread follows the config database; requests
for health have their own.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from sqlalchemy import Engine

from cdc_runner.catalog.database import create_catalog_engine
from cdc_runner.catalog.environment import read_environment
from cdc_runner.supervisor.catalog_view import PipelineView, RunnerIdentity
from cdc_runner.supervisor.follow import POLL_SECONDS, CatalogFollower
from cdc_runner.supervisor.health import HealthServer
from cdc_runner.supervisor.reconcile import STOP_GRACE_SECONDS
from cdc_runner.supervisor.worker import CommandOf, ProcessState, Worker, WorkerContext

TICK_SECONDS = 0.25
"""How often processes are looked at; the catalog's changes wake the loop at once."""

_log = structlog.get_logger(__name__)


def pipeline_command(runner_id: str) -> CommandOf:
    """Return the function that gives a pipeline's command line; it holds no secret."""

    def command(pipeline: PipelineView) -> list[str]:
        return [sys.executable, "-m", "cdc_runner.pipeline", str(pipeline.id), "--holder", runner_id]

    return command


def identify() -> RunnerIdentity:
    """Return a new identity for this process."""
    host = socket.gethostname()
    try:
        rosetta_version = version("rosetta-dagster")
    except PackageNotFoundError:
        rosetta_version = "unknown"
    # The random part tells apart two processes that had the same number, in containers mostly.
    return RunnerIdentity(f"{host}:{os.getpid()}:{uuid.uuid4().hex[:8]}", host, os.getpid(), rosetta_version)


class Supervisor:
    """Keeps one process running for each pipeline that the catalog wants.

    Args:
        engine: of the config database.
        home: ROSETTA_HOME; logs go to its `logs` directory.
        health_port: wanted port of the health endpoint; 0 takes any free one.
        command_of: makes a pipeline's command line; tests put their own program here.
        runner: who we are.
        stop_grace_seconds: time between SIGTERM and SIGKILL of a process.
        poll_seconds: longest time between two looks at the catalog.
    """

    def __init__(
        self,
        engine: Engine,
        home: Path,
        *,
        health_port: int,
        command_of: CommandOf | None = None,
        runner: RunnerIdentity | None = None,
        stop_grace_seconds: float = STOP_GRACE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.runner = runner or identify()
        self._stop_grace_seconds = stop_grace_seconds
        self._wake = threading.Event()
        self._stop_requests = 0
        self._draining_since: float | None = None
        self._started_at = time.monotonic()
        self._follower = CatalogFollower(engine, self.runner, self._wake.set, poll_seconds=poll_seconds)
        self._context = WorkerContext(
            self.runner.id, command_of or pipeline_command(self.runner.id), home / "logs", self._follower.report_crash
        )
        # Written by the main thread only; requests for health read a copy.
        self._workers: Mapping[int, Worker] = {}
        self._health = HealthServer(self._health_of, health_port)
        if health_port not in (0, self.health_port):
            _log.warning("health.port_busy", wanted=health_port, taken=self.health_port)

    @property
    def health_port(self) -> int:
        """The port that health is served on."""
        return self._health.port

    def request_stop(self) -> None:
        """Stop everything in order; asked a second time, kill what still runs. Safe in a signal handler."""
        # No lock may be taken here: a signal handler runs in the middle of the main thread's own use of it. The loop
        # looks at the number at its next tick.
        self._stop_requests += 1

    def run(self) -> int:
        """Supervise until a stop is requested and every process has ended; return the exit code."""
        _log.info("runner.started", runner=self.runner.id, health=f"http://127.0.0.1:{self.health_port}/health")
        self._follower.set_state("RUNNING", health_port=self.health_port)
        self._follower.start()
        while not self._finished():
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()
            self._step(time.monotonic())
        fatal = self._follower.fatal
        last_error = None if fatal is None else fatal.message
        self._follower.set_state("STOPPED" if fatal is None else "ERROR", last_error=last_error)
        self._follower.close()
        self._health.close()
        if fatal is not None:
            _log.error("runner.failed", error=fatal.message, solution=fatal.policy.solution)
        _log.info("runner.stopped", runner=self.runner.id)
        return 0 if fatal is None else 1

    def _finished(self) -> bool:
        stopping = self._stop_requests > 0 or self._follower.fatal is not None
        return stopping and all(worker.pid is None for worker in self._workers.values())

    def _step(self, now: float) -> None:
        draining = self._stop_requests > 0 or self._follower.fatal is not None
        if draining and self._draining_since is None:
            self._draining_since = now
            _log.info("runner.stopping", processes=sum(worker.pid is not None for worker in self._workers.values()))
            self._follower.set_state("DRAINING", health_port=self.health_port)
        self._observe()
        grace = 0.0 if self._stop_requests > 1 else self._stop_grace_seconds
        for worker in self._workers.values():
            worker.step(now, draining=draining, stop_grace_seconds=grace)

    def _observe(self) -> None:
        """Hand the latest view of the catalog to the workers, with a worker for each new pipeline."""
        pipelines = self._follower.view.pipelines
        if pipelines is None:
            return
        workers = {key: worker for key, worker in self._workers.items() if not worker.finished}
        for key, pipeline in pipelines.items():
            if key not in workers:
                workers[key] = Worker(pipeline, self._context)
        for key, worker in workers.items():
            worker.observe(pipelines.get(key))
        self._workers = workers

    def _health_of(self) -> tuple[bool, dict[str, Any]]:
        now = time.monotonic()
        view = self._follower.view
        pipelines = [_pipeline_health(worker, now) for worker in self._workers.values()]
        well = (
            view.pipelines is not None
            and self._draining_since is None
            and all(pipeline["ok"] for pipeline in pipelines)
        )
        return well, {
            "ok": well,
            "runner": self.runner.id,
            "host": self.runner.host,
            "pid": self.runner.pid,
            "version": self.runner.version,
            "state": "DRAINING" if self._draining_since is not None else "RUNNING",
            "uptime_seconds": round(now - self._started_at, 1),
            "config_database": {
                "reachable": view.reachable,
                "error": view.error,
                "observed_at": None if view.observed_at is None else view.observed_at.isoformat(),
            },
            "pipelines": pipelines,
            "at": datetime.now(UTC).isoformat(),
        }


def _pipeline_health(worker: Worker, now: float) -> dict[str, Any]:
    pipeline, state = worker.pipeline, worker.state(now)
    runs_here = state is ProcessState.RUNNING
    # Held by another runner is well too: that one answers for the pipeline, and its report is in the config database.
    runs = (runs_here or state is ProcessState.HELD_ELSEWHERE) and pipeline.state != "ERROR"
    return {
        "pipeline": pipeline.name,
        "ok": runs or not pipeline.wanted,
        "desired": pipeline.status,
        "process": state.value,
        "pid": worker.pid,
        "restarts": worker.restarts,
        "last_exit": worker.last_exit,
        "generation": pipeline.generation,
        "lease_holder": pipeline.lease_holder,
        "state": pipeline.state,
        "last_error": pipeline.last_error,
        "last_error_at": None if pipeline.last_error_at is None else pipeline.last_error_at.isoformat(),
        "destinations": [destination.as_json() for destination in pipeline.destinations],
    }


def run(health_port: int | None = None, *, command_of: CommandOf | None = None) -> int:
    """Supervise until SIGTERM or SIGINT; return the exit code of the process: 0 after an orderly stop.

    Args:
        health_port: port of the health endpoint; None takes ROSETTA_HEALTH_PORT or 8001.
        command_of: makes a pipeline's command line; None takes that of `cdc_runner.pipeline`.

    Raises:
        RosettaError: CONFIG_DATABASE_URL is missing or wrong. A config database that cannot be reached is waited for.
    """
    _configure_logs()
    environment = read_environment()
    engine = create_catalog_engine(application_name="rosetta runner")
    port = environment.health_port if health_port is None else health_port
    supervisor = Supervisor(engine, environment.home.resolve(), health_port=port, command_of=command_of)
    restore = _install_signals(supervisor)
    try:
        return supervisor.run()
    finally:
        restore()
        engine.dispose()


def _configure_logs() -> None:
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        )


def _install_signals(supervisor: Supervisor) -> Callable[[], None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        supervisor.request_stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
