"""A config database with pipelines, and the control plane of this process pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._core.test_utils import instance_for_test

from cdc_runner.catalog.database import open_catalog
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
