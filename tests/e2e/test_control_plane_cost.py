"""What the control plane costs with 20 pipelines of 50 tables: cadence, CPU, rows, page times. Writes its figures.

ROSETTA_FIGURES names the file; without it they go to the test's directory. ROSETTA_CADENCE_SECONDS shortens the look,
ROSETTA_COST_SHAPE is another catalog than 20x50, say one pipeline of a thousand tables: 1x1000.
Takes about a quarter of an hour: the first minutes are spent on telling a thousand tables for the first time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import open_catalog, session_scope
from cdc_runner.catalog.pipelines import source_place
from cdc_runner.catalog.settings import set_setting
from tests.support.browser import CHROMIUM, Browser, browsing
from tests.support.catalog import store_pipeline
from tests.support.dagster_pages import DagsterPages, dagster_processes, running_pages
from tests.support.processor_time import cpu_seconds, postgres_of, resident_megabytes, server_seconds
from tests.support.servers import PostgresServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.dagster, pytest.mark.pg, pytest.mark.slow, pytest.mark.timeout(2400)]

PIPELINES, TABLES = map(int, os.environ.get("ROSETTA_COST_SHAPE", "20x50").split("x"))
SECONDS = float(os.environ.get("ROSETTA_CADENCE_SECONDS", "310"))
WANTED = {
    "system_metric_collection": 5, "runner_alive": 10, "worker_health_check": 10, "pipeline_refresh_check": 10,
    "notification_sender": 30, "run_failures": 30, "replication_monitor": 60, "wal_monitor": 60, "schema_monitor": 60,
    "table_list_refresh": 300, "backfill_queue": 5,
}  # fmt: skip
SCHEDULE = "credit_monitor"
"""Ticks each minute here (ROSETTA_TEST_CRON): all schedules are one mechanism, and an hour is too long to look."""
IDLE_PERCENT = 10
"""Of one core, for all of Dagster's processes and its server; time of a processor, whoever else wants it."""
MONTH_OF_TICKS = 60_000
"""Skipped ticks are kept for a day: this is the steady state, after a month or a year."""
MINUTES = 3 * 1440
"""Events of a pipeline until they are too old; the job `prune` then does what it does each night."""
TABLE_EVENTS = 60 + 72 + 144
"""The newest, one for each hour, and those of a day of changes, as tables are thinned each night only."""
PICTURES = 30 * 24


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
        source.execute(
            "; ".join(f"CREATE TABLE {name} (id bigint PRIMARY KEY, amount numeric(10,2))" for name in names)
        )
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
        variables = {"ROSETTA_TEST_CRON": "* * * * *"}
        with running_pages(catalog, storage, tmp_path_factory.mktemp("cost"), variables) as running:
            yield running
    finally:
        for server, database in ((config_server, catalog), (config_server, storage), (source_server, source)):
            server.drop_database(database.name)


def written(server: PostgresServer, database: str) -> dict[str, int]:
    rows = server.execute("SELECT relname, n_tup_ins FROM pg_stat_user_tables WHERE n_tup_ins > 0", database=database)
    return {name: int(count) for name, count in rows}


def figures_file(directory: Path) -> Path:
    return Path(os.environ.get("ROSETTA_FIGURES") or directory / "figures.json")


def idle(pages: DagsterPages, server: PostgresServer) -> bool:
    """Whether every table was told once and every schema is stored: what follows is what is there day after day."""
    told = server.execute(
        # Dagster itself notes of every asset that freshness does not apply to it.
        "SELECT count(DISTINCT asset_key) FROM event_logs WHERE asset_key LIKE %s AND dagster_event_type IN %s",
        ('["rosetta", %, %', ("ASSET_MATERIALIZATION", "ASSET_OBSERVATION")),
        database="test_cost_dagster",
    )
    schemas = pages.ticks("schema_monitor")
    return told[0][0] >= PIPELINES * TABLES and bool(schemas) and "unchanged" in (schemas[0]["skipReason"] or "")


