from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, cast

import pytest
from dagster import AssetCheckKey, AssetKey, RunConfig, RunRequest, build_schedule_context

from rosetta_dagster.assets.snapshot import snapshot_of_rows
from rosetta_dagster.checks.reconciliation import build_reconciliation_checks
from rosetta_dagster.jobs.reconcile import (
    RepairConfig,
    SelectionConfig,
    repair,
    report_metadata,
    severity,
    summary,
    verify,
    verify_daily,
)
from rosetta_dagster.resources.catalog import catalog_session
from rosetta_dagster.resources.catalog_rows import read_catalog_rows

pytestmark = [pytest.mark.dagster, pytest.mark.pg]

EQUAL: dict[str, Any] = {
    "pipeline": "shop",
    "outcome": "EQUAL",
    "position": "0/10",
    "problem": None,
    "seconds": 0.5,
    "tables": [
        {
            "destination": "warehouse", "source": "public.orders", "target": "shop.orders", "outcome": "EQUAL",
            "reason": None, "source_rows": 3, "target_rows": 3, "changed": 0, "missing": 0, "extra": 0, "key": ["id"],
            "samples": {}, "ranges": [], "all_listed": True, "left_out_columns": {}, "seconds": 0.1,
        }
    ],
}  # fmt: skip
DIFFERENT: dict[str, Any] = {
    **EQUAL,
    "outcome": "DIFFERENT",
    "tables": [{**EQUAL["tables"][0], "outcome": "DIFFERENT", "changed": 1, "samples": {"changed": [["7"]]}}],
}


def execute(job, instance, name: str, config: RunConfig | None = None):
    instance.add_dynamic_partitions("pipelines", [name])
    return job.execute_in_process(
        instance=instance, partition_key=name, run_config=config or RunConfig(), raise_on_error=False
    )


def failure(result):
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return event.event_specific_data.user_failure_data


def test_what_cannot_be_compared_is_never_called_equal(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    result = execute(verify, instance, "shop")
    assert not result.success
    assert "cannot connect" in failure(result).description
    (evaluation,) = evaluations(instance, "shop")
    assert (evaluation.check_name, evaluation.passed, evaluation.severity.value) == ("reconciliation", False, "WARN")
    assert catalog.execute("SELECT purpose, outcome FROM reconciliations") == [("VERIFY", "INCOMPLETE")]


def evaluations(instance, pipeline: str):
    key = AssetCheckKey(AssetKey(["rosetta", pipeline]), "reconciliation")
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=5)
    return [record.event.dagster_event.event_specific_data for record in records]


def test_a_part_of_a_pipeline_does_not_judge_the_whole(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    execute(verify, instance, "shop", RunConfig({"compare": SelectionConfig(tables=["public.orders"])}))
    assert evaluations(instance, "shop") == []


def test_repair_is_a_dry_run_unless_told_otherwise(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    assert RepairConfig().dry_run
    result = execute(repair, instance, "shop")
    assert result.success
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    assert event.event_specific_data.metadata["result"].value == "dry run: 0 rows would be fetched again"


def test_bounds_are_checked_by_the_run(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    result = execute(verify, instance, "shop", RunConfig({"compare": SelectionConfig(wait_seconds=0)}))
    assert "between 1 and 86400" in failure(result).description


def test_each_pipeline_has_the_check(catalog, add_pipeline) -> None:
    assert build_reconciliation_checks(snapshot_of_rows([], [], "")) == []
    add_pipeline("shop")
    with catalog_session() as session:
        rows = read_catalog_rows(session)
    (checks,) = build_reconciliation_checks(snapshot_of_rows(rows.pipelines, rows.tables, rows.fingerprint))
    assert [(key.asset_key.path, key.name) for key in checks.check_keys] == [(["rosetta", "shop"], "reconciliation")]


def test_the_schedule_is_off_and_takes_every_pipeline(instance) -> None:
    from datetime import UTC, datetime

    from dagster import DefaultScheduleStatus

    assert verify_daily.default_status is DefaultScheduleStatus.STOPPED
    instance.add_dynamic_partitions("pipelines", ["shop", "depot"])
    context = build_schedule_context(instance, scheduled_execution_time=datetime(2026, 1, 2, 2, 30, tzinfo=UTC))
    requests = cast(list[RunRequest], list(verify_daily(context)))  # type: ignore[arg-type]
    assert sorted(str(one.partition_key) for one in requests) == ["depot", "shop"]
    assert len({one.run_key for one in requests}) == 2


def test_reports_read_like_a_sentence() -> None:
    assert summary(EQUAL) == "1 tables are equal at 0/10"
    assert summary(DIFFERENT) == "1 of 1 tables differ: shop.orders"
    assert (severity(DIFFERENT).value, severity({**EQUAL, "outcome": "INCOMPLETE"}).value) == ("ERROR", "WARN")
    assert "differing keys" in report_metadata(DIFFERENT)
    assert "differing keys" not in report_metadata(EQUAL)


def test_the_code_server_does_not_load_the_engine_for_it() -> None:
    code = (
        "import sys, json, rosetta_dagster.control_plane; "
        "print(json.dumps([n for n in ('duckdb', 'pyarrow', 'jpype') if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == []
