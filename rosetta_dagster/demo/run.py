"""The demo from start to end: servers, shop, pipeline, writers, a line a second, comparison, orderly stop."""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from cdc_runner.catalog.database import open_catalog
from cdc_runner.connections import connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId
from cdc_runner.spec import PostgresAddress
from cdc_runner.supervisor.catalog_view import PipelineView, read_pipelines
from rosetta_dagster.demo.compare import Difference, compare_databases, user_tables
from rosetta_dagster.demo.configuration import PIPELINE, apply_file, target_tables, write_configuration
from rosetta_dagster.demo.database import libpq_environment, prepare_source
from rosetta_dagster.demo.latency import LagProbe, TargetTables, percentile
from rosetta_dagster.embedded.account import server_account, server_root
from rosetta_dagster.embedded.binaries import postgres_binaries
from rosetta_dagster.local.up import LocalRosetta, Running

QUIESCE_SECONDS = 180.0
WARM_UP_SECONDS = 60.0
WRITER_THREADS = 3
PGBENCH_SHARE = 0.5
WRITER_STOP_SECONDS = 35.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo is asked to do.

    Attributes:
        home: ROSETTA_HOME.
        seconds: how long to write after the initial load; None until interrupted.
        rate: transactions a second of all writers together.
        dagster: whether Dagster is started too.
        compare: whether every table is compared at the end.
    """

    home: Path
    seconds: float | None
    rate: float
    dagster: bool
    compare: bool


@dataclass(slots=True)
class _Writers:
    """The processes that write to the source."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    committed: int = 0

    def start(self, source: PostgresAddress, pgbench: Path, rate: float) -> None:
        environment = libpq_environment(source)
        pgbench_rate = max(1.0, rate * PGBENCH_SHARE)
        commands = [
            [
                sys.executable,
                *("-m", "rosetta_dagster.demo.workload", str(max(1.0, rate - pgbench_rate)), str(WRITER_THREADS)),
            ],
            # A time limit it never reaches; its own pace and no start-up vacuum.
            [str(pgbench), "--no-vacuum", "--client=2", "--jobs=1", f"--rate={pgbench_rate}", "--time=100000000"],
        ]
        for command in commands:
            self.processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    def ended(self) -> bool:
        return any(process.poll() is not None for process in self.processes)

    def stop(self) -> None:
        """Stop all writers: whatever they had begun is committed or rolled back when this returns."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                output, _ = process.communicate(timeout=WRITER_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
            with contextlib.suppress(ValueError, TypeError, KeyError):
                self.committed += int(json.loads(output)["committed"])
        self.processes.clear()


class Demo:
    """One run of the demo.

    Args:
        options: what to do.
        say: told what is being done, and every second how it goes.
        interrupted: set by the caller to end the run in order.
    """

    def __init__(self, options: DemoOptions, say: Say, interrupted: threading.Event) -> None:
        self._options = options
        self._say = say
        self._interrupted = interrupted
        self._local = LocalRosetta(options.home, dagster=options.dagster, say=say, interrupted=interrupted)
        self._writers = _Writers()

    def run(self) -> dict[str, Any]:
        """Do everything, stop everything that was started, and return the report.

        Raises:
            RosettaError: a part could not be started, or a demo runs on this home already.
        """
        with _only_one(self._local.home):
            try:
                running = self._local.start()
                for line in running.lines():
                    self._say(line)
                return self._replicate(running)
            finally:
                self._writers.stop()
                self._local.stop()

    def _replicate(self, running: Running) -> dict[str, Any]:
        servers = running.servers.postgres
        source = servers["source"].address()
        warehouse, reporting = servers["target"].address(), servers["second_target"].address()
        account = server_account()
        pgbench = postgres_binaries(account, server_root(running.servers.home, account)) / "pgbench"
        self._say("filling the shop ...")
        prepare_source(source, pgbench)
        tables = _tables(source)
        addresses = {"warehouse": warehouse, "reporting": reporting}
        targets = {name: TargetTables(addresses[name], mapped) for name, mapped in target_tables(tables).items()}
        path = running.servers.home / "demo.yaml"
        write_configuration(path, source, warehouse, reporting)
        probe = LagProbe(source, targets)
        with _catalog() as engine:
            try:
                probe.start()
                started_at = time.monotonic()
                apply_file(engine, path)
                self._say(f"applied {path}: pipeline {PIPELINE} starts")
                self._writers.start(source, pgbench, self._options.rate)
                self._watch(engine, probe)
                return self._finish(engine, probe, source, targets, started_at)
            finally:
                probe.stop()

    def _watch(self, engine: Engine, probe: LagProbe) -> None:
        """Say how it goes, until the time is over or somebody interrupts.

        The time counts from the end of the initial load and its backlog on, or from WARM_UP_SECONDS on at the latest:
        lag during the load says nothing about the stream.
        """
        started_at = time.monotonic()
        counted_from: float | None = None
        rows, at = 0, started_at
        while not self._interrupted.wait(1.0):
            now = time.monotonic()
            if counted_from is None and (probe.caught_up_seconds(0.0) or now - started_at > WARM_UP_SECONDS):
                counted_from = now
            if counted_from is not None and self._options.seconds is not None:
                left = counted_from + self._options.seconds - now
                if left < 1.0:
                    self._interrupted.wait(max(0.0, left))
                    return
            pipeline = _pipeline(engine)
            if pipeline is None:
                continue
            total = _rows(pipeline)
            self._say(_line(pipeline, total, (total - rows) / (now - at), probe.current_lags_ms()))
            rows, at = total, now
            if self._writers.ended():
                self._say("a writer ended by itself")

    def _finish(
        self,
        engine: Engine,
        probe: LagProbe,
        source: PostgresAddress,
        targets: Mapping[str, TargetTables],
        started_at: float,
    ) -> dict[str, Any]:
        self._say("stopping the writers ...")
        self._writers.stop()
        report: dict[str, Any] = {"tables": len(next(iter(targets.values())).tables)}
        if self._interrupted.is_set():
            # Nobody waits for the targets now, so a comparison would say no more than that they are behind.
            report["interrupted"] = True
        elif self._options.compare:
            quiet_at = time.monotonic()
            late = self._quiesce(engine, probe)
            report["quiesce_seconds"] = round(time.monotonic() - quiet_at, 2)
            self._say("comparing ...")
            differences = _compare(source, targets)
            report["equal"] = not differences and not late
            report["differences"] = differences
            report["destinations_behind"] = late
        pipeline = _pipeline(engine)
        every = [lag for lags in probe.lags_ms().values() for lag in lags]
        report |= {
            "rows_replicated": 0 if pipeline is None else _rows(pipeline),
            "shop_transactions": self._writers.committed,
            "lag_ms_p50": _rounded(percentile(every, 0.50)),
            "lag_ms_p99": _rounded(percentile(every, 0.99)),
            "lag_samples": len(every),
            "lag_ms": {name: _percentiles(lags) for name, lags in probe.lags_ms().items()},
            "seconds_to_first_row": _rounded(probe.first_row_seconds(started_at), 2),
            "seconds_to_caught_up": _rounded(probe.caught_up_seconds(started_at), 2),
            "error": _error(pipeline),
        }
        return report

    def _quiesce(self, engine: Engine, probe: LagProbe) -> list[str]:
        """Wait until every target shows the last commit; return the names of those that do not."""
        last = probe.finish_beats()
        deadline = time.monotonic() + QUIESCE_SECONDS
        self._say("waiting for the targets ...")
        while probe.waiting_for(last) and time.monotonic() < deadline:
            pipeline = _pipeline(engine)
            if self._interrupted.wait(0.1) or (pipeline is not None and not pipeline.wanted):
                break
        return probe.waiting_for(last)


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold a home's demo lock: a second demo would stop the servers under the first one."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "demo.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RosettaError(ErrorKind.CONFLICT, f"a demo runs in {home} already") from None
        yield


@contextmanager
def _catalog() -> Iterator[Engine]:
    engine = open_catalog(application_name="rosetta demo")
    try:
        yield engine
    finally:
        engine.dispose()


def _tables(source: PostgresAddress) -> list[TableId]:
    connection = connect(source, application_name="rosetta demo")
    try:
        return [table for table in user_tables(connection) if table.schema in ("shop", "public")]
    finally:
        connection.close()


def _compare(source: PostgresAddress, targets: Mapping[str, TargetTables]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, target in targets.items():
        found += [{"destination": name, **each.as_json()} for each in _compare_one(source, target)]
    return found


def _compare_one(source: PostgresAddress, target: TargetTables) -> list[Difference]:
    here = connect(source, application_name="rosetta demo")
    try:
        there = connect(target.address, application_name="rosetta demo", side="destination")
        try:
            return compare_databases(here, there, target.tables)
        finally:
            there.close()
    finally:
        here.close()


def _pipeline(engine: Engine) -> PipelineView | None:
    """Return the demo's pipeline; None when it is not there or the config database cannot be asked now."""
    try:
        with _session(engine) as connection:
            return next((each for each in read_pipelines(connection).values() if each.name == PIPELINE), None)
    except RosettaError:
        return None


