"""What an operator sees without leaving the pages: state, tables, flow, loads, sources."""

from __future__ import annotations

import dagster
import pytest
from dagster import AssetMaterialization, AssetObservation, build_sensor_context

from rosetta_dagster.assets.overview import OVERVIEW_KEY
from rosetta_dagster.assets.specs import pipeline_key
from rosetta_dagster.sensors.replication_monitor import replication_monitor
from rosetta_dagster.sensors.run_failures import run_failures

pytestmark = [pytest.mark.dagster, pytest.mark.pg]


def rows(metadata_table) -> list[dict[str, object]]:
    return [dict(record.data) for record in metadata_table.records]


def load_half(catalog) -> None:
    """One of two tables is being loaded, half of its chunks are done."""
    catalog.execute("UPDATE pipelines_destination_table_sync SET load_state = 'LOADING' WHERE source_table = 'items'")
    catalog.execute(
        "INSERT INTO backfill_chunks (pipeline_destination_id, source_schema, source_table, target_schema,"
        " target_table, chunk_number, range_kind, snapshot_lsn, state)"
        " SELECT id, 'public', 'items', 'public', 'items', n, 'ctid', 1, CASE WHEN n < 3 THEN 'COMPLETED' ELSE"
        " 'PENDING' END FROM pipeline_destinations, generate_series(1, 4) n"
    )


def test_load_under_way_is_shown_with_its_progress(catalog, instance, add_pipeline) -> None:
    add_pipeline("shop", ("orders", "items"))
    load_half(catalog)
    catalog.execute("UPDATE stream_offsets SET batch_ms = 42")
    result = replication_monitor(build_sensor_context(instance=instance))
    told = [event for event in result.asset_events if isinstance(event, AssetMaterialization | AssetObservation)]  # type: ignore[union-attr]
    events = {event.asset_key: event for event in told}
    pipeline = events[pipeline_key("shop")]
    assert isinstance(pipeline, AssetObservation)
    assert pipeline.metadata["load percent"].value == 50.0
    assert "1 of 2 tables, 50 %" in str(pipeline.metadata["initial load"].value)
    assert pipeline.metadata["batch ms"].value == 42
    overview = events[OVERVIEW_KEY]
    assert isinstance(overview, AssetMaterialization)
    (load,) = rows(overview.metadata["initial loads"])
    assert load["%"] == 50.0 and load["tables"] == "1 of 2"


def test_overview_lists_the_sources_with_what_was_seen_last(catalog, instance, add_pipeline) -> None:
    for name in ("active", "bad", "idle", "new"):
        add_pipeline(name)
    for name, status, active, message in (
        ("active", "OK", True, None), ("bad", "ERROR", False, "the slot is lost"), ("idle", "OK", False, None),
    ):  # fmt: skip
        catalog.execute(
            "INSERT INTO wal_monitor (source_id, status, slot_active, error_message, retained_wal_bytes)"
            " SELECT id, %s, %s, %s, 1048576 FROM sources WHERE name = %s",
            (status, active, message, f"{name}-source"),
        )
    result = replication_monitor(build_sensor_context(instance=instance))
    (overview,) = [event for event in result.asset_events if getattr(event, "asset_key", None) == OVERVIEW_KEY]  # type: ignore[union-attr]
    shown = rows(overview.metadata["sources"])
    assert [(row["source"], row["state"]) for row in shown] == [
        ("bad-source", "ERROR"), ("active-source", "ACTIVE"), ("idle-source", "IDLE"), ("new-source", "UNKNOWN")
    ]  # fmt: skip
    assert shown[0]["problem"] == "the slot is lost" and shown[1]["WAL MB"] == 1.0


def test_jobs_show_state_tables_and_flow(catalog, launch, add_pipeline) -> None:
    add_pipeline("shop", ("orders", "items"))
    add_pipeline("billing", ("invoices",))
    load_half(catalog)
    catalog.execute(
        "UPDATE pipeline_destinations SET is_error = true, error_message = 'it is away' WHERE pipeline_id ="
        " (SELECT id FROM pipelines WHERE name = 'billing')"
    )
    status = launch("status")
    assert status["result"] == "2 pipelines, 2 destinations, 1 of them in error"
    assert status["previews on this host"] == "0 run, 0 wait for their turn"
    first, second = rows(status["destinations"])
    assert (first["destination"], first["state"], first["last error"]) == ("billing-warehouse", "ERROR", "it is away")
    assert second["load"] == "1 of 2 tables, 50.0 %"
    shown = launch("show_pipeline", "shop")
    assert [row["source"] for row in rows(shown["tables"])] == ["public.orders", "public.items"]
    catalog.execute(
        "INSERT INTO data_flow_record_monitoring (pipeline_id, pipeline_destination_id, source_id, table_name,"
        " record_count, recorded_at)"
        " SELECT p.id, pd.id, p.source_id, 'public.orders', 5, date_trunc('minute', now()) - n * interval '1 day'"
        " FROM pipelines p JOIN pipeline_destinations pd ON pd.pipeline_id = p.id, generate_series(0, 9) n"
        " WHERE p.name = 'shop'"
    )
    flow = launch("show_flow", "shop", days=3)
    assert flow["result"] == "15 rows of 1 tables in 3 days"
    (row,) = rows(flow["rows by day"])
    assert row["last 5 min"] == 5 and list(row.values()).count(5) == 4
    assert "between 1 and 30" in launch("show_flow", "shop", succeeds=False, days=31)["failure"]
    assert launch("list_sources")["result"] == "2 sources"
    (one, _) = rows(launch("list_destinations")["destinations"])
    assert "database=dwh" in str(one["options"]) and "canary" not in str(one)


def test_restart_raises_the_generation_of_a_pipeline_that_is_to_run(catalog, launch, add_pipeline) -> None:
    add_pipeline("shop")
    before = catalog.execute("SELECT generation FROM pipelines")[0][0]
    launch("restart_pipeline", "shop")
    assert catalog.execute("SELECT generation, status FROM pipelines") == [(before + 1, "START")]
    launch("pause_pipeline", "shop")
    assert "start it instead" in launch("restart_pipeline", "shop", succeeds=False)["failure"]


@dagster.op
def refuse() -> None:
    raise dagster.Failure("it cannot be")


@pytest.mark.parametrize(("job", "told"), [("verify", 1), ("preview", 0), ("test_source", 0)])
def test_failed_run_is_told_unless_it_answers_whoever_asked(catalog, instance, job: str, told: int) -> None:
    @dagster.job(name=job)
    def failing() -> None:
        refuse()

    result = failing.execute_in_process(instance=instance, raise_on_error=False)
    (event,) = [one for one in result.all_events if one.event_type_value == "PIPELINE_FAILURE"]
    context = dagster.build_run_status_sensor_context("run_failures", event, instance, result.dagster_run)
    run_failures(context.for_run_failure())
    found = catalog.execute("SELECT title, message FROM notification_log")
    assert len(found) == told
    if told:
        assert found[0][0] == "Run of verify failed" and found[0][1].startswith("it cannot be (run ")
