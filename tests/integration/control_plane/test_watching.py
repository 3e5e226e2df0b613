"""What the monitors do about what they see: versions of schemas, the WAL ladder, drift of a publication, conditions."""

from __future__ import annotations

import socket
import time

import pytest
from dagster import SensorResult, SkipReason, build_sensor_context

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.pipelines import source_place
from cdc_runner.catalog.repositories import get_source
from cdc_runner.catalog.settings import set_setting
from cdc_runner.catalog.wal_ladder import backfills_paused
from rosetta_dagster.monitoring.wal_ladder import Limits
from rosetta_dagster.resources.catalog import catalog_engine
from rosetta_dagster.sensors.notification_sender import notification_sender
from rosetta_dagster.sensors.replication_monitor import replication_monitor
from rosetta_dagster.sensors.schema_monitor import schema_monitor
from rosetta_dagster.sensors.wal_monitor import wal_monitor
from rosetta_dagster.sensors.worker_health_check import worker_health_check

pytestmark = [pytest.mark.dagster, pytest.mark.pg]


def line(sensor, instance=None) -> str:
    result = sensor(build_sensor_context(instance=instance))
    if isinstance(result, SensorResult):
        skipped = result.skip_reason
        return (skipped.skip_message if isinstance(skipped, SkipReason) else skipped) or ""
    assert isinstance(result, SkipReason)
    return result.skip_message or ""


@pytest.fixture
def source(catalog, add_pipeline, source_database):
    """A pipeline whose source is a real database with a publication and a slot."""
    slot = f"{source_database.name}_slot"
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric(10,2))")
    source_database.execute("CREATE TABLE customers (id bigint PRIMARY KEY)")
    source_database.execute("CREATE PUBLICATION rosetta FOR TABLE orders, customers")
    source_database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    add_pipeline("shop", ("orders", "customers"))
    ((identifier,),) = catalog.execute("SELECT id FROM sources WHERE name = 'shop-source'")
    server = source_database.server
    secret = Keyring(bytes(range(32))).encrypt(server.password, source_place(identifier))
    catalog.execute(
        "UPDATE sources SET host = %s, port = %s, database_name = %s, slot_name = %s, password = %s, username = %s"
        " WHERE id = %s",
        (server.host, server.port, source_database.name, slot, secret, server.username, identifier),
    )
    return source_database


def versions(catalog, table: str) -> list[str]:
    rows = catalog.execute(
        "SELECT h.changes_type FROM history_schema_evolution h JOIN table_metadata_list t"
        " ON t.id = h.table_metadata_list_id WHERE t.table_name = %s ORDER BY h.version_schema",
        (table,),
    )
    return [kinds for (kinds,) in rows]


def notifications(catalog, kind: str) -> list[tuple[str, str, str]]:
    rows = catalog.execute(
        "SELECT key_notification, status, type FROM notification_log WHERE kind = %s ORDER BY id", (kind,)
    )
    return [(key, status, severity) for key, status, severity in rows]


def test_schema_monitor_keeps_each_change_once_with_its_difference(catalog, source) -> None:
    source.execute("CREATE TABLE invoices (id bigint PRIMARY KEY, note text)")
    line(schema_monitor)
    assert "unchanged" in line(schema_monitor)
    assert versions(catalog, "invoices") == ["INITIAL_LOAD"]
    assert notifications(catalog, "schema_change") == [] or all("invoices" not in key for key, _, _ in
                                                                 notifications(catalog, "schema_change"))  # fmt: skip
    source.execute("ALTER TABLE invoices RENAME note TO remark")
    source.execute("ALTER TABLE invoices ADD due date, ALTER id TYPE int")
    assert "RENAME COLUMN" in line(schema_monitor)
    assert versions(catalog, "invoices")[1:] == ["CHANGES TYPE, RENAME COLUMN, NEW COLUMN"]
    ((told,),) = catalog.execute(
        "SELECT message FROM notification_log WHERE key_notification LIKE 'schema_change:shop-source/public.invoices/%'"
    )
    assert "RENAME COLUMN remark note → remark" in told
    source.execute("DROP TABLE invoices")
    assert "DROP TABLE in public.invoices" in line(schema_monitor)
    assert versions(catalog, "invoices")[2:] == ["DROP TABLE"]
    assert "unchanged" in line(schema_monitor)


