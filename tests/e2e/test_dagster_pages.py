"""The control plane as an operator meets it: Dagster's own processes on PostgreSQL, asked over HTTP, in a browser."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import open_catalog
from cdc_runner.catalog.pipelines import source_place
from tests.support.catalog import store_pipeline
from tests.support.dagster_pages import DagsterPages, dagster_processes, running_pages
from tests.support.servers import PostgresServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.dagster, pytest.mark.pg, pytest.mark.slow, pytest.mark.timeout(600)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1440,1200",
    # Time of the page, which passes as fast as the page loads.
    "--virtual-time-budget=15000",
)  # fmt: skip
# A busy machine starts a run in a minute; an idle one in three seconds.
PATIENCE = 180.0


@pytest.fixture(scope="module")
def pages(config_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterPages]:
    catalog = config_server.create_database("test_pages_config")
    storage = config_server.create_database("test_pages_dagster")
    try:
        open_catalog(catalog.url()).dispose()
        store_pipeline(catalog.url(), "shop", ("orders", "customers"))
        with running_pages(catalog, storage, tmp_path_factory.mktemp("pages")) as running:
            yield running
            _end_runners(running)
    finally:
        config_server.drop_database(catalog.name)
        config_server.drop_database(storage.name)


@pytest.fixture
def own_source(pages: DagsterPages, config_server: PostgresServer) -> Iterator[str]:
    """A database with a table, which the pipeline's source names from then on."""
    database = config_server.create_database("test_pages_source")
    database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    database.execute("INSERT INTO orders VALUES (1), (2)")
    ((identifier,),) = pages.catalog.execute("SELECT id FROM sources WHERE name = 'shop-source'")
    secret = Keyring(bytes(range(32))).encrypt(config_server.password, source_place(identifier))
    pages.catalog.execute(
        "UPDATE sources SET host = %s, port = %s, database_name = %s, username = %s, password = %s WHERE id = %s",
        (config_server.host, config_server.port, database.name, config_server.username, secret, identifier),
    )
    wait_for(lambda: pages.ticks("pipeline_refresh_check"), PATIENCE, "the pickers to be filled")
    yield database.name
    config_server.drop_database(database.name)


def _end_runners(pages: DagsterPages) -> None:
    for (pid,) in pages.catalog.execute("SELECT pid FROM runner_heartbeats"):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()


def living_runner(pages: DagsterPages) -> int | None:
    rows = pages.catalog.execute(
        "SELECT pid FROM runner_heartbeats WHERE state = 'RUNNING' AND heartbeat_at > now() - interval '20 s'"
    )
    return next((pid for (pid,) in rows if psutil.pid_exists(pid)), None)


def test_sensor_starts_the_runner_and_replaces_a_killed_one(pages) -> None:
    first = wait_for(lambda: living_runner(pages), PATIENCE, "the sensor to start a runner")
    started = [tick for tick in pages.ticks("runner_alive") if tick["runIds"]]
    assert pages.wait_for_run(started[-1]["runIds"][0]) == "SUCCESS"
    wait_for(
        lambda: "runner RUNNING" in (pages.ticks("runner_alive")[0]["skipReason"] or ""),
        PATIENCE,
        "the sensor to see it",
    )
    psutil.Process(first).kill()
    wait_for(lambda: living_runner(pages) not in (None, first), PATIENCE, "another runner")


def test_operator_pauses_a_pipeline_from_the_launchpad(pages) -> None:
    wait_for(lambda: pages.ticks("pipeline_refresh_check"), PATIENCE, "the pickers to be filled")
    run = pages.launch("pause_pipeline", partition="shop")
    assert pages.wait_for_run(run, PATIENCE) == "SUCCESS"
    assert pages.catalog.execute("SELECT status FROM pipelines WHERE name = 'shop'") == [("PAUSE",)]
    assert pages.wait_for_run(pages.launch("start_pipeline", partition="shop")) == "SUCCESS"


