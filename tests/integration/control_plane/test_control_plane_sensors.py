from __future__ import annotations

import json

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetMaterialization,
    AssetObservation,
    AssetSelection,
    DagsterInstance,
    Definitions,
    SensorResult,
    SkipReason,
    build_sensor_context,
    define_asset_job,
)

from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.leases import report_runner
from cdc_runner.catalog.settings import set_setting
from rosetta_dagster.assets.overview import OVERVIEW_KEY
from rosetta_dagster.assets.specs import pipeline_key, table_key
from rosetta_dagster.checks.pipelines import DOCTOR
from rosetta_dagster.control_plane import build_definitions, fetch_catalog
from rosetta_dagster.jobs.reconcile import RECONCILIATION
from rosetta_dagster.resources import webserver
from rosetta_dagster.resources.catalog import catalog_engine
from rosetta_dagster.sensors.pipeline_refresh_check import build_pipeline_refresh_check
from rosetta_dagster.sensors.replication_monitor import replication_monitor
from rosetta_dagster.sensors.runner_alive import runner_alive
from rosetta_dagster.sensors.table_list_refresh import table_list_refresh

pytestmark = [pytest.mark.dagster, pytest.mark.pg]


def evaluate(sensor, instance: DagsterInstance, cursor: str | None = None) -> SensorResult:
    result = sensor(build_sensor_context(instance=instance, cursor=cursor))
    assert isinstance(result, SensorResult), result
    return result


def reason(result: SensorResult) -> str:
    skipped = result.skip_reason
    return (skipped.skip_message if isinstance(skipped, SkipReason) else skipped) or ""


def test_missing_runner_is_started_once_and_a_living_one_is_left(catalog, instance) -> None:
    first = evaluate(runner_alive, instance)
    assert [request.run_key for request in first.run_requests or []] == [
        f"start_runner:{json.loads(first.cursor or '')['began_at']:.0f}:1"
    ]
    second = evaluate(runner_alive, instance, first.cursor)
    assert not second.run_requests
    assert "attempt 2 in" in reason(second)
    with session_scope(catalog_engine()) as session:
        report_runner(session, "other:1:x", "RUNNING", host="other", pid=1, health_port=8001)
    third = evaluate(runner_alive, instance, second.cursor)
    assert not third.run_requests
    assert "runner RUNNING on other" in reason(third)


def test_runner_whose_process_is_gone_is_started_before_its_heartbeat_is_old(catalog, instance) -> None:
    import socket

    with session_scope(catalog_engine()) as session:
        report_runner(session, "here:1:x", "RUNNING", host=socket.gethostname(), pid=2**22 + 5)
    assert not evaluate(runner_alive, instance).run_requests
    catalog.execute("UPDATE runner_heartbeats SET heartbeat_at = now() - interval '12 s'")
    assert evaluate(runner_alive, instance).run_requests


def test_runner_is_not_started_when_it_is_not_wanted(catalog, instance) -> None:
    with session_scope(catalog_engine()) as session:
        set_setting(session, "runner_auto_start", "false")
    assert not evaluate(runner_alive, instance).run_requests


def test_sensors_skip_with_a_reason_while_the_config_database_is_away(monkeypatch, instance, tmp_path) -> None:
    monkeypatch.setenv("ROSETTA_HOME", str(tmp_path))
    monkeypatch.setenv("CONFIG_DATABASE_URL", "postgresql://rosetta:hidden-word@127.0.0.1:9/rosetta")
    catalog_engine.cache_clear()
    for sensor in (runner_alive, replication_monitor, table_list_refresh, build_pipeline_refresh_check("x")):
        result = sensor(build_sensor_context(instance=instance))
        assert isinstance(result, SkipReason)
        assert "config database is not usable" in (result.skip_message or "")
        assert "hidden-word" not in (result.skip_message or "")


