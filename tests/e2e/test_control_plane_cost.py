"""What the control plane costs with 20 pipelines of 50 tables: cadence, CPU, rows, page times. Writes its figures.

ROSETTA_FIGURES names the file; without it they go to the test's directory. ROSETTA_CADENCE_SECONDS shortens the look.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import pytest

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import open_catalog, session_scope
from cdc_runner.catalog.pipelines import source_place
from cdc_runner.catalog.settings import set_setting
from tests.support.catalog import store_pipeline
from tests.support.dagster_pages import DagsterPages, running_pages
from tests.support.servers import PostgresServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.dagster, pytest.mark.pg, pytest.mark.slow, pytest.mark.timeout(1500)]

PIPELINES, TABLES = 20, 50
SECONDS = float(os.environ.get("ROSETTA_CADENCE_SECONDS", "310"))
# Rare ones are measured by one interval or none; the schedules tick on their minute.
WANTED = {
    "system_metric_collection": 5, "runner_alive": 10, "worker_health_check": 10, "pipeline_refresh_check": 10,
    "notification_sender": 30, "replication_monitor": 60, "wal_monitor": 60, "schema_monitor": 60,
}  # fmt: skip
MONTH_OF_TICKS = 60_000
"""Skipped ticks are kept for a day: this is the steady state, after a month or a year."""
PIPELINE_EVENTS_KEPT = 3 * 1440
TABLE_EVENTS_KEPT = 100


@pytest.fixture(scope="module")
def pages(
    config_server: PostgresServer, source_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DagsterPages]:
    catalog = config_server.create_database("test_cost_config")
    storage = config_server.create_database("test_cost_dagster")
    source = source_server.create_database("test_cost_source")
    try:
        open_catalog(catalog.url()).dispose()
        names = [f"t{number:02}" for number in range(TABLES)]
        source.execute("; ".join(f"CREATE TABLE {name} (id bigint PRIMARY KEY, amount numeric)" for name in names))
        source.execute("CREATE PUBLICATION rosetta FOR ALL TABLES")
        for number in range(PIPELINES):
            store_pipeline(catalog.url(), f"p{number:02}", names)
        for (identifier,) in catalog.execute("SELECT id FROM sources"):
            secret = Keyring(bytes(range(32))).encrypt(source_server.password, source_place(identifier))
            catalog.execute(
                "UPDATE sources SET host = %s, port = %s, database_name = %s, username = %s, password = %s"
                " WHERE id = %s",
                (source_server.host, source_server.port, source.name, source_server.username, secret, identifier),
            )
        engine = open_catalog(catalog.url())
        with session_scope(engine) as session:
            set_setting(session, "runner_auto_start", "false")
        engine.dispose()
        with running_pages(catalog, storage, tmp_path_factory.mktemp("cost")) as running:
            yield running
    finally:
        for server, database in ((config_server, catalog), (config_server, storage), (source_server, source)):
            server.drop_database(database.name)


def processes(port: str) -> list[psutil.Process]:
    """Dagster's own processes: the one with this port in its command line and its children."""
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if "dagster" in command and "dev" in command and port in command:
            return [process, *process.children(recursive=True)]
    raise AssertionError("Dagster is not there")


def cpu_seconds(found: list[psutil.Process]) -> float:
    total = 0.0
    for process in found:
        try:
            used = process.cpu_times()
        except psutil.Error:
            continue
        total += used.user + used.system
    return total


