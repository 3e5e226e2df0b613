from __future__ import annotations

import pytest
from dagster import RunConfig

from rosetta_dagster.jobs.pipelines import RefreshConfig, pause_pipeline, refresh_pipeline, start_pipeline

pytestmark = [pytest.mark.dagster, pytest.mark.pg]


def execute(job, instance, name: str, config: RunConfig | None = None, *, succeeds: bool = True):
    instance.add_dynamic_partitions("pipelines", [name])
    result = job.execute_in_process(
        instance=instance, partition_key=name, run_config=config or RunConfig(), raise_on_error=False
    )
    assert result.success is succeeds
    return result


def outcome(result) -> str:
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    return str(event.event_specific_data.metadata["result"].value)


def status(catalog, name: str) -> tuple[str, str]:
    rows = catalog.execute(
        "SELECT p.status, m.status FROM pipelines p JOIN pipeline_metadata m ON m.pipeline_id = p.id WHERE name = %s",
        (name,),
    )
    (row,) = rows
    return row[0], row[1]


def test_pause_and_start_change_the_pipeline_of_the_partition(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    add_pipeline("other")
    assert outcome(execute(pause_pipeline, instance, "shop")) == "shop is set to PAUSE"
    assert status(catalog, "shop") == ("PAUSE", "PAUSED")
    assert status(catalog, "other")[0] == "START"
    execute(start_pipeline, instance, "shop")
    assert status(catalog, "shop")[0] == "START"
    assert outcome(execute(start_pipeline, instance, "shop")) == "shop was set to START already"


def test_refresh_changes_nothing_unless_told_to(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop", ("orders", "customers"))
    assert "2 tables would be copied again" in outcome(execute(refresh_pipeline, instance, "shop"))
    assert status(catalog, "shop")[0] == "START"
    execute(refresh_pipeline, instance, "shop", RunConfig({"refresh": RefreshConfig(dry_run=False)}))
    assert status(catalog, "shop")[0] == "REFRESH"


def test_unknown_pipeline_is_one_clear_failure(catalog, instance) -> None:
    result = execute(start_pipeline, instance, "gone", succeeds=False)
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    failure = event.event_specific_data.user_failure_data
    assert failure.description.startswith("there is no pipeline 'gone'")
    assert failure.metadata["kind"].value == "not_found"
