"""The one thread that talks to the config database for the supervisor.

It follows the catalog (LISTEN, and a look every few seconds), writes the runner's heartbeat and delivers reports. An
outage of the config database stops nothing else: the last view stays in force, and the thread tries again.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg2
import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session

from cdc_runner.catalog.database import catalog_errors
from cdc_runner.catalog.leases import RunnerState, report_runner
from cdc_runner.catalog.migrations import apply_migrations
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.supervisor.catalog_view import (
    PipelineView,
    RunnerIdentity,
    forget_old_runners,
    read_pipelines,
    record_crash,
    release_leases,
)

CHANNEL = "rosetta_catalog"
POLL_SECONDS = 5.0
"""Longest time between two looks at the catalog, and the interval of heartbeats."""
RETRY_LONGEST_SECONDS = 10.0
SETTLE_SECONDS = 0.1
"""Notices come in bursts (an apply changes many rows): one look for all of them."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CatalogView:
    """What is known of the config database.

    Attributes:
        pipelines: by id; None before the first look.
        reachable: the last look succeeded.
        error: why it did not.
        observed_at: time of the last successful look.
    """

    pipelines: dict[int, PipelineView] | None = None
    reachable: bool = False
    error: str | None = None
    observed_at: datetime | None = None


@dataclass(slots=True)
class _Outbox:
    """What is to be written at the next look; guarded by the follower's lock."""

    state: RunnerState = "STARTING"
    health_port: int | None = None
    last_error: str | None = None
    crashes: dict[int, tuple[str, datetime]] = field(default_factory=dict)


class CatalogFollower:
    """Follows the catalog in a thread of its own.

    Args:
        engine: of the config database.
        runner: who we are.
        on_change: called in the thread after each look, successful or not.
        poll_seconds: see POLL_SECONDS.
    """

    def __init__(
        self,
        engine: Engine,
        runner: RunnerIdentity,
        on_change: Callable[[], None],
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.view = CatalogView()
        self.fatal: RosettaError | None = None
        """Set when going on makes no sense: the config database belongs to another version of Rosetta."""
        self._engine = engine
        self._runner = runner
        self._on_change = on_change
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._outbox = _Outbox()
        self._closing = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._thread = threading.Thread(target=self._run, name="catalog-follower", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, *, timeout_seconds: float = 5.0) -> None:
        """Write what is left and give leases back, when the config database lets us, and end the thread.

        To be called when no process of this runner lives any more.
        """
        self._closing.set()
        self._wake()
        self._thread.join(timeout_seconds)
        if not self._thread.is_alive():
            os.close(self._wake_read)
            os.close(self._wake_write)

    def set_state(self, state: RunnerState, *, health_port: int | None = None, last_error: str | None = None) -> None:
        """Set what the heartbeat says, and write it soon."""
        with self._lock:
            self._outbox.state = state
            self._outbox.health_port = health_port
            self._outbox.last_error = last_error
        self._wake()

    def report_crash(self, pipeline_id: int, message: str) -> None:
        """Write a pipeline's error soon; kept until the config database takes it, the latest of each pipeline."""
        with self._lock:
            self._outbox.crashes[pipeline_id] = (message, datetime.now(UTC))
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b".")
        except (BlockingIOError, OSError):
            return  # the pipe is full: the thread is awake already

    def _run(self) -> None:
        connection: Connection | None = None
        failures = 0
        while True:
            closing = self._closing.is_set()
            try:
                if connection is None:
                    connection = self._connect()
                self._look(connection)
                if failures:
                    _log.info("config_database.reachable", failures=failures)
                failures = 0
            except (RosettaError, psycopg2.Error) as error:
                self._drop(connection)
                connection = None
                failures += 1
                self._note_failure(error, failures)
            self._on_change()
            if closing or self.fatal is not None:
                break
            delay = self._poll_seconds if failures == 0 else min(RETRY_LONGEST_SECONDS, 0.5 * 2.0 ** min(failures, 8))
            self._wait(connection, delay)
        self._drop(connection)

    def _connect(self) -> Connection:
        apply_migrations(self._engine)
        with catalog_errors():
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text(f"LISTEN {CHANNEL}"))
            forget_old_runners(connection, self._runner)
        return connection

    def _look(self, connection: Connection) -> None:
        with self._lock:
            box = self._outbox
            state, port, last_error = box.state, box.health_port, box.last_error
            crashes = dict(box.crashes)
        with catalog_errors():
            if self._closing.is_set():
                release_leases(connection, self._runner)
            self._beat(connection, state, port, last_error)
            for pipeline_id, (message, crashed_at) in crashes.items():
                record_crash(connection, pipeline_id, message, crashed_at)
            pipelines = read_pipelines(connection)
        with self._lock:
            # A newer crash of the same pipeline may have come in meanwhile: it stays.
            for pipeline_id, crash in crashes.items():
                if self._outbox.crashes.get(pipeline_id) == crash:
                    del self._outbox.crashes[pipeline_id]
        self.view = CatalogView(pipelines, True, None, datetime.now(UTC))

    def _beat(self, connection: Connection, state: RunnerState, port: int | None, last_error: str | None) -> None:
        runner = self._runner
        with Session(connection) as session:
            report_runner(
                session,
                runner.id,
                state,
                host=runner.host,
                pid=runner.pid,
                health_port=port,
                version=runner.version,
                last_error=last_error,
            )

    def _note_failure(self, error: RosettaError | psycopg2.Error, failures: int) -> None:
        message = error.message if isinstance(error, RosettaError) else "the connection to the config database broke"
        self.view = CatalogView(self.view.pipelines, False, message, self.view.observed_at)
        if failures == 1:
            _log.warning("config_database.unreachable", error=message)
        if isinstance(error, RosettaError) and error.kind is ErrorKind.CONFLICT and self.view.pipelines is None:
            self.fatal = error

    def _wait(self, connection: Connection | None, delay_seconds: float) -> None:
        """Wait for a notice, a call of `_wake` or the end of the delay."""
        raw = None if connection is None or connection.invalidated else connection.connection.driver_connection
        if raw is not None and raw.closed:
            raw = None
        waited: list[Any] = [self._wake_read] if raw is None else [self._wake_read, raw]
        ready, _, _ = select.select(waited, [], [], delay_seconds)
        if not ready:
            return
        self._closing.wait(SETTLE_SECONDS)
        try:
            while os.read(self._wake_read, 4096):
                pass
        except BlockingIOError:
            pass
        if raw is not None:
            try:
                raw.poll()
                raw.notifies.clear()
            except psycopg2.Error:
                return  # the next look finds the connection broken and says so

    def _drop(self, connection: Connection | None) -> None:
        if connection is not None:
            try:
                connection.invalidate()
                connection.close()
            except Exception as error:  # a broken connection may fail in any way, and nothing is lost with it
                _log.debug("config_database.close_failed", error=type(error).__name__)
