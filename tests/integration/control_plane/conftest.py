"""A config database with pipelines, and the control plane of this process pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, JobDefinition
from dagster._core.test_utils import instance_for_test

from cdc_runner.catalog.database import open_catalog
from rosetta_dagster.control_plane import build_definitions, fetch_catalog
from rosetta_dagster.resources.catalog import catalog_engine
from tests.support.catalog import KEY, store_pipeline
from tests.support.servers import Database

AddPipeline = Callable[..., int]


@pytest.fixture
def catalog(config_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """An empty, migrated config database that CONFIG_DATABASE_URL names."""
    monkeypatch.setenv("CONFIG_DATABASE_URL", config_database.url())
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", KEY)
    monkeypatch.setenv("ROSETTA_HOME", str(tmp_path / "home"))
    open_catalog(config_database.url()).dispose()
    catalog_engine.cache_clear()
    yield config_database
    if catalog_engine.cache_info().currsize:
        catalog_engine().dispose()
    catalog_engine.cache_clear()


@pytest.fixture
def add_pipeline(catalog: Database) -> AddPipeline:
    """A factory of pipelines with one destination, whose tables stream; returns the id."""
    return lambda name, tables=("orders",), **state: store_pipeline(catalog.url(), name, tables, **state)


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    """A Dagster instance with storage on disk."""
    with instance_for_test() as instance:
        yield instance


@pytest.fixture
def launch(catalog, instance, monkeypatch):
    """Launch a job by its name, with the configuration of its one operation; return its result metadata."""
    monkeypatch.setenv("ANY_PASSWORD", "canary-word")
    jobs: dict[str, JobDefinition] = {job.name: job for job in build_definitions(fetch_catalog()).jobs or []}  # type: ignore[misc]

    def run(name: str, partition: str | None = None, /, *, succeeds: bool = True, **config: Any) -> dict[str, Any]:
        job = jobs[name]
        (operation,) = [node.name for node in job.nodes]
        if partition is not None:
            assert job.partitions_def is not None
            instance.add_dynamic_partitions(str(job.partitions_def.name), [partition])  # type: ignore[attr-defined]
        run_config = {"ops": {operation: {"config": config}}} if config else {}
        result = job.execute_in_process(
            instance=instance, partition_key=partition, run_config=run_config, raise_on_error=False
        )
        assert "canary-word" not in str(result.all_events) + str(result.dagster_run.run_config)
        if not result.success:
            assert not succeeds, result.all_events
            (event,) = [one for one in result.all_events if one.event_type_value == "STEP_FAILURE"]
            failed: Any = event.event_specific_data
            return {"failure": failed.user_failure_data.description}
        assert succeeds
        (event,) = [one for one in result.all_events if one.event_type_value == "STEP_OUTPUT"]
        output: Any = event.event_specific_data
        return {key: value.value for key, value in output.metadata.items() if hasattr(value, "value")}

    return run
