from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from dagster import AssetKey, AssetObservation, DagsterInstance, build_sensor_context, job, op
from dagster._core.test_utils import instance_for_test

from cdc_runner.catalog.database import session_scope
from rosetta_dagster.assets.overview import OVERVIEW_KEY
from rosetta_dagster.assets.specs import pipeline_key
from rosetta_dagster.monitoring.retention import SERIES, prune_series
from rosetta_dagster.resources import dagster_storage
from rosetta_dagster.resources.catalog import catalog_engine
from rosetta_dagster.schedules.prune import prune_job
from rosetta_dagster.sensors.replication_monitor import replication_monitor
from tests.support.servers import Database, PostgresServer

pytestmark = [pytest.mark.dagster, pytest.mark.pg]


@pytest.fixture
def storage(config_server: PostgresServer) -> Iterator[Database]:
    database = config_server.create_database("test_prune_dagster")
    yield database
    config_server.drop_database(database.name)


@pytest.fixture
def kept(storage: Database) -> Iterator[DagsterInstance]:
    """An instance whose storage is PostgreSQL."""
    address = storage.server
    overrides = {
        "storage": {
            "postgres": {
                "postgres_db": {
                    "scheme": "postgresql+psycopg2",
                    "hostname": address.host,
                    "port": address.port,
                    "username": address.username,
                    "password": address.password,
                    "db_name": storage.name,
                }
            }
        }
    }
    with instance_for_test(overrides=overrides) as instance:
        yield instance


NUMBER = "SELECT asset_key, count(*) FROM event_logs WHERE dagster_event_type = 'ASSET_OBSERVATION' GROUP BY 1"


def observe(instance: DagsterInstance, storage: Database, names: str, count: int, ago: str) -> None:
    """Tell assets some times, as if that had been at the 30th minute of an hour."""
    ((newest,),) = storage.execute("SELECT coalesce(max(id), 0) FROM event_logs")
    for number in range(count):
        for name in names:
            instance.report_runless_asset_event(AssetObservation(pipeline_key(name), metadata={"number": number}))
    storage.execute(
        "UPDATE event_logs SET timestamp = date_trunc('hour', timestamp) + interval '30 min' - %s::interval"
        " WHERE id > %s",
        (ago, newest),
    )


def newest_number(instance: DagsterInstance, name: str) -> object:
    newest = instance.fetch_observations(pipeline_key(name), limit=1).records[0].asset_observation
    assert newest is not None
    return newest.metadata["number"].value


def test_newest_events_of_each_asset_stay_and_one_of_each_young_hour(kept, storage, monkeypatch) -> None:
    monkeypatch.setattr(dagster_storage, "_ROWS_AT_ONCE", 4)
    monkeypatch.setattr(dagster_storage, "KEPT_EVENTS", 5)
    observe(kept, storage, "a", 12, "20 days")
    for hours in (3, 2, 1):
        observe(kept, storage, "b", 8, f"{hours} hours")
    assert dagster_storage.prune_events(kept, days=14) == 7 + 24 - 5 - 2
    rows = dict(storage.execute(NUMBER))
    assert sorted(rows.values()) == [5, 5 + 2]
    assert (newest_number(kept, "a"), newest_number(kept, "b")) == (11, 7)
    assert dagster_storage.prune_events(kept, days=14) == 0


def test_thinning_leaves_other_assets_and_one_event_of_each_hour_or_day(kept, storage) -> None:
    for hours in (50, 49, 2, 1):
        observe(kept, storage, "ab", 6, f"{hours} hours")
    a = [pipeline_key("a")]
    assert dagster_storage.thin_events(kept, a, kept=3) == 24 - 3 - 3
    assert dagster_storage.thin_events(kept, a, kept=3) == 0
    rows = dict(storage.execute(NUMBER))
    assert rows == {pipeline_key("a").to_string(): 6, pipeline_key("b").to_string(): 24}
    days = storage.execute("SELECT count(DISTINCT date_trunc('day', timestamp)) FROM event_logs")[0][0]
    dagster_storage.thin_events(kept, a, kept=1, then_one_each=timedelta(days=1))
    assert days <= dict(storage.execute(NUMBER))[pipeline_key("a").to_string()] <= 1 + days
    assert newest_number(kept, "a") == 5


