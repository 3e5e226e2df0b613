"""A whole pipeline for tests: config database, source and targets, and the pipeline process itself."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest
import yaml
from sqlalchemy import Engine, text

from cdc_runner.catalog.apply_file import apply_configuration
from cdc_runner.catalog.credentials import Keyring, generate_key
from cdc_runner.catalog.database import open_catalog, session_scope
from cdc_runner.catalog.environment import read_environment
from cdc_runner.catalog.file_format import parse_configuration
from cdc_runner.catalog.migrations import apply_migrations
from cdc_runner.catalog.secret_source import read_secrets
from cdc_runner.position import parse_lsn
from cdc_runner.schema import TableId
from rosetta_dagster.demo.compare import Difference, compare_databases, user_tables
from tests.support.servers import Database
from tests.support.waiting import wait_for

ENGINES = ("debezium", "pgoutput")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests of pipelines with Debezium, those marked `both_engines` with each engine.

    `both_engines(slow="debezium")` leaves one of them to the long tests. `ROSETTA_TEST_ENGINE` names one engine to run
    all of them with.
    """
    if "capture_engine" not in metafunc.fixturenames:
        return
    chosen = os.environ.get("ROSETTA_TEST_ENGINE")
    marker = metafunc.definition.get_closest_marker("both_engines")
    slow = None if marker is None else marker.kwargs.get("slow")
    engines = (chosen,) if chosen else ENGINES if marker is not None else ENGINES[:1]
    metafunc.parametrize(
        "capture_engine",
        [pytest.param(one, marks=pytest.mark.slow) if one == slow and not chosen else one for one in engines],
    )