def test_preview_gives_a_csv_and_ends_with_its_run(pages, config_server, own_source) -> None:
    def launch(sql: str) -> str:
        config = {"ops": {"run_statement": {"config": {"sql": sql, "use_cache": False}}}}
        return str(pages.launch("preview", config, partition="shop-source"))

    run = launch("SELECT id, id * 2 AS twice FROM orders ORDER BY id")
    assert pages.wait_for_run(run, PATIENCE) == "SUCCESS"
    query = """
    query Run($id: ID!) { runOrError(runId: $id) { ... on Run { eventConnection { events {
      ... on ExecutionStepOutputEvent { metadataEntries { label ... on UrlMetadataEntry { url } } } } } } } }
    """
    events = pages.ask(query, id=run)["runOrError"]["eventConnection"]["events"]
    entries = [entry for event in events for entry in event.get("metadataEntries", [])]
    (link,) = [entry["url"] for entry in entries if entry["label"] == "CSV"]
    assert httpx.get(f"{pages.url}{link}", trust_env=False, timeout=60).text == "id,twice\n1,2\n2,4\n"
    # It waits for a lock at the source, longer than anybody would wait for it here.
    holder = config_server.connect(own_source)
    holder.autocommit = False
    holder.cursor().execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rosetta preview' AND datname = %s"
    run = launch("SELECT * FROM orders")
    wait_for(lambda: config_server.execute(waiting, (own_source,))[0][0], PATIENCE, "the preview to wait for its rows")
    pages.ask("mutation End($ids: [String!]!) { terminateRuns(runIds: $ids) { __typename } }", ids=[run])
    assert pages.wait_for_run(run, PATIENCE) in ("CANCELED", "FAILURE")
    wait_for(lambda: not config_server.execute(waiting, (own_source,))[0][0], PATIENCE, "its session to end")
    holder.close()


def test_events_reach_the_assets(pages) -> None:
    assert "rosetta/shop/shop-warehouse/public/orders" in pages.assets()
    told = wait_for(
        lambda: pages.assets()["rosetta/shop/shop-warehouse/public/orders"], PATIENCE, "an event of the table"
    )
    assert told > 0


def test_new_pipeline_appears_without_a_restart(pages) -> None:
    store_pipeline(pages.catalog.url(), "billing", ("invoices",))
    wait_for(lambda: "rosetta/billing" in pages.assets(), PATIENCE, "the new pipeline's assets")
    query = """
    { partitionSetsOrError: pipelineOrError(params: {
        pipelineName: "pause_pipeline", repositoryName: "__repository__", repositoryLocationName: "rosetta"
      }) { ... on Pipeline { partitionKeysOrError { ... on PartitionKeys { partitionKeys } } } } }
    """
    keys = pages.ask(query)["partitionSetsOrError"]["partitionKeysOrError"]["partitionKeys"]
    assert set(keys) == {"shop", "billing"}


def test_no_secret_is_in_dagsters_storage(pages, config_server) -> None:
    wait_for(lambda: pages.ticks("replication_monitor"), PATIENCE, "a tick of the monitor")
    bodies = {"event_logs": "event", "runs": "run_body", "job_ticks": "tick_body", "jobs": "job_body"}
    for table, column in bodies.items():
        rows = config_server.execute(
            f"SELECT count(*) FROM {table} WHERE {column} LIKE '%%canary-word%%' OR {column} LIKE %s",
            (f"%{config_server.password}%",),
            database="test_pages_dagster",
        )
        assert rows == [(0,)], table


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_browser_shows_the_health_of_a_pipeline(pages, tmp_path: Path) -> None:
    wait_for(lambda: pages.assets()["rosetta/shop"], PATIENCE, "an event of the pipeline")
    words = ("pipeline_shop", "lag ms", "rows applied", "largest tables", "Freshness policy")
    page, picture = f"{pages.url}/assets/rosetta/shop", tmp_path / "page.png"

    def seen() -> bool:
        shown = browse(page, tmp_path, "--dump-dom")
        missing = [word for word in words if word not in shown]
        assert not missing, missing
        return True

    def pictured() -> bool:
        browse(page, tmp_path, f"--screenshot={picture}")
        return picture.exists() and picture.stat().st_size > 20_000

    wait_for(seen, PATIENCE, "the page to show numbers")
    wait_for(pictured, PATIENCE, "a picture of the page")


def test_dagster_that_is_killed_part_by_part_leaves_the_runner_alone(pages) -> None:
    """The last one here: nothing of Dagster is left."""
    runner = wait_for(lambda: living_runner(pages), PATIENCE, "a runner")
    parts = dagster_processes(pages.url)
    for part in ("code server", "daemon", "webserver"):
        for process in parts[part]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    killed = pages.catalog.execute("SELECT now()")[0][0]

    def reported() -> bool:
        query = "SELECT count(*) FROM runner_heartbeats WHERE state = 'RUNNING' AND pid = %s AND heartbeat_at > %s"
        return bool(pages.catalog.execute(query, (runner, killed))[0][0])

    wait_for(reported, PATIENCE, "a heartbeat after Dagster's end")
    assert living_runner(pages) == runner


def browse(url: str, directory: Path, *arguments: str) -> str:
    """Return what a new browser prints; nothing when it took too long."""
    profile = directory / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *arguments, url]
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    return ""