def test_monitor_thins_what_it_tells_each_minute(catalog, add_pipeline, kept, storage) -> None:
    add_pipeline("shop")
    for key in (OVERVIEW_KEY, pipeline_key("shop"), pipeline_key("other")):
        kept.report_runless_asset_event(AssetObservation(key))
    storage.execute(
        "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, asset_key) SELECT run_id, event,"
        " dagster_event_type, timestamp - interval '2 hours', asset_key FROM event_logs"
        " CROSS JOIN generate_series(1, 99)"
    )
    replication_monitor(build_sensor_context(instance=kept))
    rows = dict(storage.execute(NUMBER))
    assert rows.pop(pipeline_key("other").to_string()) == 100
    assert rows.pop(OVERVIEW_KEY.to_string()) in (30, 31)
    assert rows.pop(pipeline_key("shop").to_string()) in (dagster_storage.KEPT_EVENTS, dagster_storage.KEPT_EVENTS + 1)
    assert not rows


def test_old_finished_runs_go_with_their_events(kept, storage) -> None:
    @op
    def nothing() -> None: ...

    @job
    def small() -> None:
        nothing()

    runs = [small.execute_in_process(instance=kept).run_id for _ in range(2)]
    storage.execute("UPDATE runs SET create_timestamp = now() - interval '40 days' WHERE run_id = %s", (runs[0],))
    assert dagster_storage.prune_runs(kept, days=30) == 1
    assert kept.get_run_ids() == [runs[1]]
    assert storage.execute("SELECT count(*) FROM event_logs WHERE run_id = %s", (runs[0],)) == [(0,)]


def test_old_files_go_and_nothing_outside_is_touched(kept, tmp_path: Path) -> None:
    root = Path(kept.storage_directory())
    outside = tmp_path / "outside"
    outside.write_text("")
    old, young = root / "run" / "op" / "old", root / "run" / "young"
    old.parent.mkdir(parents=True)
    for path in (old, young):
        path.write_text("")
    (root / "link").symlink_to(outside)
    before = time.time() - 30 * 86_400
    for path in (old, outside, old.parent):
        os.utime(path, (before, before))
    assert dagster_storage.prune_files(kept, days=14) == 1
    assert young.exists()
    assert outside.exists()
    assert not old.exists()


def test_observations_go_by_their_settings(catalog) -> None:
    catalog.execute(
        "INSERT INTO system_metrics (subject, recorded_at) VALUES ('old', now() - interval '15 days'), ('young', now())"
    )
    catalog.execute(
        "INSERT INTO notification_log (key_notification, title, message, type, status) VALUES"
        " ('open', 't', 'm', 'ERROR', 'OPEN'), ('done', 't', 'm', 'ERROR', 'RESOLVED')"
    )
    catalog.execute("ALTER TABLE notification_log DISABLE TRIGGER USER")
    catalog.execute("UPDATE notification_log SET updated_at = now() - interval '100 days'")
    removed = {}
    for series in SERIES:
        with session_scope(catalog_engine()) as session:
            removed[series.table] = prune_series(session, series)
    assert {table: count for table, count in removed.items() if count} == {"system_metrics": 1, "notification_log": 1}
    assert catalog.execute("SELECT subject FROM system_metrics") == [("young",)]
    assert catalog.execute("SELECT key_notification FROM notification_log") == [("open",)]


def test_job_forgets_the_assets_of_removed_pipelines_only(catalog, add_pipeline, kept) -> None:
    add_pipeline("shop")
    for key in (pipeline_key("shop"), pipeline_key("removed"), AssetKey(["other", "asset"])):
        kept.report_runless_asset_event(AssetObservation(key))
    assert prune_job.execute_in_process(instance=kept).success
    assert set(kept.get_asset_keys()) == {pipeline_key("shop"), AssetKey(["other", "asset"])}


LASTING = {
    "history_schema_evolution": "the history of the tables is kept",
    "slot_recovery_plans": "one for each slot that was ever dropped",
    "reconciliation_tables": "goes with its reconciliation",
    "reconcile_fence_destinations": "goes with its fence",
    "reconcile_fence_keys": "goes with its fence",
}
"""Tables that grow with time and are not pruned by themselves, and why."""
CONFIGURATION = {
    "sources", "destinations", "pipelines", "pipeline_destinations", "pipelines_destination_table_sync", "tbltag_list",
    "pipelines_destination_table_sync_tag", "presets", "rosetta_setting_configuration", "pipeline_metadata",
    "pipelines_progress", "stream_offsets", "capture_offsets", "runner_leases", "table_metadata_list", "wal_monitor",
    "job_metrics_monitoring", "notification_channels", "schema_migrations",
}  # fmt: skip
"""One row a thing that is configured, or its present state."""
QUEUES = {"backfill_chunks", "backfills_paused", "dead_letter_queues", "dead_letter_tables"}
"""The backfill's and the dead letters' own."""


def test_every_table_that_grows_with_time_is_pruned_or_said_to_last(catalog) -> None:
    tables = {name for (name,) in catalog.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    pruned = {series.table for series in SERIES}
    assert pruned <= tables
    assert tables - pruned - set(LASTING) - CONFIGURATION - QUEUES == set()
