"""Dagster's storage of sensors and ticks: it asks little, and tells the same as the one that it stands for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from dagster import DagsterInvariantViolationError
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster_postgres import PostgresScheduleStorage
from sqlalchemy import event

from rosetta_dagster.resources import lean_schedule_storage
from rosetta_dagster.resources.lean_schedule_storage import LeanScheduleStorage
from tests.support.servers import Database, PostgresServer

pytestmark = [pytest.mark.dagster, pytest.mark.pg]

DAY_SECONDS = 86_400.0


@pytest.fixture
def database(config_server: PostgresServer) -> Iterator[Database]:
    made = config_server.create_database("test_lean_dagster")
    yield made
    config_server.drop_database(made.name)


@pytest.fixture
def storage(database: Database) -> LeanScheduleStorage:
    return LeanScheduleStorage(database.url())


@contextmanager
def statements(storage: PostgresScheduleStorage) -> Iterator[list[str]]:
    """Yield the statements that the storage sends."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(storage._engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(storage._engine, "before_cursor_execute", note)


def state_of(sensor: str, cursor: str = "") -> InstigatorState:
    location = GrpcServerCodeLocationOrigin(host="code", port=4000, location_name="rosetta")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), sensor)
    return InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData(cursor=cursor))


def tick_of(state: InstigatorState, at: float, status: TickStatus = TickStatus.SKIPPED) -> TickData:
    return TickData(
        state.instigator_origin_id, state.instigator_name, InstigatorType.SENSOR, status, at,
        selector_id=state.selector_id,
    )  # fmt: skip


def tick(storage: PostgresScheduleStorage, sensor: str, cursor: str) -> None:
    """What the daemon does for a tick that launches nothing."""
    state = state_of(sensor, cursor)
    assert storage.get_instigator_state(state.instigator_origin_id, state.selector_id) is not None
    storage.update_instigator_state(state)
    made = storage.create_tick(tick_of(state, time.time(), TickStatus.STARTED))
    storage.update_tick(made.with_status(TickStatus.SKIPPED))
    storage.update_instigator_state(state)
    for statuses in ([TickStatus.SKIPPED, TickStatus.STARTED], [TickStatus.SUCCESS], [TickStatus.FAILURE]):
        storage.purge_ticks(state.instigator_origin_id, state.selector_id, time.time() - DAY_SECONDS, statuses)


def test_a_tick_takes_a_few_statements_where_it_took_dozens(storage, database) -> None:
    storage.add_instigator_state(state_of("wal_monitor"))
    tick(storage, "wal_monitor", "1")
    with statements(storage) as sent:
        tick(storage, "wal_monitor", "2")
    assert not [one for one in sent if "pg_catalog" in one]
    assert len(sent) <= 8
    plain = PostgresScheduleStorage(database.url())
    with statements(plain) as usual:
        tick(plain, "wal_monitor", "3")
    assert len(usual) > 3 * len(sent)


def test_what_it_stores_is_what_the_usual_one_reads(storage, database) -> None:
    storage.add_instigator_state(state_of("wal_monitor"))
    tick(storage, "wal_monitor", "the cursor")
    plain, state = PostgresScheduleStorage(database.url()), state_of("wal_monitor", "the cursor")
    assert plain.get_instigator_state(state.instigator_origin_id, state.selector_id) == state
    assert plain.all_instigator_state(instigator_type=InstigatorType.SENSOR) == [state]
    assert [one.status for one in plain.get_ticks(state.instigator_origin_id, state.selector_id)] == [
        TickStatus.SKIPPED
    ]
    rows = database.execute("SELECT job_body = instigator_body FROM jobs JOIN instigators USING (selector_id)")
    assert rows == [(True,)]


def test_the_state_of_an_unknown_sensor_is_refused(storage) -> None:
    with pytest.raises(DagsterInvariantViolationError):
        storage.update_instigator_state(state_of("nobody"))


def test_old_ticks_go_at_once_and_then_now_and_again(storage, monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of("wal_monitor")
    storage.add_instigator_state(state)

    def make_and_purge(sensor: InstigatorState = state) -> int:
        storage.create_tick(tick_of(sensor, time.time() - 2 * DAY_SECONDS))
        storage.create_tick(tick_of(sensor, time.time()))
        before, statuses = time.time() - DAY_SECONDS, [TickStatus.SKIPPED]
        storage.purge_ticks(sensor.instigator_origin_id, sensor.selector_id, before, statuses)
        return len(storage.get_ticks(sensor.instigator_origin_id, sensor.selector_id))

    assert make_and_purge() == 1
    assert make_and_purge() == 3  # the old one stays for a while
    assert make_and_purge(state_of("schema_monitor")) == 1  # each sensor has its own turn
    monkeypatch.setattr(lean_schedule_storage, "PURGE_SECONDS", 0.0)
    assert make_and_purge() == 3