def test_every_sensor_and_schedule_keeps_its_cadence_at_a_small_cost(pages, config_server, tmp_path) -> None:
    wait_for(lambda: idle(pages, config_server), 900, "everything to be told once")
    databases = {name: f"test_cost_{name}" for name in ("config", "dagster")}
    found, server = dagster_processes(pages.url), postgres_of(config_server)
    before = {name: written(config_server, database) for name, database in databases.items()}
    wal = config_server.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0]
    sessions = opened(config_server)
    began, cpu = time.time(), {part: cpu_seconds(some) for part, some in found.items()}
    cpu["PostgreSQL"] = server_seconds(server)
    wait_for(lambda: time.time() - began >= SECONDS, SECONDS + 60, "the look to end")
    seconds = time.time() - began
    after = {part: cpu_seconds(some) for part, some in found.items()} | {"PostgreSQL": server_seconds(server)}
    day = 86_400 / seconds
    grown = config_server.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0] - wal
    result: dict[str, Any] = {
        "seconds": round(seconds), "load_average": os.getloadavg(),
        "cpu_percent_of_a_core": {part: round(100 * (after[part] - cpu[part]) / seconds, 1) for part in after},
        "memory_megabytes": {part: sum(map(resident_megabytes, some)) for part, some in found.items()},
        "wal_megabytes_per_day": round(float(grown) * day / 1048576),
        "sessions_per_minute": round((opened(config_server) - sessions) * 60 / seconds, 1),
        "rows_per_day": {name: per_day(before[name], written(config_server, database), seconds)
                         for name, database in databases.items()},
        "events_by_type": events_since(config_server, began),
        "cadence": cadence(pages, began),
    }  # fmt: skip
    figures_file(tmp_path).write_text(json.dumps(result, indent=2))
    late = {name: one for name, one in result["cadence"].items() if not 0.8 <= one["mean"] / one["wanted"] <= 1.2}
    assert not late
    assert sum(result["rows_per_day"]["dagster"].values()) < 200_000
    assert sum(result["cpu_percent_of_a_core"].values()) < IDLE_PERCENT


def cadence(pages: DagsterPages, began: float) -> dict[str, dict[str, float]]:
    """Wanted and measured times between the ticks of each; the rare ones since the start."""
    ticks = {name: (wanted, pages.ticks(name)) for name, wanted in WANTED.items()}
    ticks[SCHEDULE] = (60, pages.schedule_ticks(SCHEDULE))
    found: dict[str, dict[str, float]] = {}
    for name, (wanted, some) in ticks.items():
        # A short look reaches back, so that there are two ticks of each.
        since = 0.0 if wanted >= 300 else began - max(wanted, 2 * wanted - SECONDS + 5)
        moments = sorted(float(tick["timestamp"]) for tick in some if float(tick["timestamp"]) >= since)
        between = [later - earlier for earlier, later in pairwise(moments)]
        assert between, f"{name} has not ticked twice"
        found[name] = {"wanted": wanted, "intervals": len(between), "mean": round(mean(between), 1),
                       "longest": round(max(between), 1)}  # fmt: skip
    return found


def events_since(server: PostgresServer, began: float) -> dict[str, int]:
    """Events of Dagster by type and, for those of runs, apart."""
    rows = server.execute(
        "SELECT coalesce(dagster_event_type, 'log') || CASE WHEN run_id = '' THEN '' ELSE ' (run)' END, count(*) "
        "FROM event_logs WHERE timestamp >= to_timestamp(%s) AT TIME ZONE 'UTC' GROUP BY 1 ORDER BY 2 DESC",
        (began,),
        database="test_cost_dagster",
    )
    return {name: int(count) for name, count in rows}


def opened(server: PostgresServer) -> int:
    """Sessions that were ever opened in Dagster's database."""
    rows = server.execute("SELECT sessions FROM pg_stat_database WHERE datname = 'test_cost_dagster'")
    return int(rows[0][0])


