"""Status, reports and leases, as the supervisor and the pipeline process use them."""

from __future__ import annotations

import json
import select
import threading

import psycopg2
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from cdc_runner.catalog import leases, reporting, table_reports
from cdc_runner.catalog import settings as setting
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.models import (
    DataFlowRecord,
    Destination,
    Pipeline,
    PipelineDestination,
    PipelineMetadata,
    RunnerLease,
    SchemaEvolution,
    Source,
    StreamOffset,
    TableSync,
)
from cdc_runner.catalog.pipelines import destination_place, load_pipeline, set_status
from cdc_runner.catalog.table_reports import TableReport
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.spec import PipelineSettings, ResolvedSync

pytestmark = pytest.mark.pg

ORDERS = ResolvedSync(None, TableId("public", "orders"), TableId("shop", "orders"))


def generation(engine: Engine, pipeline_id: int) -> int:
    with session_scope(engine) as session:
        return session.get_one(Pipeline, pipeline_id).generation


def test_a_pipeline_is_loaded_with_its_credentials(session: Session, pipeline_id: int, keyring: Keyring):
    session.add(TableSync(pipeline_destination_id=4001, table_name="public.orders", table_name_target="orders_eu"))
    session.flush()
    session.expire_all()
    spec = load_pipeline(session, pipeline_id, keyring)
    assert spec.source.address.password.get_secret_value() == "source-secret"
    assert spec.destinations[0].address.password.get_secret_value() == "target-secret"
    assert spec.destinations[0].schema == "shop"
    assert [(sync.table, sync.target) for sync in spec.destinations[0].syncs] == [("public.orders", "orders_eu")]
    assert spec.settings == PipelineSettings()
    assert "secret" not in repr(spec)


def test_resolved_tables_are_not_taken_for_declared_ones(session: Session, pipeline_id: int, keyring: Keyring):
    table_reports.report_table_states(session, 4001, [TableReport(ORDERS, "LOADING")])
    session.expire_all()
    assert load_pipeline(session, pipeline_id, keyring).destinations[0].syncs == ()


def test_a_wrong_key_stops_the_load(session: Session, pipeline_id: int):
    with pytest.raises(RosettaError) as caught:
        load_pipeline(session, pipeline_id, Keyring(b"x" * 32))
    assert caught.value.kind is ErrorKind.CREDENTIAL_UNREADABLE


def test_a_snowflake_destination_has_an_account_in_place_of_a_database(
    session: Session, pipeline_id: int, keyring: Keyring
):
    config = {"account": "A", "user": "U", "database": "D", "schema": "S", "merge_seconds": 30}
    lake = Destination(name="lake", type="snowflake", config=config)
    session.add(PipelineDestination(pipeline_id=pipeline_id, destination=lake))
    session.flush()
    with pytest.raises(RosettaError, match="lake has no private_key"):
        load_pipeline(session, pipeline_id, keyring)
    place = destination_place(lake.id, "private_key")
    lake.secrets = {"private_key": keyring.encrypt(SecretStr("canary-key"), place)}
    session.flush()
    session.expire_all()
    (spec,) = (one for one in load_pipeline(session, pipeline_id, keyring).destinations if one.name == "lake")
    assert (spec.snowflake.account, spec.snowflake.merge_seconds, spec.schema) == ("A", 30, "S")
    assert "canary" not in repr(spec)
    with pytest.raises(RosettaError, match="not a PostgreSQL database"):
        _ = spec.address


def test_a_missing_pipeline_is_named(session: Session, keyring: Keyring):
    with pytest.raises(RosettaError) as caught:
        load_pipeline(session, 77, keyring)
    assert caught.value.kind is ErrorKind.NOT_FOUND


def test_a_status_changes_both_tables_at_once(session: Session, pipeline_id: int):
    assert session.get_one(Pipeline, pipeline_id).status == "PAUSE"
    assert set_status(session, pipeline_id, "START")
    assert not set_status(session, pipeline_id, "START")
    reporting.report_state(session, pipeline_id, "RUNNING")
    assert set_status(session, pipeline_id, "PAUSE")
    session.expire_all()
    assert session.get_one(Pipeline, pipeline_id).status == "PAUSE"
    assert session.query(PipelineMetadata).one().status == "PAUSED"


