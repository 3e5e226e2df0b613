"""The pool under Dagster's storage: few connections, and no tick lost when the server has closed one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, AssetObservation, DagsterInstance
from dagster._core.test_utils import instance_for_test

from rosetta_dagster.resources import pooled_storage
from tests.support.servers import Database, PostgresServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.dagster, pytest.mark.pg]

ROOT = Path(__file__).parents[3]
KEY = AssetKey(["rosetta", "shop"])


@pytest.fixture
def storage(config_server: PostgresServer) -> Iterator[Database]:
    database = config_server.create_database("test_pooled_dagster")
    yield database
    pooled_storage._engine(database.url()).dispose()
    # The next test has another database of this name.
    pooled_storage._with_tables.clear()
    config_server.drop_database(database.name)


@pytest.fixture
def instance(storage: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """An instance of the dagster.yaml that is delivered."""
    server = storage.server
    for name, value in (("HOST", server.host), ("PORT", server.port), ("USER", server.username),
                        ("PASSWORD", server.password), ("DB", storage.name)):  # fmt: skip
        monkeypatch.setenv(f"DAGSTER_PG_{name}", str(value))
    import yaml

    content = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    with instance_for_test(overrides={"storage": content["storage"]}) as instance:
        yield instance


def sessions(server: PostgresServer, database: str) -> int:
    rows = server.execute("SELECT pg_stat_force_next_flush(); SELECT sessions FROM pg_stat_database WHERE datname = %s",
                          (database,))  # fmt: skip
    return int(rows[0][0])


def test_events_take_few_connections_however_many_instances(instance: DagsterInstance, storage: Database) -> None:
    instance.report_runless_asset_event(AssetObservation(KEY))
    before = sessions(storage.server, storage.name)
    for _ in range(10):
        # As the code server makes one for each tick.
        with DagsterInstance.from_ref(instance.get_ref()) as another:
            another.report_runless_asset_event(AssetObservation(KEY))
            assert another.get_dynamic_partitions("pipelines") == []
    assert sessions(storage.server, storage.name) - before <= pooled_storage.KEPT
    assert len(instance.fetch_observations(KEY, limit=50).records) == 11


def _backends(storage: Database) -> int:
    rows = storage.server.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", (storage.name,))
    return int(rows[0][0])


def test_a_connection_that_the_server_has_closed_costs_nothing(instance: DagsterInstance, storage: Database) -> None:
    instance.report_runless_asset_event(AssetObservation(KEY))
    closed = storage.server.execute(
        "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s) t",
        (storage.name,),
    )
    assert closed[0][0] >= 1
    wait_for(lambda: not _backends(storage), 30, "the server to close them")
    instance.report_runless_asset_event(AssetObservation(KEY))
    assert len(instance.fetch_observations(KEY, limit=5).records) == 2


def test_all_parts_share_one_pool_and_the_webserver_has_its_own(instance: DagsterInstance) -> None:
    parts: tuple[Any, ...] = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
    assert len({id(part._engine) for part in parts}) == 1
    instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3600, max_overflow=20)
    assert len({id(part._engine) for part in parts}) == 3
    instance.report_runless_asset_event(AssetObservation(KEY))