@contextmanager
def _session(engine: Engine) -> Iterator[Any]:
    from cdc_runner.catalog.database import catalog_errors

    with catalog_errors(), engine.connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        yield connection


def _rows(pipeline: PipelineView) -> int:
    return sum(each.rows_loaded + each.rows_applied for each in pipeline.destinations)


def _error(pipeline: PipelineView | None) -> str | None:
    if pipeline is None or pipeline.state != "ERROR":
        return None
    return pipeline.last_error


def _line(pipeline: PipelineView, total: int, rows_per_second: float, lags: Mapping[str, float | None]) -> str:
    shown = "  ".join(f"{name} {'-' if lag is None else f'{lag:,.0f} ms'}" for name, lag in lags.items())
    # Born paused, it reports its own state once it streams.
    state = "LOADING" if pipeline.wanted and pipeline.state in (None, "PAUSED") else pipeline.state
    text_ = f"{state:<8} {rows_per_second:>9,.0f} rows/s {total:>12,} rows   lag: {shown}"
    return text_ if pipeline.last_error is None or pipeline.state != "ERROR" else f"{text_}   {pipeline.last_error}"


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)


def _percentiles(lags: list[float]) -> dict[str, float | None]:
    return {"p50": _rounded(percentile(lags, 0.50)), "p99": _rounded(percentile(lags, 0.99))}