def test_starting_again_after_an_error_raises_the_generation(engine: Engine, pipeline_id: int):
    with session_scope(engine) as session:
        set_status(session, pipeline_id, "START")
        reporting.report_state(session, pipeline_id, "ERROR", "the slot is gone")
    before = generation(engine, pipeline_id)
    with session_scope(engine) as session:
        assert session.query(PipelineMetadata).one().last_error == "the slot is gone"
        assert set_status(session, pipeline_id, "START")
    assert generation(engine, pipeline_id) == before + 1
    with session_scope(engine) as session:
        metadata = session.query(PipelineMetadata).one()
        assert (metadata.status, metadata.last_error) == ("PAUSED", None)


@pytest.mark.parametrize("word", ["STOP", "start", "", "RUNNING"])
def test_other_status_words_are_refused(session: Session, pipeline_id: int, word: str):
    with pytest.raises(RosettaError):
        set_status(session, pipeline_id, word)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(IntegrityError, match="pipelines_status_check"), session.begin_nested():
        session.execute(update(Pipeline).values(status=word))


def test_what_the_pipeline_reads_raises_its_generation(engine: Engine, pipeline_id: int):
    def changes(statement: str) -> int:
        before = generation(engine, pipeline_id)
        with engine.begin() as connection:
            connection.execute(text(statement))
        return generation(engine, pipeline_id) - before

    assert changes("UPDATE sources SET port = 5555") == 1
    assert changes("UPDATE sources SET port = 5555") == 0
    assert changes("UPDATE sources SET last_error = 'x', last_checked_at = now()") == 0
    assert changes("""UPDATE destinations SET config = config || '{"schema": "other"}'""") == 1
    assert changes("UPDATE destinations SET last_error = 'x'") == 0
    assert changes('UPDATE pipelines SET settings = \'{"load_workers": "2"}\'') == 1
    assert changes("UPDATE pipelines SET status = 'START'") == 0
    assert changes("UPDATE pipeline_destinations SET is_error = true, error_message = 'x'") == 0
    sync = (
        "INSERT INTO pipelines_destination_table_sync (pipeline_destination_id, table_name) VALUES (4001, 'public.a')"
    )
    assert changes(sync) == 1
    assert changes("UPDATE pipelines_destination_table_sync SET load_state = 'LOADING', applied_rows = 5") == 0
    assert changes("UPDATE pipelines_destination_table_sync SET table_name_target = 'b'") == 1
    assert changes("DELETE FROM pipelines_destination_table_sync") == 1
    assert changes("DELETE FROM pipeline_destinations") == 1


def test_a_change_is_notified(engine: Engine, catalog_url: URL, pipeline_id: int):
    connection = psycopg2.connect(
        host=catalog_url.host, port=catalog_url.port, user=catalog_url.username, password=catalog_url.password,
        dbname=catalog_url.database,
    )  # fmt: skip
    connection.autocommit = True
    connection.cursor().execute("LISTEN rosetta_catalog")
    with session_scope(engine) as session:
        set_status(session, pipeline_id, "START")
    assert select.select([connection], [], [], 10)[0]
    connection.poll()
    payload = json.loads(connection.notifies[0].payload)
    assert (payload["pipeline_id"], payload["status"]) == (pipeline_id, "START")
    connection.close()


def test_a_source_has_one_pipeline_and_a_slot_one_source(engine: Engine, pipeline_id: int):
    with pytest.raises(RosettaError, match="has a pipeline already") as caught, session_scope(engine) as session:
        session.add(Pipeline(name="second", source_id=1001))
    assert caught.value.kind is ErrorKind.CONFLICT
    with pytest.raises(RosettaError, match="slot"), session_scope(engine) as session:
        session.add(
            Source(
                name="twin",
                host="127.0.0.1",
                port=5434,
                database_name="other",
                username="u",
                password="00000000.AAAA",
                publication_name="p",
                slot_name="rosetta_shop",
                table_patterns=["public.*"],
            )
        )


def test_a_position_is_replaced(session: Session, pipeline_id: int):
    for lsn, lag in ((10, 5), (20, -3)):
        reporting.report_position(
            session, pipeline_id=pipeline_id, pipeline_destination_id=4001, captured_lsn=lsn + 2, applied_lsn=lsn + 1,
            acknowledged_lsn=lsn, lag_bytes=lag, lag_ms=lag,
        )  # fmt: skip
    row = session.query(StreamOffset).one()
    assert (row.captured_lsn, row.applied_lsn, row.acknowledged_lsn) == (22, 21, 20)
    assert (row.lag_bytes, row.lag_ms) == (0, 0)


