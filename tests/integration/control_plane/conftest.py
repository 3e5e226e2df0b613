"""A config database with pipelines, and the control plane of this process pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._core.test_utils import instance_for_test
from sqlalchemy import text

from cdc_runner.catalog.database import open_catalog, session_scope
from cdc_runner.catalog.models import Destination, Pipeline, PipelineDestination, Source
from cdc_runner.catalog.reporting import report_position, report_state, report_table_state
from cdc_runner.schema import TableId
from cdc_runner.spec import ResolvedSync
from rosetta_dagster.resources.catalog import catalog_engine
from tests.support.servers import Database

AddPipeline = Callable[..., int]


@pytest.fixture
def catalog(config_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """An empty, migrated config database that CONFIG_DATABASE_URL names."""
    monkeypatch.setenv("CONFIG_DATABASE_URL", config_database.url())
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


def store_pipeline(
    url: str, name: str, tables: tuple[str, ...] = ("orders",), *, state: str = "RUNNING", lag_ms: int = 80
) -> int:
    engine = open_catalog(url)
    try:
        with session_scope(engine) as session:
            source = Source(
                name=f"{name}-source", host="127.0.0.1", port=5434, database_name="shop", username="rosetta",
                password="00000000.aaaa", publication_name="rosetta", slot_name=name.replace("-", "_").lower(),
                table_patterns=["public.*"],
            )  # fmt: skip
            destination = Destination(
                name=f"{name}-warehouse", type="postgres",
                config={"host": "127.0.0.1", "port": 5435, "database": "dwh", "username": "rosetta"},
            )  # fmt: skip
            pipeline = Pipeline(name=name, source=source, status="START")
            link = PipelineDestination(destination=destination)
            pipeline.destinations.append(link)
            session.add(pipeline)
            session.flush()
            report_state(session, pipeline.id, state)  # type: ignore[arg-type]
            report_position(
                session, pipeline_id=pipeline.id, pipeline_destination_id=link.id, captured_lsn=300, applied_lsn=300,
                acknowledged_lsn=200, lag_bytes=0, lag_ms=lag_ms, commit_time=session.scalar(text("SELECT now()")),
            )  # fmt: skip
            for table in tables:
                sync = ResolvedSync(None, TableId("public", table), TableId("public", table))
                report_table_state(session, link.id, sync, "STREAMING", snapshot_lsn=100, loaded_rows=10)
            return pipeline.id
    finally:
        engine.dispose()
