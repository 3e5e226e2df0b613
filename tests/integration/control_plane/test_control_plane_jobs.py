from __future__ import annotations

from pathlib import Path

import pytest
from dagster import RunConfig

from rosetta_dagster.jobs.configuration import ApplyConfig, apply_file
from rosetta_dagster.jobs.pipelines import (
    RefreshConfig,
    RemoveConfig,
    pause_pipeline,
    refresh_pipeline,
    remove_pipeline,
    start_pipeline,
)
from rosetta_dagster.jobs.sources import test_source

# A test only in the eyes of an operator.
test_source.__test__ = False  # type: ignore[attr-defined]

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


def failure(result):
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return event.event_specific_data.user_failure_data


def test_remove_asks_twice_and_refuses_what_runs(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop")
    assert "dry run: shop would be removed" in outcome(execute(remove_pipeline, instance, "shop"))
    assert status(catalog, "shop")[0] == "START"
    really = RunConfig({"remove": RemoveConfig(dry_run=False)})
    refused = failure(execute(remove_pipeline, instance, "shop", really, succeeds=False))
    assert "set to START" in refused.description
    execute(pause_pipeline, instance, "shop")
    removed = execute(remove_pipeline, instance, "shop", RunConfig({"remove": RemoveConfig(dry_run=False)}))
    # Neither its source nor its destination can be reached.
    assert "shop is removed" in outcome(removed)
    assert "things are left over" in outcome(removed)
    assert catalog.execute("SELECT count(*) FROM pipelines") == [(0,)]


def test_unknown_pipeline_is_one_clear_failure(catalog, instance) -> None:
    told = failure(execute(start_pipeline, instance, "gone", succeeds=False))
    assert "gone" in told.description
    assert told.metadata["error kind"].value == "not_found"


FILE = """
sources:
  shop:
    type: postgres
    host: 127.0.0.1
    port: 5434
    database: shop
    username: rosetta
    password: {password}
    tables: ["public.*"]
"""


def run_apply(instance, path: Path, *, dry_run: bool = True):
    config = RunConfig({"apply": ApplyConfig(path=str(path), dry_run=dry_run)})
    return apply_file.execute_in_process(instance=instance, run_config=config, raise_on_error=False)


def test_file_is_applied_only_when_told_to(catalog, instance, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "canary-word")
    path = tmp_path / "shop.yaml"
    path.write_text(FILE.replace("{password}", "{env: SHOP_PASSWORD}"))
    assert "nothing was changed: 1 to create" in outcome(run_apply(instance, path))
    assert catalog.execute("SELECT count(*) FROM sources") == [(0,)]
    result = run_apply(instance, path, dry_run=False)
    assert outcome(result).startswith("1 to create")
    assert catalog.execute("SELECT name FROM sources") == [("shop",)]
    assert "canary-word" not in str(result.all_events)


def test_literal_secret_is_refused_and_not_repeated(catalog, instance, tmp_path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(FILE.replace("{password}", "canary-word"))
    result = run_apply(instance, path, dry_run=False)
    assert not result.success
    assert "password" in failure(result).description
    assert "canary-word" not in str(result.all_events)
    assert catalog.execute("SELECT count(*) FROM sources") == [(0,)]


def test_unreachable_source_fails_with_its_reason(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop", port=9)
    instance.add_dynamic_partitions("sources", ["shop-source"])
    result = test_source.execute_in_process(instance=instance, partition_key="shop-source", raise_on_error=False)
    told = failure(result)
    assert "source shop-source" in told.description
    assert "canary-word" not in str(result.all_events)
