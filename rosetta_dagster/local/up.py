"""Starts and stops everything of one ROSETTA_HOME, from any process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog
from sqlalchemy import text

from cdc_runner.errors import ErrorKind, RosettaError
from rosetta_dagster.embedded import EmbeddedStack, StackState, environment
from rosetta_dagster.embedded import port as loopback_port
from rosetta_dagster.local.dagster_server import DEFAULT_PORT, DagsterServer
from rosetta_dagster.resources.catalog import catalog_session
from rosetta_dagster.resources.runner_heartbeats import RunnerHeartbeat, read_runners
from rosetta_dagster.resources.runner_process import start_runner, stop_runner

_log = structlog.get_logger(__name__)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Running:
    """What runs, for a person; addresses without secrets.

    Attributes:
        servers: the embedded servers.
        health_url: the runner's health endpoint.
        dagster_url: None when Dagster was left out.
    """

    servers: StackState
    health_url: str
    dagster_url: str | None

    def lines(self) -> list[str]:
        """Return lines to print."""
        databases = [
            f"  {name:<14} 127.0.0.1:{server.port}  ({', '.join(server.databases)})"
            + ("   (its usual port was busy)" if server.moved else "")
            for name, server in self.servers.postgres.items()
        ]
        return [
            "PostgreSQL:",
            *databases,
            f"Runner health: {self.health_url}",
            f"Dagster:       {self.dagster_url or 'not started'}",
        ]


class LocalRosetta:
    """Embedded servers, runner and Dagster of one home.

    Args:
        home: ROSETTA_HOME.
        dagster: whether Dagster belongs to it.
        say: told what is being done, one line each.
        interrupted: once it is set, `start` waits for nothing more and returns; the caller then stops everything.
    """

    def __init__(
        self,
        home: Path,
        *,
        dagster: bool = True,
        say: Say = lambda _line: None,
        interrupted: threading.Event | None = None,
    ) -> None:
        self.home = home.expanduser().resolve()
        self.dagster = DagsterServer(self.home)
        self._with_dagster = dagster
        self._say = say
        self._interrupted = interrupted or threading.Event()
        self._stack = EmbeddedStack(self.home)

    def start(self, *, runner: bool = True) -> Running:
        """Start what does not run yet, and return when all of it answers.

        The variables that point to it are set in this process; other commands find them through the home.

        Raises:
            RosettaError: a part did not start. What runs already keeps running; `stop` ends it.
        """
        self._say(f"starting PostgreSQL and Redis in {self.home} ...")
        servers = self._stack.start()
        os.environ.update(environment(servers))
        dagster_url = self._start_dagster(os.environ) if self._with_dagster else None
        health_url = self._start_runner() if runner else "not started"
        if dagster_url is not None:
            self._say("waiting for Dagster ...")
            self.dagster.wait_ready(self._interrupted)
        return Running(servers, health_url, dagster_url)

    def stop(self) -> None:
        """Stop Dagster, the runner with its pipelines, then the servers; in this order nothing is cut off at work.

        Raises:
            RosettaError: a part did not stop; the others were stopped all the same.
        """
        failure: RosettaError | None = None
        parts = [("the runner", self._stop_runner), ("PostgreSQL and Redis", self._stack.stop)]
        if self.dagster.url() is not None:
            parts.insert(0, ("Dagster", self.dagster.stop))
        for name, action in parts:
            try:
                self._say(f"stopping {name} ...")
                action()
            except RosettaError as error:
                _log.warning("local.stop_failed", part=name, error=error.message)
                failure = failure or error
        if failure is not None:
            raise failure

    def _start_dagster(self, variables: Mapping[str, str]) -> str | None:
        if self.dagster.project() is None:
            self._say("no definitions.py in this installation: Dagster is left out")
            return None
        self._say("starting Dagster ...")
        return self.dagster.start(loopback_port.choose([DEFAULT_PORT], set()), variables)

    def _start_runner(self) -> str:
        self._say("starting the runner ...")
        with catalog_session() as session:
            for runner in read_runners(session):
                if runner.alive and not _lives_here(runner):
                    # Its heartbeat is young but its process is gone: a start would wait for the heartbeat to age.
                    session.execute(
                        text("UPDATE runner_heartbeats SET state = 'ERROR', last_error = :why WHERE runner_id = :id"),
                        {"id": runner.runner_id, "why": "the process ended without a word"},
                    )
        started = start_runner(self.home, _read_runners)
        return f"http://127.0.0.1:{started.heartbeat.health_port}/health"

    def _stop_runner(self) -> None:
        if not self._stack.status()["config"].running:
            return
        # A shell that calls `rosetta down` has none of the variables yet.
        os.environ.update(environment(self._stack.state()))
        try:
            stop_runner(_read_runners)
        except RosettaError as error:
            if error.kind is not ErrorKind.LEASE_HELD:
                raise


def _read_runners() -> list[RunnerHeartbeat]:
    with catalog_session() as session:
        return read_runners(session)


def _lives_here(runner: RunnerHeartbeat) -> bool:
    """Tell whether a runner's process exists; one of another host is believed."""
    if runner.host != socket.gethostname():
        return True
    try:
        return any("runner" in word for word in psutil.Process(runner.pid).cmdline())
    except psutil.Error:
        return False