@dataclass
class PipelineHarness:
    """One pipeline from a source database to target databases, run as the supervisor would run it."""

    config: Database
    source: Database
    targets: Mapping[str, Database]
    home: Path
    ports: dict[str, int] = field(default_factory=dict)
    engine: str = "debezium"
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    pipeline_id: int = 0
    lakes: dict[str, dict[str, object]] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    _readers: dict[str, psycopg2.extensions.connection] = field(default_factory=dict, repr=False)

    def configure(
        self,
        *,
        tables: list[str] | None = None,
        syncs: Sequence[Mapping[str, object]] | None = None,
        settings: dict[str, object] | None = None,
        schema: str | None = None,
    ) -> None:
        """Apply a configuration file with one pipeline that goes to every target."""
        key = generate_key()
        self.environment = {
            **os.environ,
            "CONFIG_DATABASE_URL": self.config.url(),
            "CREDENTIAL_ENCRYPTION_KEY": key,
            "ROSETTA_HOME": str(self.home),
        }
        content = self._content(tables or ["*.*"], syncs or (), settings or {}, schema)
        passwords = {
            "SOURCE_PASSWORD": self.source.server.password,
            **self.secrets,
            **{_password_variable(name): target.server.password for name, target in self.targets.items()},
        }
        engine = open_catalog(self.config.url())
        apply_migrations(engine)
        file = parse_configuration(yaml.safe_dump(content))
        keyring = Keyring.from_environment(read_environment({"CREDENTIAL_ENCRYPTION_KEY": key}))
        with session_scope(engine) as session:
            apply_configuration(session, file, read_secrets(file, self.home, passwords), keyring)
            self.pipeline_id = session.execute(text("SELECT id FROM pipelines")).scalar_one()
        engine.dispose()

    @contextmanager
    def catalog(self) -> Iterator[tuple[Engine, Keyring]]:
        """Open the config database, with the key of its credentials."""
        engine = open_catalog(self.config.url())
        try:
            yield engine, Keyring.from_environment(read_environment(self.environment))
        finally:
            engine.dispose()

    def _content(
        self,
        tables: Sequence[str],
        syncs: Sequence[Mapping[str, object]],
        settings: Mapping[str, object],
        schema: str | None,
    ) -> dict[str, object]:
        """Return the configuration file; what is not given is not in it."""
        slot = f"rosetta_{secrets.token_hex(4)}"
        source = {"publication": slot, "slot": slot, "tables": list(tables), "capture_engine": self.engine}
        target = {"schema": schema} if schema else {}
        destinations = {
            **{name: {**self._postgres(database, name), **target} for name, database in self.targets.items()},
            **self.lakes,
        }
        flows = [
            {"destination": name, **({"tables": [dict(sync) for sync in syncs]} if syncs else {})}
            for name in destinations
        ]
        pipeline = {"source": "shop", "status": "START", "destinations": flows}
        return {
            "sources": {"shop": {**self._postgres(self.source, "source"), **source}},
            "destinations": destinations,
            "pipelines": {"shop": {**pipeline, **({"settings": dict(settings)} if settings else {})}},
        }

    def _postgres(self, database: Database, name: str) -> dict[str, object]:
        return {
            "type": "postgres",
            "host": database.server.host,
            "port": self.ports.get(name, database.server.port),
            "database": database.name,
            "username": database.server.username,
            "password": {"env": _password_variable(name)},
        }

    # -- the process -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the pipeline process."""
        self.home.mkdir(parents=True, exist_ok=True)
        self._close_input()
        with (self.home / "pipeline.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cdc_runner.pipeline", str(self.pipeline_id), "--holder", secrets.token_hex(4)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environment,
            )

    def _close_input(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def kill(self) -> None:
        """Kill the process as the kernel would, and free its lease as its expiry would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.config.execute("UPDATE runner_leases SET expires_at = clock_timestamp()")

    def stop(self) -> int:
        """Stop the process as the supervisor does; return its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def wait_exit(self, timeout: float = 30) -> int:
        """Wait until the process ends by itself; return its exit code."""
        assert self.process is not None
        return self.process.wait(timeout)

    def restart(self) -> None:
        """Start again after `kill` or `stop`."""
        self.start()

    def ensure_running(self) -> None:
        """Start the process again when it has ended, as the supervisor does after a crash."""
        if self.process is None or self.process.poll() is not None:
            self.config.execute("UPDATE runner_leases SET expires_at = clock_timestamp()")
            self.start()

    def log_text(self) -> str:
        """What the process has written."""
        return (self.home / "pipeline.log").read_text(errors="replace")

    # -- states ------------------------------------------------------------------------------------------------------

    def position(self, target: str) -> int:
        """The position that a target holds, 0 before all of its tables that are fed are loaded."""
        found = self._read(target, "SELECT to_regclass('_rosetta.stream_position') IS NOT NULL")
        if not found[0][0]:
            return 0
        rows = self._read(
            target,
            "SELECT end_lsn, ARRAY(SELECT target_schema || '.' || target_table FROM _rosetta.table_state "
            "WHERE NOT ready), EXISTS (SELECT FROM _rosetta.table_state) FROM _rosetta.stream_position",
        )
        if not rows or not rows[0][2]:
            return 0
        # The position is stored a moment before the tables that are to be loaded.
        loading = set(rows[0][1]) - self._not_fed(target) if rows[0][1] else set()  # type: ignore[call-overload]  # a list
        return 0 if loading else int(str(rows[0][0] or 0))

    def wait_moved(self, timeout_seconds: float, target: str = "target", *, beyond: int | None = None) -> None:
        """Wait until a target has passed a position; without one, that which it holds now."""
        before = self.position(target) if beyond is None else beyond
        wait_for(lambda: self.position(target) > before, timeout_seconds, "the stream to move")

    def _not_fed(self, target: str) -> set[str]:
        """The tables of a target that the present process said it does not feed."""
        if not (self.home / "pipeline.log").exists():
            # A supervisor writes elsewhere.
            return set()
        said = self.log_text().rpartition('"event": "pipeline.starting"')[2]
        events = [json.loads(line) for line in said.splitlines()[1:] if '"destination.not_fed"' in line]
        return {one["table"] for one in events if one["destination"] == target}

    def _read(self, target: str, query: str) -> list[tuple[object, ...]]:
        """Query a target on a session that is kept: waits ask often, and a new session costs the server more."""
        connection = self._readers.get(target)
        if connection is not None:
            try:
                return _rows(connection, query)
            except psycopg2.Error:
                connection.close()
                del self._readers[target]
        connection = self._readers[target] = self.targets[target].connect()
        return _rows(connection, query)

    def wait_caught_up(self, timeout: float = 90, targets: list[str] | None = None, *, revive: bool = False) -> None:
        """Wait until targets hold everything that is committed at the source now."""
        self.source.execute("SELECT pg_logical_emit_message(true, 'rosetta', '')")
        wanted = parse_lsn(self.source.execute("SELECT pg_current_wal_lsn()::text")[0][0])
        self.source.execute("SELECT pg_logical_emit_message(true, 'rosetta', '')")
        for target in targets or self.targets:

            def caught_up(target: str = target) -> bool:
                if revive:
                    self.ensure_running()
                assert self.process is not None
                if self.process.poll() is not None:
                    raise RuntimeError(f"the pipeline ended with {self.process.returncode}:\n{self.log_text()[-3000:]}")
                return self.position(target) >= wanted

            try:
                wait_for(caught_up, timeout, f"target {target} to reach the source")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log_text()[-3000:]}") from error

    def differences(
        self, target: str = "target", *, schema: str | None = None, tables: Mapping[TableId, TableId] | None = None
    ) -> list[Difference]:
        """Compare every table of the source with a target, as text."""
        with closing(self.source.connect()) as source, closing(self.targets[target].connect()) as connection:
            if tables is None:
                tables = {table: TableId(schema or table.schema, table.name) for table in user_tables(source)}
            return compare_databases(source, connection, tables)

    def assert_equal(self, target: str = "target", **options: object) -> None:
        """Fail, naming tables and keys, when a target differs."""
        differences = self.differences(target, **options)  # type: ignore[arg-type]
        assert not differences, f"{[one.as_json() for one in differences]}\n{self.log_text()[-2000:]}"

    def close(self) -> None:
        """End the process, whatever its state."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._close_input()
        while self._readers:
            self._readers.popitem()[1].close()


def _password_variable(name: str) -> str:
    return f"{name.upper()}_PASSWORD"


def _rows(connection: psycopg2.extensions.connection, query: str) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


@pytest.fixture
def pipeline(
    config_database: Database, source_database: Database, target_database: Database, capture_engine: str
) -> Iterator[PipelineHarness]:
    """A pipeline with one target, not configured yet."""
    with tempfile.TemporaryDirectory(prefix="rosetta-pipeline-") as home:
        harness = PipelineHarness(
            config_database, source_database, {"target": target_database}, Path(home), engine=capture_engine
        )
        try:
            yield harness
        finally:
            harness.close()


@pytest.fixture
def two_target_pipeline(
    config_database: Database,
    source_database: Database,
    target_database: Database,
    second_target_database: Database,
    capture_engine: str,
) -> Iterator[PipelineHarness]:
    """A pipeline with two targets, not configured yet."""
    targets = {"target": target_database, "second": second_target_database}
    with tempfile.TemporaryDirectory(prefix="rosetta-pipeline-") as home:
        harness = PipelineHarness(config_database, source_database, targets, Path(home), engine=capture_engine)
        try:
            yield harness
        finally:
            harness.close()