def test_source_that_does_not_answer_has_not_changed_and_is_told(catalog, source) -> None:
    line(schema_monitor)
    before = catalog.execute("SELECT count(*) FROM history_schema_evolution")
    catalog.execute("UPDATE sources SET port = 9")
    assert "not asked shop-source" in line(schema_monitor)
    assert catalog.execute("SELECT count(*) FROM history_schema_evolution") == before
    ((failed, failures),) = catalog.execute(
        "SELECT is_error, failures FROM job_metrics_monitoring WHERE key_job_scheduler = 'schema_monitor'"
    )
    assert (failed, failures) == (True, 1)


def test_table_taken_out_of_the_publication_pauses_the_pipeline_with_the_reason(catalog, source, instance) -> None:
    assert "lost" not in line(replication_monitor, instance)
    source.execute("ALTER PUBLICATION rosetta DROP TABLE orders")
    assert "has lost public.orders" in line(replication_monitor, instance)
    ((status, state, reason),) = catalog.execute(
        "SELECT p.status, m.status, m.last_error FROM pipelines p JOIN pipeline_metadata m ON m.pipeline_id = p.id"
    )
    assert (status, state) == ("PAUSE", "PAUSED")
    assert "has lost public.orders" in reason
    assert notifications(catalog, "publication") == [("publication:shop", "OPEN", "ERROR")]
    # It is looked at while it is paused, and said when it is right again; a person starts it.
    source.execute("ALTER PUBLICATION rosetta ADD TABLE orders")
    line(replication_monitor, instance)
    assert notifications(catalog, "publication") == [("publication:shop", "RESOLVED", "ERROR")]
    assert catalog.execute("SELECT status FROM pipelines") == [("PAUSE",)]


def test_altered_operations_pause_and_a_dropped_table_does_not(catalog, source, instance) -> None:
    source.execute("DROP TABLE customers")
    assert "lost" not in line(replication_monitor, instance)
    source.execute("ALTER PUBLICATION rosetta SET (publish = 'insert')")
    assert "leaves out update, delete, truncate" in line(replication_monitor, instance)
    assert catalog.execute("SELECT status FROM pipelines") == [("PAUSE",)]


def write_wal(source, megabytes: int) -> None:
    for _ in range(megabytes):
        source.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 1100000))")


def ladder(catalog) -> str:
    ((step,),) = catalog.execute("SELECT ladder_step FROM wal_monitor")
    return str(step)


def test_ladder_pauses_backfills_and_drops_the_slot_only_where_that_is_allowed(catalog, source) -> None:
    with session_scope(catalog_engine()) as session:
        for name, value in (("warning", 1), ("error", 2), ("pause_backfills", 3), ("drop_slot", 5)):
            set_setting(session, f"wal_{name}_megabytes", str(value))
        assert backfills_paused(session, get_source(session, "shop-source").id) is None
    write_wal(source, 7)
    line(wal_monitor)
    assert ladder(catalog) == "PAUSE_BACKFILLS"
    with session_scope(catalog_engine()) as session:
        why = backfills_paused(session, get_source(session, "shop-source").id)
        assert why is not None
        assert "MB of WAL" in why
        set_setting(session, "wal_drop_slot_allowed", "true")
    line(wal_monitor)
    assert ladder(catalog) == "DROP_SLOT"
    assert catalog.execute("SELECT status FROM pipelines") == [("PAUSE",)]
    assert source.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [(1,)]
    assert "was dropped" in line(wal_monitor)
    assert source.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [(0,)]
    ((plan, positions, steps),) = catalog.execute("SELECT pipeline, positions, steps FROM slot_recovery_plans")
    assert (plan, positions) == ("shop", {"shop-warehouse": "0/12C"})
    assert any("pipeline refresh shop" in step for step in steps)
    line(wal_monitor)
    assert ladder(catalog) == "SLOT_DROPPED"
    assert ("wal_ladder:shop-source", "OPEN", "ERROR") in notifications(catalog, "wal_ladder")
    ((slot,),) = catalog.execute("SELECT slot_name FROM sources")
    source.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    line(wal_monitor)
    assert ladder(catalog) == "NONE"
    assert notifications(catalog, "wal_ladder") == [("wal_ladder:shop-source", "RESOLVED", "ERROR")]
    assert catalog.execute("SELECT recovered_at IS NOT NULL FROM slot_recovery_plans") == [(True,)]