def test_monitor_materializes_what_keeps_up_and_observes_what_does_not(catalog, add_pipeline, instance) -> None:
    add_pipeline("good", ("orders", "odd/na me"))
    add_pipeline("slow", lag_ms=500_000)
    add_pipeline("paused", state="PAUSED")
    result = evaluate(replication_monitor, instance)
    events = {event.asset_key: event for event in result.asset_events if not isinstance(event, AssetCheckEvaluation)}
    assert isinstance(events[pipeline_key("good")], AssetMaterialization)
    assert isinstance(events[pipeline_key("slow")], AssetObservation)
    assert isinstance(events[pipeline_key("paused")], AssetObservation)
    table = events[table_key("good", "good-warehouse", "public", "odd/na me")]
    assert isinstance(table, AssetMaterialization)
    numbers = {name: value.value for name, value in table.metadata.items()}
    assert numbers["rows loaded"] == 10
    assert numbers["lag ms"] == 80
    assert numbers["applied position"] == "0/12C"
    assert events[pipeline_key("slow")].metadata["lag ms"].value == 500_000
    assert reason(result) == "3 pipelines: 1 PAUSED, 2 RUNNING; 4 tables: 4 STREAMING; worst lag 500,000 ms (slow)"
    failed = {
        (event.asset_key, event.check_name)
        for event in result.asset_events
        if isinstance(event, AssetCheckEvaluation) and not event.passed
    }
    assert failed == {(pipeline_key("slow"), "lag_within_objective"), (pipeline_key("paused"), "pipeline_runs")}
    checked = [one.asset_key for one in result.asset_events if isinstance(one, AssetCheckEvaluation) and one.passed]
    assert table.asset_key in checked
    again = evaluate(replication_monitor, instance, result.cursor)
    told = {event.asset_key: event for event in again.asset_events}
    assert set(told) == {OVERVIEW_KEY, *(pipeline_key(name) for name in ("good", "slow", "paused"))}
    assert told[pipeline_key("good")].metadata["rows per second"].value == 0.0


def rows_of(event, name: str):
    return [record.data for record in event.metadata[name].records]


def test_overview_shows_rows_by_day_and_the_worst_first(catalog, add_pipeline, instance) -> None:
    identifier = add_pipeline("good")
    add_pipeline("slow", lag_ms=500_000)
    # The day is cut in the time zone of the settings, seven hours ahead of the storage.
    catalog.execute(
        "INSERT INTO rosetta_setting_configuration (config_key, config_value) VALUES ('timezone', 'Asia/Jakarta')"
    )
    for moment, rows in (
        ("date_trunc('day', now(), 'Asia/Jakarta')", 5),
        ("date_trunc('day', now(), 'Asia/Jakarta') - interval '1 minute'", 70),
        ("date_trunc('day', now(), 'Asia/Jakarta') - interval '25 hours'", 900),
    ):
        catalog.execute(
            "INSERT INTO data_flow_record_monitoring"
            " (pipeline_id, pipeline_destination_id, source_id, table_name, record_count, recorded_at)"
            f" SELECT p.id, d.id, p.source_id, 'public.orders', {rows}, {moment}"
            " FROM pipelines p JOIN pipeline_destinations d ON d.pipeline_id = p.id WHERE p.id = %s",
            (identifier,),
        )
    (event,) = [one for one in evaluate(replication_monitor, instance).asset_events if one.asset_key == OVERVIEW_KEY]
    assert (event.metadata["rows today"].value, event.metadata["rows yesterday"].value) == (5, 70)
    assert event.metadata["worst lag ms"].value == 500_000
    records = rows_of(event, "pipelines")
    assert [(record["pipeline"], record["rows today"]) for record in records] == [("slow", 0), ("good", 5)]
    why = "slow-warehouse: 500,000 ms behind the source"
    assert rows_of(event, "needs attention") == [{"pipeline": "slow", "check": "lag_within_objective", "why": why}]
    (busiest,) = rows_of(event, "busiest tables today")
    assert busiest == {"pipeline": "good", "table": "public.orders", "rows": 5}


def test_monitor_records_that_it_has_run(catalog, add_pipeline, instance) -> None:
    evaluate(replication_monitor, instance)
    assert catalog.execute("SELECT key_job_scheduler, is_error FROM job_metrics_monitoring") == [
        ("replication_monitor", False)
    ]


