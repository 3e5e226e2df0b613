"""A real pipeline, run as the supervisor runs it: a process over a config database."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2
import yaml
from sqlalchemy import text

from bench.servers import Database, Servers
from bench.waiting import wait_until
from cdc_runner.catalog.apply_file import apply_configuration
from cdc_runner.catalog.credentials import Keyring, generate_key
from cdc_runner.catalog.database import open_catalog, session_scope
from cdc_runner.catalog.environment import read_environment
from cdc_runner.catalog.file_format import parse_configuration
from cdc_runner.catalog.migrations import apply_migrations
from cdc_runner.catalog.secret_source import read_secrets

STOP_SECONDS = 30


class Pipeline:
    """One pipeline from a source database to a target database, in a process of its own."""

    def __init__(
        self,
        servers: Servers,
        source: Database,
        target: Database,
        tables: Sequence[str],
        engine: str,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Configure the pipeline; its process is started by `start`.

        Args:
            servers: for the config database.
            source: where to read.
            target: where to write.
            tables: patterns `schema.table`.
            engine: the capture engine.
            settings: of the pipeline, over the defaults.
        """
        self.source, self.target = source, target
        self.slot = f"bench_{secrets.token_hex(4)}"
        self._config = servers.create("config", "config")
        self._home = servers.home / self.slot
        self._home.mkdir()
        key = generate_key()
        self._environment = {
            **os.environ,
            "CONFIG_DATABASE_URL": self._config.url(),
            "CREDENTIAL_ENCRYPTION_KEY": key,
            "ROSETTA_HOME": str(self._home),
        }
        self.keyring = Keyring.from_environment(read_environment({"CREDENTIAL_ENCRYPTION_KEY": key}))
        self._process: subprocess.Popen[bytes] | None = None
        self._id = self._configure(key, tables, engine, settings or {})

    def _configure(self, key: str, tables: Sequence[str], engine: str, settings: Mapping[str, object]) -> int:
        content = {
            "sources": {
                "bench": {
                    **_place(self.source, "SOURCE_PASSWORD"),
                    "publication": self.slot,
                    "slot": self.slot,
                    "tables": list(tables),
                    "capture_engine": engine,
                }
            },
            "destinations": {"bench": _place(self.target, "TARGET_PASSWORD")},
            "pipelines": {
                "bench": {
                    "source": "bench",
                    "status": "START",
                    "destinations": [{"destination": "bench"}],
                    **({"settings": dict(settings)} if settings else {}),
                }
            },
        }
        passwords = {"SOURCE_PASSWORD": self.source.password, "TARGET_PASSWORD": self.target.password}
        catalog = open_catalog(self._config.url())
        try:
            apply_migrations(catalog)
            file = parse_configuration(yaml.safe_dump(content))
            keyring = Keyring.from_environment(read_environment({"CREDENTIAL_ENCRYPTION_KEY": key}))
            with session_scope(catalog) as session:
                apply_configuration(session, file, read_secrets(file, self._home, passwords), keyring)
                return int(session.execute(text("SELECT id FROM pipelines")).scalar_one())
        finally:
            catalog.dispose()

    # -- the process -------------------------------------------------------------------------------------------------

    def start(self) -> int:
        """Start the process; return its pid."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cdc_runner.pipeline", str(self._id), "--holder", secrets.token_hex(4)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        return self._process.pid

    def stop(self) -> None:
        """Stop the process as the supervisor does; kill it when it does not stop."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        finally:
            if process.stdin is not None:
                process.stdin.close()

    def kill(self) -> None:
        """Kill the process, and free its lease as time would."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(10)
        if process.stdin is not None:
            process.stdin.close()
        self._config.execute("UPDATE runner_leases SET expires_at = clock_timestamp()")

    @property
    def config(self) -> Database:
        """The config database."""
        return self._config

    @property
    def _log(self) -> Path:
        return self._home / "pipeline.log"

    def check(self) -> None:
        """Raise when the process has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"the pipeline ended with {self._process.returncode}:\n{self._log.read_text()[-3000:]}")

    def logged_at(self, event: str) -> float | None:
        """Return when an event was logged first (seconds since the epoch), None while it was not."""
        for line in self._log.read_text(errors="replace").splitlines():
            if f'"{event}"' in line:
                return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
        return None

    # -- states ------------------------------------------------------------------------------------------------------

    def wait_loaded(self, timeout_seconds: float) -> float:
        """Wait until every table is loaded; return when that was (monotonic, seconds)."""
        with reader(self.target) as read:

            def loaded() -> bool:
                self.check()
                rows = read("SELECT count(*), count(*) FILTER (WHERE NOT ready) FROM _rosetta.table_state")
                return bool(rows) and rows[0][0] > 0 and rows[0][1] == 0

            return wait_until(loaded, timeout_seconds, "the initial load")

    @contextmanager
    def position(self) -> Iterator[Callable[[], int]]:
        """Give a function that reads the position that the target holds."""
        with reader(self.target) as read:

            def position() -> int:
                self.check()
                rows = read("SELECT end_lsn FROM _rosetta.stream_position")
                return int(rows[0][0] or 0) if rows else 0

            yield position

    def wait_position(self, lsn: int, timeout_seconds: float) -> float:
        """Wait until the target holds everything up to a position; return when that was (monotonic, seconds)."""
        with self.position() as read:
            return wait_until(lambda: read() >= lsn, timeout_seconds, "the target to reach the source")

    def remove(self) -> None:
        """Stop the process and drop its slot and publication."""
        self.stop()
        deadline = time.monotonic() + 20
        while True:
            try:
                self.source.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                    (self.slot,),
                )
                break
            except psycopg2.errors.ObjectInUse:
                # The server notices a moment later that the reader is gone.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        self.source.execute(f"DROP PUBLICATION IF EXISTS {self.slot}")


def _place(database: Database, variable: str) -> dict[str, object]:
    return {
        "type": "postgres",
        "host": database.host,
        "port": database.port,
        "database": database.name,
        "username": database.username,
        "password": {"env": variable},
    }


@contextmanager
def reader(database: Database) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
    """Give a function that runs a query on one connection; a table that does not exist yet has no rows."""
    with closing(database.connect()) as connection, connection.cursor() as cursor:

        def read(query: str) -> list[tuple[Any, ...]]:
            try:
                cursor.execute(query)
            except (psycopg2.errors.UndefinedTable, psycopg2.errors.InvalidSchemaName):
                return []
            return cursor.fetchall()

        yield read