def test_conditions_open_and_resolve_with_what_the_monitors_see(catalog, add_pipeline, instance) -> None:
    add_pipeline("shop", lag_ms=500_000)
    line(worker_health_check)
    line(replication_monitor, instance)
    assert notifications(catalog, "runner") == [("runner:none", "OPEN", "ERROR")]
    assert notifications(catalog, "lag") == [("destination:shop/shop-warehouse", "OPEN", "WARNING")]
    catalog.execute("UPDATE pipeline_metadata SET status = 'ERROR', last_error = 'the slot is gone'")
    catalog.execute("UPDATE stream_offsets SET lag_ms = 5")
    line(worker_health_check)
    line(replication_monitor, instance)
    assert notifications(catalog, "pipeline_error") == [("pipeline_error:shop", "OPEN", "ERROR")]
    assert notifications(catalog, "lag")[0][1] == "RESOLVED"
    catalog.execute("UPDATE pipelines SET status = 'PAUSE'")
    line(worker_health_check)
    assert notifications(catalog, "pipeline_error")[0][1] == "RESOLVED"
    assert notifications(catalog, "runner")[0][1] == "RESOLVED"


def test_monitor_that_is_silent_or_fails_again_and_again_is_told(catalog) -> None:
    catalog.execute(
        "INSERT INTO job_metrics_monitoring (key_job_scheduler, last_run_at, failures, error_message)"
        " VALUES ('wal_monitor', now() - interval '10 minutes', 0, NULL), ('schema_monitor', now(), 3, 'no answer')"
    )
    line(worker_health_check)
    assert notifications(catalog, "monitor") == [
        ("monitor:schema_monitor", "OPEN", "ERROR"), ("monitor:wal_monitor", "OPEN", "ERROR")]  # fmt: skip


def test_sender_says_what_it_did(catalog) -> None:
    assert line(notification_sender) == "nothing to send"


def test_limits_are_in_order_whatever_the_settings_say(catalog) -> None:
    from rosetta_dagster.monitoring.wal_ladder import read_limits

    with session_scope(catalog_engine()) as session:
        set_setting(session, "wal_error_megabytes", "9000")
        assert read_limits(session) == Limits(3000, 9000, 9000, 20_000, False)


def failures(catalog, job: str) -> list[tuple[bool, int]]:
    query = "SELECT is_error, failures FROM job_metrics_monitoring WHERE key_job_scheduler = %s"
    return [(bool(failed), int(count)) for failed, count in catalog.execute(query, (job,))]


@pytest.mark.parametrize(
    ("sensor", "job"),
    [
        (schema_monitor, "schema_monitor"),
        (wal_monitor, "wal_monitor"),
        (replication_monitor, "replication_monitor"),
        (notification_sender, "notification_sender"),
    ],
)
def test_tick_that_can_read_no_credential_is_not_healthy(catalog, source, instance, monkeypatch, sensor, job) -> None:
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", "too short")
    assert "CREDENTIAL_ENCRYPTION_KEY" in line(sensor, instance)
    assert failures(catalog, job) == [(True, 1)]


def test_replication_monitor_without_any_answer_is_not_healthy(catalog, source, instance) -> None:
    catalog.execute("UPDATE sources SET port = 9")
    line(replication_monitor, instance)
    assert failures(catalog, "replication_monitor") == [(True, 1)]


def test_source_that_never_answers_delays_no_other(catalog, source, add_pipeline) -> None:
    line(schema_monitor)
    add_pipeline("silent", ("orders",))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        catalog.execute(
            "UPDATE sources SET host = '127.0.0.1', port = %s, sslmode = 'disable' WHERE name = 'silent-source'",
            (silent.getsockname()[1],),
        )
        source.execute("ALTER TABLE orders ADD note text")
        began = time.monotonic()
        told = line(schema_monitor)
    assert time.monotonic() - began < 30
    assert "NEW COLUMN in public.orders" in told
    assert "not asked silent-source" in told
    # One source of two answered: the work did what it is for.
    assert failures(catalog, "schema_monitor") == [(False, 0)]


def test_work_that_never_ran_is_told(catalog) -> None:
    catalog.execute(
        "INSERT INTO job_metrics_monitoring (key_job_scheduler, last_run_at, created_at)"
        " VALUES ('runner_alive', now(), now() - interval '1 hour')"
    )
    line(worker_health_check)
    told = [key for key, _, _ in notifications(catalog, "monitor")]
    assert "monitor:wal_monitor" in told
    # Within its time, and the one that just ran.
    assert "monitor:credit_monitor" not in told
    assert "monitor:worker_health_check" not in told or failures(catalog, "worker_health_check")
