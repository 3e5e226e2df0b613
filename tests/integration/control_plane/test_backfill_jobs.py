"""Backfills from the Dagster pages: the queue's runs, what a run follows, and the jobs' verbs."""

from __future__ import annotations

import pytest
from dagster import SensorResult, SkipReason, build_sensor_context

from rosetta_dagster.jobs.backfills import BACKFILL_JOBS, progress_line
from rosetta_dagster.sensors.backfill_queue import backfill_queue

pytestmark = [pytest.mark.dagster, pytest.mark.pg]

JOBS = {job.name: job for job in BACKFILL_JOBS}
ORDERS = "shop|public.orders"


def execute(instance, job: str, partition: str, **config):
    instance.add_dynamic_partitions("tables" if "|" in partition else "pipelines", [partition])
    (operation,) = (node.name for node in JOBS[job].nodes)
    run_config = {"ops": {operation: {"config": config}}} if config else {}
    return JOBS[job].execute_in_process(
        instance=instance, partition_key=partition, run_config=run_config, raise_on_error=False
    )


def result_of(result) -> str:
    outputs = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    return str(outputs[-1].event_specific_data.metadata["result"].value)


def failure_of(result) -> str:
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return str(event.event_specific_data.user_failure_data.description)


def queue(catalog, status: str = "PENDING") -> int:
    ((identifier,),) = catalog.execute(
        "INSERT INTO queue_backfill_data (pipeline_id, pipeline_destination_id, source_id, schema_name, table_name, "
        "target_schema, target_table, status, started_at, finished_at) "
        "SELECT p.id, d.id, p.source_id, 'public', 'orders', 'public', 'orders', %s, "
        "CASE WHEN %s <> 'PENDING' THEN now() END, CASE WHEN %s IN ('COMPLETED', 'FAILED') THEN now() END "
        "FROM pipelines p JOIN pipeline_destinations d ON d.pipeline_id = p.id RETURNING id",
        (status, status, status),
    )
    return int(str(identifier))


def tick(instance) -> SensorResult | SkipReason:
    return backfill_queue(build_sensor_context(instance=instance))  # type: ignore[return-value]


def test_backfills_at_work_get_one_run_that_follows_them(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    assert str(tick(instance).skip_message) == "0 at work, 0 waiting"  # type: ignore[union-attr]
    identifier = queue(catalog)
    assert str(tick(instance).skip_message) == "0 at work, 1 waiting"  # type: ignore[union-attr]
    catalog.execute("UPDATE queue_backfill_data SET status = 'EXECUTING', started_at = now()")
    found = tick(instance)
    assert isinstance(found, SensorResult)
    (request,) = found.run_requests or []
    assert (request.run_key, request.partition_key) == (f"backfill {identifier}", ORDERS)
    assert request.run_config["ops"]["copy_table_again"]["config"] == {"backfill_id": identifier}
    (added,) = found.dynamic_partitions_requests or []
    assert list(added.partition_keys) == [ORDERS]
    assert str(tick(instance).skip_message) == "1 at work, 0 waiting"  # type: ignore[union-attr]


def test_a_run_ends_as_its_backfill_does(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    identifier = queue(catalog, "COMPLETED")
    done = execute(instance, "backfill_table", ORDERS, backfill_id=identifier)
    assert done.success
    assert result_of(done).startswith("public.orders: COMPLETED")
    failed = queue(catalog, "FAILED")
    catalog.execute("UPDATE queue_backfill_data SET is_error = true, error_message = 'why' WHERE id = %s", (failed,))
    result = execute(instance, "backfill_table", ORDERS, backfill_id=failed)
    assert "FAILED: why" in failure_of(result)


def test_a_filter_that_is_more_than_a_condition_is_refused(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    result = execute(instance, "backfill_table", ORDERS, filter="true; DROP TABLE orders")
    assert "one condition" in failure_of(result)
    assert catalog.execute("SELECT count(*) FROM queue_backfill_data") == [(0,)]


def test_resync_is_a_dry_run_unless_told_otherwise(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    result = execute(instance, "resync_table", ORDERS)
    assert result_of(result) == "dry run: resync of shop-warehouse: public.orders"
    assert catalog.execute("SELECT count(*) FROM queue_backfill_data") == [(0,)]


def test_rebuild_and_its_confirmation_are_dry_runs_unless_told_otherwise(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    # Nothing is known of a destination that cannot be reached.
    assert result_of(execute(instance, "rebuild_table", ORDERS)) == "dry run: rebuild of 1 targets, 0 cannot be"
    assert catalog.execute("SELECT count(*) FROM queue_backfill_data") == [(0,)]
    assert result_of(execute(instance, "confirm_rebuild", "shop")) == "dry run: 0 old tables are kept"
    assert "keeps no old table" in failure_of(execute(instance, "confirm_rebuild", "shop", dry_run=False))
    queue(catalog, "COMPLETED")
    catalog.execute("UPDATE queue_backfill_data SET mode = 'REBUILD', kept_table = '_rosetta_kept_1.orders'")
    assert result_of(execute(instance, "confirm_rebuild", "shop")) == "dry run: 1 old tables are kept"
    assert catalog.execute("SELECT kept_table FROM queue_backfill_data") == [("_rosetta_kept_1.orders",)]


def test_cancel_and_list(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    identifier = queue(catalog)
    assert result_of(execute(instance, "list_backfills", "shop")) == "1 open, 1 in all"
    assert result_of(execute(instance, "cancel_backfills", "shop", ids=[identifier])) == "1 backfills cancelled"
    assert catalog.execute("SELECT status FROM queue_backfill_data") == [("CANCELLED",)]
    assert "no open backfill" in failure_of(execute(instance, "cancel_backfills", "shop"))


def test_progress_reads_like_a_line() -> None:
    one = {"target": "public.orders", "status": "EXECUTING", "rows": 10, "total": 40, "percent": 25.0,
           "eta_seconds": 30, "note": None}  # fmt: skip
    assert progress_line(one) == "public.orders: EXECUTING, 10 of about 40 rows (25 %), 30 s left"