def resident_megabytes(process: psutil.Process) -> int:
    """Resident memory; 0 for a process that has ended, as an old code server does after a reload."""
    try:
        return int(process.memory_info().rss // 1048576)
    except psutil.Error:
        return 0


def written(server: PostgresServer, database: str) -> dict[str, int]:
    rows = server.execute("SELECT relname, n_tup_ins FROM pg_stat_user_tables WHERE n_tup_ins > 0", database=database)
    return {name: int(count) for name, count in rows}


def figures_file(directory: Path) -> Path:
    return Path(os.environ.get("ROSETTA_FIGURES") or directory / "figures.json")


def test_every_sensor_keeps_its_cadence_and_the_pages_stay_fast(pages, config_server, tmp_path) -> None:
    wait_for(lambda: pages.ticks("schema_monitor") and pages.ticks("replication_monitor"), 180, "the first ticks")
    # The first ticks store a thousand tables; what follows is the idle state.
    wait_for(lambda: len(pages.ticks("replication_monitor")) >= 2, 240, "the second ticks")
    found = processes(pages.url.rpartition(":")[2])
    began, cpu = time.time(), cpu_seconds(found)
    before = {name: written(config_server, f"test_cost_{name}") for name in ("config", "dagster")}
    wait_for(lambda: time.time() - began >= SECONDS, SECONDS + 60, "the look to end")
    seconds = time.time() - began
    used = 100 * (cpu_seconds(found) - cpu) / seconds
    cadence = {name: intervals(pages, name, began) for name in WANTED}
    rows = {name: per_day(before[name], written(config_server, f"test_cost_{name}"), seconds) for name in before}
    result: dict[str, Any] = {
        "seconds": round(seconds), "load_average": os.getloadavg(), "cpu_percent_of_a_core": round(used, 1),
        "memory_megabytes": sum(map(resident_megabytes, found)), "rows_per_day": rows,
        "cadence": {name: {"wanted": WANTED[name], "mean": round(mean(found), 1), "longest": round(max(found), 1)}
                    for name, found in cadence.items()},
    }  # fmt: skip
    figures_file(tmp_path).write_text(json.dumps(result, indent=2))
    simulate_a_month(config_server)
    result["page_seconds"] = page_times(pages)
    figures_file(tmp_path).write_text(json.dumps(result, indent=2))
    late = {name: facts for name, facts in result["cadence"].items() if facts["mean"] > 1.2 * facts["wanted"]}
    assert not late
    slow = {name: taken for name, taken in result["page_seconds"].items() if taken > 1.0}
    assert not slow


def intervals(pages: DagsterPages, sensor: str, since: float) -> list[float]:
    """Seconds between the ticks of a sensor in the time that was looked at."""
    moments = sorted(float(tick["timestamp"]) for tick in pages.ticks(sensor) if float(tick["timestamp"]) >= since - 60)
    return [later - earlier for earlier, later in pairwise(moments)]


def per_day(before: dict[str, int], after: dict[str, int], seconds: float) -> dict[str, int]:
    grown = {name: round((count - before.get(name, 0)) * 86_400 / seconds) for name, count in after.items()}
    return {name: count for name, count in sorted(grown.items(), key=lambda one: -one[1]) if count}


def simulate_a_month(server: PostgresServer) -> None:
    """Fill Dagster's storage as far as retention lets it grow, with copies of real rows."""

    def run(statement: str) -> None:
        server.execute(statement, database="test_cost_dagster")

    run(
        f"""
        INSERT INTO job_ticks (job_origin_id, selector_id, status, type, timestamp, tick_body, create_timestamp,
                               update_timestamp)
        SELECT job_origin_id, selector_id, status, type, timestamp - n * interval '1 minute', tick_body,
               create_timestamp, update_timestamp
        FROM (SELECT *, row_number() OVER (PARTITION BY selector_id ORDER BY id DESC) AS rank FROM job_ticks) t
        CROSS JOIN generate_series(1, {MONTH_OF_TICKS // 10}) n WHERE rank = 1
        """
    )
    for kind, kept in (("NOT LIKE '%,%,%'", PIPELINE_EVENTS_KEPT), ("LIKE '%,%,%'", TABLE_EVENTS_KEPT)):
        run(
            f"""
            INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
            SELECT run_id, event, dagster_event_type, timestamp - n * interval '1 minute', step_key, asset_key,
                   partition
            FROM (SELECT *, row_number() OVER (PARTITION BY asset_key ORDER BY id DESC) AS rank FROM event_logs
                  WHERE asset_key {kind}) e
            CROSS JOIN generate_series(1, {kept}) n WHERE rank = 1
            """
        )
    run("ANALYZE")


PAGES = {
    "automation": """
      { repositoriesOrError { ... on RepositoryConnection { nodes {
        sensors { name sensorState { status ticks(limit: 1) { status timestamp } } }
        schedules { name scheduleState { ticks(limit: 1) { timestamp } } } } } } }
    """,
    "asset list": """
      { assetNodes { assetKey { path } groupName assetMaterializations(limit: 1) { timestamp }
        assetObservations(limit: 1) { timestamp } } }
    """,
    "asset list, as the page asks for it": "{ assetsOrError { ... on AssetConnection { nodes { key { path } } } } }",
    "asset page": """
      { assetNodeOrError(assetKey: {path: ["rosetta", "p00"]}) { ... on AssetNode {
        assetMaterializations(limit: 100) { timestamp description metadataEntries { label } }
        assetObservations(limit: 100) { timestamp description metadataEntries { label } } } } }
    """,
    "overview": """
      { assetNodeOrError(assetKey: {path: ["overview"]}) { ... on AssetNode {
        assetMaterializations(limit: 100) { timestamp metadataEntries { label } } } } }
    """,
}  # fmt: skip


def page_times(pages: DagsterPages) -> dict[str, float]:
    """Seconds of each page's question: the best of three, as a person meets it with a warm cache."""
    times: dict[str, float] = {}
    for name, query in PAGES.items():
        taken = []
        for _ in range(3):
            began = time.monotonic()
            pages.ask(query)
            taken.append(time.monotonic() - began)
        times[name] = round(min(taken), 2)
    return times