def test_flow_is_added_up_by_table_and_minute(session: Session, pipeline_id: int):
    other = ResolvedSync(None, TableId("public", "orders"), TableId("shop", "orders_copy"))
    table_reports.report_flow(session, pipeline_id, 4001, {ORDERS: 3, other: 1})
    table_reports.report_flow(session, pipeline_id, 4001, {ORDERS: 4})
    table_reports.report_flow(session, pipeline_id, 4001, {ORDERS: 0})
    rows = {(row.target_table): row.applied_rows for row in session.query(TableSync)}
    assert rows == {"orders": 7, "orders_copy": 1}
    flow = session.query(DataFlowRecord).all()
    assert sum(row.record_count for row in flow) == 8
    assert len(flow) in (2, 3)  # three when the minute changed in between


def test_a_table_keeps_its_row_through_states(session: Session, pipeline_id: int):
    loading = TableReport(ORDERS, "LOADING", snapshot_lsn=99, loaded_rows=10)
    first = table_reports.report_table_states(session, 4001, [loading])
    failed = TableReport(ORDERS, "ERROR", error="no such type")
    assert table_reports.report_table_states(session, 4001, [loading, failed]) == first
    row = session.get_one(TableSync, first[ORDERS], populate_existing=True)
    assert (row.load_state, row.is_error, row.error_message, row.snapshot_lsn) == ("ERROR", True, "no such type", 99)
    table_reports.report_table_states(session, 4001, [TableReport(ORDERS, "STREAMING")])
    row = session.get_one(TableSync, first[ORDERS], populate_existing=True)
    assert (row.load_state, row.is_error, row.loaded_rows) == ("STREAMING", False, 10)
    table_reports.forget_tables(session, 4001, [])
    session.flush()
    assert session.query(TableSync).count() == 0


def test_a_destination_error_is_set_and_cleared(session: Session, pipeline_id: int):
    reporting.report_destination_error(session, 4001, RosettaError(ErrorKind.DESTINATION_UNAVAILABLE, "host is down"))
    row = session.get_one(PipelineDestination, 4001, populate_existing=True)
    assert (row.is_error, row.error_kind, row.error_message) == (True, "destination_unavailable", "host is down")
    reporting.clear_destination_error(session, 4001)
    row = session.get_one(PipelineDestination, 4001, populate_existing=True)
    assert (row.is_error, row.error_message) == (False, "host is down")


def table_schema(*columns: str) -> TableSchema:
    made = tuple(Column(name, "text", "text") for name in columns)
    return TableSchema(TableId("public", "orders"), made, (columns[0],), (columns[0],), ReplicaIdentity.DEFAULT)


def test_schema_changes_get_versions(session: Session, pipeline_id: int):
    table = TableId("public", "orders")
    one, wide = table_schema("id"), table_schema("id", *(f"column_{number}" for number in range(1599)))
    assert reporting.record_schema_change(session, 1001, table, "new table", None, one) == 1
    assert reporting.record_schema_change(session, 1001, table, "add column", one, wide, lsn=7) == 2
    assert reporting.record_schema_change(session, 1001, TableId("public", "other"), "new table", None, one) == 1
    history = session.query(SchemaEvolution).order_by(SchemaEvolution.id).all()
    assert history[1].schema_table_old == reporting.schema_to_json(one)
    assert history[1].schema_table_new is not None
    assert len(history[1].schema_table_new["columns"]) == 1600


def test_one_of_many_gets_the_lease(engine: Engine, pipeline_id: int):
    barrier = threading.Barrier(8)
    taken: list[leases.Lease | None] = []

    def run(number: int) -> None:
        barrier.wait(20)
        with session_scope(engine) as session:
            taken.append(leases.acquire(session, pipeline_id, f"runner-{number}", 30))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(taken) == 8
    assert sum(lease is not None for lease in taken) == 1