def test_pages_stay_fast_after_a_month(pages, config_server, tmp_path) -> None:
    """A month is made of the rows that are there once everything was told."""
    wait_for(lambda: idle(pages, config_server), 900, "everything to be told once")
    simulate_a_month(pages, config_server)
    file = figures_file(tmp_path)
    result = json.loads(file.read_text()) if file.exists() else {}
    result |= {"pages_load_average": os.getloadavg(), "page_answers": page_times(pages), "pages": {}}
    result["pages_inside"] = {}
    try:
        if CHROMIUM is not None:
            with browsing(tmp_path) as browser:
                result["first_visit"] = first_visit(browser, pages.url)
                for name, (path, words) in PAGES.items():
                    result["pages"][name] = browsed(browser, f"{pages.url}{path}", words)
                result["pages_inside"] = browsed_inside(browser, pages.url)
        else:
            result["pages_not_opened"] = NO_CHROMIUM
    finally:
        file.write_text(json.dumps(result, indent=2))
    slow: dict[str, Any] = {name: one for name, one in result["page_answers"].items() if one > 1.0}
    slow |= {
        name: one for name, one in result["pages"].items() if "failed" in one or too_slow(one, content=3.0, answer=1.0)
    }
    slow |= {f"{name}, inside": one for name, one in result["pages_inside"].items()
             if "failed" in one or too_slow(one, content=2.0, answer=2.0)}  # fmt: skip
    assert not slow
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)


def too_slow(look: dict[str, Any], *, content: float, answer: float) -> bool:
    """Whether a person could not read after `content` seconds, an answer took more than `answer`, or all took too long.

    Inside the open program a page asks everything at once, Automation 48 questions, and a browser keeps six
    connections: most of the slowest answer's time is its wait in the browser.
    """
    return bool(look["slowest_seconds"] > answer or look["content_seconds"] > content or look["settled_seconds"] > 5.0)


NO_CHROMIUM = "no Chromium is on PATH: the webserver's answers are fast, and no page was opened"
PAGES = {
    "home": ("/assets/overview", ("pipelines by state", f"{PIPELINES} RUNNING", "monitors")),
    "pictures": ("/assets/overview_pictures", ("Pictures of the last days", "slot WAL")),
    "automation": ("/automation", ("replication_monitor", "credit_monitor")),
    "asset list": ("/assets", ("overview", "rosetta")),
    "pipeline's asset": ("/assets/rosetta/p00", ("largest tables", "p00-warehouse")),
    "its checks": ("/assets/rosetta/p00?view=checks", ("lag_within_objective", "dead_letters_empty")),
    # Above so many tables the asset is not drawn below them.
    "its lineage": (
        "/assets/rosetta/p00?view=lineage",
        ("t00", f"t{TABLES - 1:02}") if TABLES <= 100 else ("pipeline_p00",),
    ),
    "table's asset": ("/assets/rosetta/p00/p00-warehouse/public/t00", ("rows applied", "STREAMING")),
    "a sensor": ("/locations/rosetta/sensors/replication_monitor", ("Latest tick", "look ", "0 runs requested")),
    "runs": ("/runs", ("prune", "overview_pictures")),
}
"""Path, and what it shows when a person can read it."""


def first_visit(browser: Browser, url: str) -> dict[str, Any]:
    """Return what a browser needs that was never here: all definitions. Look on until it has kept them.

    It keeps them until they change, so other looks do without.
    """
    path, words = PAGES["home"]
    first = looked_at(browser, f"{url}{path}", words)
    for _ in range(8):
        looked_at(browser, f"{url}{path}", words)
        if not any(one.operation == "LocationWorkspaceAssetsQuery" for one in browser.asked.values()):
            break
    return first


