"""What Dagster costs with as many sensors as Rosetta has, that do nothing: what no work on ours could save.

ROSETTA_FIGURES names a file that the figures are added to. ROSETTA_CADENCE_SECONDS shortens the look.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from cdc_runner.catalog.database import open_catalog
from tests.support.bare_definitions import EVERY
from tests.support.dagster_pages import ROOT, dagster_processes, running_pages
from tests.support.processor_time import cpu_seconds, postgres_of, server_seconds
from tests.support.servers import PostgresServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.dagster, pytest.mark.pg, pytest.mark.slow, pytest.mark.timeout(1200)]

SECONDS = float(os.environ.get("ROSETTA_CADENCE_SECONDS", "310"))


@pytest.mark.parametrize("storage", ["ours", "dagster-postgres"])
def test_sensors_that_do_nothing(config_server: PostgresServer, tmp_path: Path, storage: str) -> None:
    catalog = config_server.create_database("test_bare_config")
    database = config_server.create_database("test_bare_dagster")
    instance = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    if storage == "dagster-postgres":
        instance["storage"] = {"postgres": instance["storage"]["custom"]["config"]}
    try:
        open_catalog(catalog.url()).dispose()
        module, text = "tests.support.bare_definitions", yaml.safe_dump(instance)
        with running_pages(catalog, database, tmp_path / "dagster", module=module, instance=text) as pages:
            wait_for(lambda: all(map(pages.ticks, EVERY)), 400, "every sensor to tick")
            found, server = dagster_processes(pages.url), postgres_of(config_server)
            began = time.time()
            cpu = {part: cpu_seconds(some) for part, some in found.items()} | {"PostgreSQL": server_seconds(server)}
            wait_for(lambda: time.time() - began >= SECONDS, SECONDS + 60, "the look to end")
            after = {part: cpu_seconds(some) for part, some in found.items()} | {"PostgreSQL": server_seconds(server)}
            seconds = time.time() - began
            ticks = len([tick for tick in pages.ticks("system_metric_collection") if float(tick["timestamp"]) >= began])
    finally:
        for one in (catalog, database):
            config_server.drop_database(one.name)
    percent = {part: round(100 * (after[part] - cpu[part]) / seconds, 1) for part in after}
    file = Path(os.environ.get("ROSETTA_FIGURES") or tmp_path / "figures.json")
    result = json.loads(file.read_text()) if file.exists() else {}
    result[f"bare, {storage}"] = {"seconds": round(seconds), "load_average": os.getloadavg(), "percent": percent}
    file.write_text(json.dumps(result, indent=2))
    assert ticks >= seconds / 10, "the sensors ticked"