def test_an_expired_lease_can_be_taken_and_fences_the_old_holder(session: Session, pipeline_id: int):
    first = leases.acquire(session, pipeline_id, "one", 30)
    assert first is not None
    assert leases.acquire(session, pipeline_id, "two", 30) is None
    session.execute(update(RunnerLease).values(expires_at=text("now() - interval '1 second'")))
    second = leases.acquire(session, pipeline_id, "two", 30)
    assert second is not None
    assert second.epoch > first.epoch
    assert not leases.renew(session, first, 30)
    assert not leases.release(session, first)
    assert leases.renew(session, second, 30)
    holder = leases.current_holder(session, pipeline_id)
    assert holder is not None
    assert holder.holder == "two"


def test_a_released_lease_is_free_and_its_epoch_goes_on(session: Session, pipeline_id: int):
    first = leases.acquire(session, pipeline_id, "one", 30)
    assert first is not None
    assert leases.release(session, first)
    assert leases.current_holder(session, pipeline_id) is None
    second = leases.acquire(session, pipeline_id, "two", 30)
    assert second is not None
    assert second.epoch == first.epoch + 1


def test_a_removed_pipeline_gives_no_lease(session: Session):
    assert leases.acquire(session, 77, "one", 30) is None


def test_live_runners(session: Session):
    leases.report_runner(session, "a", "RUNNING", health_port=8001, version="1")
    leases.report_runner(session, "b", "STOPPED")
    leases.report_runner(session, "c", "RUNNING")
    session.execute(
        text("UPDATE runner_heartbeats SET heartbeat_at = now() - interval '5 minutes' WHERE runner_id = 'c'")
    )
    assert [row.runner_id for row in leases.live_runners(session)] == ["a"]


def test_a_removed_pipeline_takes_its_state_along(engine: Engine, pipeline_id: int):
    with session_scope(engine) as session:
        set_status(session, pipeline_id, "START")
        leases.acquire(session, pipeline_id, "one", 30)
        table_reports.report_flow(session, pipeline_id, 4001, {ORDERS: 3})
        session.add(TableSync(pipeline_destination_id=4001, table_name="public.orders"))
    with session_scope(engine) as session:
        session.delete(session.get_one(Pipeline, pipeline_id))
    with session_scope(engine) as session:
        for model in (Pipeline, PipelineDestination, TableSync, PipelineMetadata, RunnerLease, DataFlowRecord):
            assert session.query(model).count() == 0, model


def test_settings_have_types_bounds_and_defaults(session: Session, pipeline_id: int):
    assert setting.get_setting(session, "wal_warning_megabytes") == 3000
    assert setting.set_setting(session, "wal_warning_megabytes", "5000") == 5000
    assert setting.get_setting(session, "wal_warning_megabytes") == 5000
    for key, value in [
        ("wal_warning_megabytes", "6000"),
        ("wal_warning_megabytes", "-1"),
        ("wal_error_megabytes", "5000"),
        ("batch_max_rows", "0"),
        ("batch_max_rows", "99999999999"),
        ("batch_max_rows", "1e5"),
        ("heartbeat_seconds", "nan"),
        ("schema_policy", "drop"),
        ("timezone", "Mars/Olympus"),
        ("drop_columns", "maybe"),
        ("unknown", "1"),
    ]:
        with pytest.raises(RosettaError, match=key):
            setting.set_setting(session, key, value)
    assert setting.get_setting(session, "batch_max_rows") == PipelineSettings().batch_max_rows


def test_a_pipeline_setting_reaches_the_pipelines_that_read_it(engine: Engine, pipeline_id: int, keyring: Keyring):
    before = generation(engine, pipeline_id)
    with session_scope(engine) as session:
        setting.set_setting(session, "load_workers", "7")
        setting.set_setting(session, "wal_warning_megabytes", "100")
    assert generation(engine, pipeline_id) == before + 1
    with session_scope(engine) as session:
        assert load_pipeline(session, pipeline_id, keyring).settings.load_workers == 7
        session.get_one(Pipeline, pipeline_id).settings = setting.parse_pipeline_settings({"load_workers": "2"})
    with session_scope(engine) as session:
        assert load_pipeline(session, pipeline_id, keyring).settings.load_workers == 2
        at = generation(engine, pipeline_id)
        setting.set_setting(session, "load_workers", "9")
    assert generation(engine, pipeline_id) == at


def test_the_registry_covers_every_pipeline_setting():
    fields = {name for name in PipelineSettings.__dataclass_fields__}
    assert {key for key, known in setting.REGISTRY.items() if known.pipeline} == fields
    for known in setting.REGISTRY.values():
        assert known.parse(known.format(known.default)) == known.default