def browsed(browser: Browser, url: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Return the best of three looks at a page, or why there is none.

    One page that fails keeps none of the others from being looked at.
    """
    looks = [looked_at(browser, url, words) for _ in range(3)]
    return min(looks, key=lambda look: look.get("slowest_seconds", float("inf")))


def browsed_inside(browser: Browser, url: str) -> dict[str, dict[str, Any]]:
    """Return the best of three looks at every page as a person meets them who clicks inside the open program.

    Each begins at a page that shows none of them and asks for next to nothing. What the program has in memory since
    the look before is not asked for again: so it is for that person, too.
    """
    between, title = "/deployment/concurrency", "Concurrency"
    looks: dict[str, list[dict[str, Any]]] = {name: [] for name in PAGES}
    browser.open(f"{url}{between}")
    browser.wait_for_text(title, timeout=30)
    for name in [name for name in PAGES for _ in range(3)]:
        path, words = PAGES[name]
        try:
            content = browser.travel(path, *words, timeout=30)
            loading = asdict(browser.wait_until_quiet(timeout=30))
            looks[name].append({"content_seconds": round(content, 2), **loading})
        except AssertionError as error:
            looks[name].append({"failed": str(error)})
        browser.travel(between, title, timeout=30)
    return {name: min(some, key=lambda one: one.get("slowest_seconds", float("inf"))) for name, some in looks.items()}


def looked_at(browser: Browser, url: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Open a page; return what it needed, and the seconds until a person could read it."""
    try:
        browser.open(url)
        content = browser.wait_for_text(*words, timeout=30)
        return {"content_seconds": round(content, 2), **asdict(browser.wait_until_quiet(timeout=30))}
    except AssertionError as error:
        return {"failed": str(error)}


def per_day(before: dict[str, int], after: dict[str, int], seconds: float) -> dict[str, int]:
    grown = {name: round((count - before.get(name, 0)) * 86_400 / seconds) for name, count in after.items()}
    return {name: count for name, count in sorted(grown.items(), key=lambda one: -one[1]) if count}


def simulate_a_month(pages: DagsterPages, server: PostgresServer) -> None:
    """Fill Dagster's storage as far as retention lets it grow, with copies of real rows, and have it thinned."""

    def run(statement: str) -> None:
        server.execute(statement, database="test_cost_dagster")

    def copy_events(which: str, count: int, apart: str) -> None:
        run(
            f"""
            INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
            SELECT run_id, event, dagster_event_type, timestamp - n * interval '{apart}', step_key, asset_key, partition
            FROM (SELECT *, row_number() OVER (PARTITION BY asset_key ORDER BY id DESC) AS rank FROM event_logs
                  WHERE asset_key {which}
                    AND dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_OBSERVATION')) e
            CROSS JOIN generate_series({count}, 1, -1) n WHERE rank = 1
            """
        )

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
    for job, copies in (("overview_pictures", PICTURES), ("prune", 0), ("overview_pictures", 0)):
        if job == "prune":
            copy_events("""= '["overview"]' OR asset_key ~ '^."rosetta", "[^"]*".$'""", MINUTES, "1 minute")
        assert pages.wait_for_run(pages.launch(job), 600) == "SUCCESS"
        if copies:
            copy_events("""= '["overview_pictures"]'""", copies, "1 hour")
    copy_events("LIKE '%,%,%'", TABLE_EVENTS, "10 minutes")
    run("ANALYZE")
    overviews = """SELECT count(*) FROM event_logs WHERE asset_key = '["overview"]'"""
    wait_for(
        lambda: server.execute(overviews, database="test_cost_dagster")[0][0] < 70,
        300,
        "the monitor to thin its events",
    )


QUERIES = {
    "automation": """
      { repositoriesOrError { ... on RepositoryConnection { nodes {
        sensors { name sensorState { status ticks(limit: 1) { status timestamp } } }
        schedules { name scheduleState { ticks(limit: 1) { timestamp } } } } } } }
    """,
    "asset list": "{ assetsOrError { ... on AssetConnection { nodes { key { path } } } } }",
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
    for name, query in QUERIES.items():
        taken = []
        for _ in range(3):
            began = time.monotonic()
            pages.ask(query)
            taken.append(time.monotonic() - began)
        times[name] = round(min(taken), 2)
    return times