def test_pickers_follow_the_pipelines(catalog, add_pipeline, instance) -> None:
    instance.add_dynamic_partitions("pipelines", ["removed"])
    add_pipeline("shop-copy")
    for sensor in (table_list_refresh, build_pipeline_refresh_check("x")):
        requests = evaluate(sensor, instance).dynamic_partitions_requests or []
        told = [(request.partitions_def_name, type(request).__name__, list(request.partition_keys))
                for request in requests]  # fmt: skip
        assert told == [
            ("pipelines", "AddDynamicPartitionsRequest", ["shop-copy"]),
            ("pipelines", "DeleteDynamicPartitionsRequest", ["removed"]),
            ("sources", "AddDynamicPartitionsRequest", ["shop-copy-source"]),
            ("destinations", "AddDynamicPartitionsRequest", ["shop-copy-warehouse"]),
            ("tables", "AddDynamicPartitionsRequest", ["shop-copy|public.orders"]),
        ]


def test_names_that_stay_the_same_are_neither_read_nor_asked_for(catalog, add_pipeline, instance, monkeypatch) -> None:
    add_pipeline("shop")
    sensor = build_pipeline_refresh_check("x")
    asked: list[str] = []
    ask = instance.get_dynamic_partitions

    def note(picker: str) -> list[str]:
        asked.append(picker)
        return list(ask(picker))

    monkeypatch.setattr(instance, "get_dynamic_partitions", note)
    first = evaluate(sensor, instance)
    assert first.dynamic_partitions_requests and asked
    asked.clear()
    second = evaluate(sensor, instance, first.cursor)
    assert (second.dynamic_partitions_requests or [], asked) == ([], [])
    assert reason(second).startswith("1 pipelines")
    add_pipeline("wares")
    third = evaluate(sensor, instance, second.cursor)
    requests = third.dynamic_partitions_requests or []
    added = {request.partitions_def_name: list(request.partition_keys) for request in requests}
    assert added["pipelines"] == ["shop", "wares"]  # Dagster was given neither in this test


def test_new_pipeline_reloads_the_definitions_once(catalog, add_pipeline, instance, monkeypatch) -> None:
    add_pipeline("first")
    loaded = fetch_catalog().fingerprint
    sensor = build_pipeline_refresh_check(loaded)
    reloads: list[str] = []
    module = "rosetta_dagster.sensors.pipeline_refresh_check"
    monkeypatch.setattr(f"{module}.reload_definitions", reloads.append)
    monkeypatch.setenv(webserver.URL_VARIABLE, "http://127.0.0.1:1")
    result = evaluate(sensor, instance)
    add_pipeline("second")
    for _ in range(3):
        result = evaluate(sensor, instance, result.cursor)
    assert reloads == ["http://127.0.0.1:1"]
    assert fetch_catalog().fingerprint != loaded


def test_progress_does_not_look_like_a_change_of_the_catalog(catalog, add_pipeline) -> None:
    add_pipeline("shop")
    before = fetch_catalog().fingerprint
    catalog.execute("UPDATE pipelines_destination_table_sync SET applied_rows = 5, load_state = 'LOADING'")
    catalog.execute("UPDATE stream_offsets SET applied_lsn = 9999")
    catalog.execute("UPDATE pipelines SET status = 'PAUSE'")
    assert fetch_catalog().fingerprint == before


def test_failed_reload_is_told_and_tried_again_later(catalog, add_pipeline, instance, monkeypatch) -> None:
    add_pipeline("first")
    # Nothing listens on the discard port.
    monkeypatch.setenv(webserver.URL_VARIABLE, "http://127.0.0.1:9")
    sensor = build_pipeline_refresh_check("other")
    first = evaluate(sensor, instance)
    second = evaluate(sensor, instance, first.cursor)
    assert "did not reload" in reason(second)
    assert "when it is quiet" in reason(evaluate(sensor, instance, second.cursor))


def test_checks_are_executed_on_demand(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    add_pipeline("slow", lag_ms=500_000)
    definitions = build_definitions(fetch_catalog())
    job = define_asset_job("checks", selection=AssetSelection.all_asset_checks())
    resolved = Definitions.merge(definitions, Definitions(jobs=[job])).resolve_job_def("checks")
    result = resolved.execute_in_process(instance=instance)
    outcome = {(one.asset_key.path[-1], one.check_name): one.passed for one in result.get_asset_check_evaluations()}
    assert len(outcome) == 15
    # Nothing listens where the sources should be, so the doctor finds errors, and nothing can be compared.
    assert {key for key, passed in outcome.items() if not passed} == {
        ("slow", "lag_within_objective"), ("shop", DOCTOR), ("slow", DOCTOR),
        ("shop", RECONCILIATION), ("slow", RECONCILIATION)}  # fmt: skip
