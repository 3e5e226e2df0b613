from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from dagster import SkipReason, build_sensor_context

from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.leases import report_runner
from cdc_runner.catalog.settings import set_setting
from rosetta_dagster.monitoring.machine import Machine
from rosetta_dagster.monitoring.slot import read_slot
from rosetta_dagster.resources.catalog import catalog_engine
from rosetta_dagster.resources.pipeline_health import read_health
from rosetta_dagster.resources.runner_heartbeats import read_runners
from rosetta_dagster.sensors.system_metric_collection import system_metric_collection
from rosetta_dagster.sensors.wal_monitor import wal_monitor
from rosetta_dagster.sensors.worker_health_check import worker_health_check
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.dagster, pytest.mark.pg]


def line(sensor) -> str:
    result = sensor(build_sensor_context())
    assert isinstance(result, SkipReason)
    return result.skip_message or ""


@pytest.fixture
def slot(source_database):
    name = f"{source_database.name}_slot"
    source_database.execute("CREATE PUBLICATION rosetta FOR ALL TABLES")
    source_database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
    return name


def test_slot_and_publication_are_read_as_they_are(source_database, slot) -> None:
    reading = read_slot(source_database.address(), slot, "rosetta")
    assert (reading.exists, reading.active, reading.wal_status) == (True, False, "reserved")
    assert reading.missing_operations == ()
    assert reading.directory_bytes
    before = reading.retained_bytes
    assert before is not None
    source_database.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 100000))")
    after = read_slot(source_database.address(), slot, "rosetta").retained_bytes
    assert after is not None
    assert after - before >= 100_000
    source_database.execute("ALTER PUBLICATION rosetta SET (publish = 'insert, update')")
    assert read_slot(source_database.address(), slot, "rosetta").missing_operations == ("delete", "truncate")
    source_database.execute("DROP PUBLICATION rosetta")
    assert read_slot(source_database.address(), slot, "rosetta").missing_operations is None
    assert not read_slot(source_database.address(), "other", "rosetta").exists


def test_wal_monitor_stores_state_and_history_and_shows_them(catalog, add_pipeline, source_database, slot) -> None:
    add_pipeline("shop")
    add_pipeline("gone", port=9)
    catalog.execute(
        "UPDATE sources SET host = %s, port = %s, database_name = %s, slot_name = %s WHERE name = 'shop-source'",
        (source_database.server.host, source_database.server.port, source_database.name, slot),
    )
    # The stored password is the test's own; this server asks for another.
    from cdc_runner.catalog.credentials import Keyring
    from cdc_runner.catalog.pipelines import source_place

    ((identifier,),) = catalog.execute("SELECT id FROM sources WHERE name = 'shop-source'")
    secret = Keyring(bytes(range(32))).encrypt(source_database.server.password, source_place(identifier))
    catalog.execute("UPDATE sources SET password = %s, username = %s WHERE id = %s",
                    (secret, source_database.server.username, identifier))  # fmt: skip
    assert "ERROR gone-source" in line(wal_monitor)
    rows = dict(catalog.execute(
        "SELECT s.name, w.status FROM wal_monitor w JOIN sources s ON s.id = w.source_id"))  # fmt: skip
    assert rows == {"shop-source": "WARNING", "gone-source": "ERROR"}
    assert catalog.execute("SELECT count(*), min(source_id) FROM wal_metrics") == [(1, identifier)]
    assert catalog.execute("SELECT is_error FROM job_metrics_monitoring WHERE key_job_scheduler = 'wal_monitor'") == [
        (False,)
    ]
    with session_scope(catalog_engine()) as session:
        health = {one.pipeline: one for one in read_health(session)}
    assert health["shop"].slot_problem == "nobody reads the slot"
    assert health["shop"].retained_wal_bytes is not None
    with session_scope(catalog_engine()) as session:
        set_setting(session, "wal_warning_megabytes", "1")
    source_database.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 2000000))")
    line(wal_monitor)
    ((told,),) = catalog.execute("SELECT error_message FROM wal_monitor WHERE source_id = %s", (identifier,))
    assert "MB of WAL (limit 1 MB)" in told


def test_wal_monitor_that_reaches_nothing_is_recorded_as_failed(catalog, add_pipeline) -> None:
    add_pipeline("gone", port=9)
    line(wal_monitor)
    ((failed, reason),) = catalog.execute(
        "SELECT is_error, error_message FROM job_metrics_monitoring WHERE key_job_scheduler = 'wal_monitor'"
    )
    assert failed
    assert "no source answered" in reason
    assert "canary-word" not in reason


def test_wrong_key_is_told_and_stops_nothing(catalog, add_pipeline, monkeypatch) -> None:
    add_pipeline("shop")
    monkeypatch.delenv("CREDENTIAL_ENCRYPTION_KEY")
    assert "CREDENTIAL_ENCRYPTION_KEY" in line(wal_monitor)


def test_worker_health_keeps_changes_and_not_every_look(catalog, add_pipeline) -> None:
    add_pipeline("shop")
    for _ in range(3):
        assert "no runner lives" in line(worker_health_check)
    assert catalog.execute("SELECT healthy, error_message FROM worker_health_status") == [(False, "no runner lives")]
    catalog.execute("UPDATE pipelines SET status = 'PAUSE'")
    line(worker_health_check)
    assert catalog.execute("SELECT healthy FROM worker_health_status ORDER BY id") == [(False,), (True,)]


def test_host_runner_and_pipelines_are_measured(catalog, add_pipeline) -> None:
    identifier = add_pipeline("shop")
    # A stand-in for the process of a pipeline: a child of this process, which plays the runner.
    code = "import signal; signal.pause()"
    # An ended child that nobody has waited for hides no other.
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    child = subprocess.Popen(
        [sys.executable, "-c", code, "-m", "cdc_runner.pipeline", str(identifier), "--holder", "x"]
    )
    try:
        with session_scope(catalog_engine()) as session:
            report_runner(session, "here:1:x", "RUNNING", host=socket.gethostname(), pid=os.getpid())
            runners = read_runners(session)
        wait_for(lambda: len(Machine().measure(runners, {identifier: "shop"})) == 3, 20, "the child to be there")
        line(system_metric_collection)
    finally:
        child.kill()
        child.wait(10)
        zombie.wait(10)
    rows = catalog.execute("SELECT subject, used_memory, total_memory FROM system_metrics ORDER BY subject")
    assert [subject for subject, _, _ in rows] == ["host", "pipeline:shop", "runner"]
    assert all(used > 1_000_000 for _, used, _ in rows)
    assert rows[0][2] > rows[0][1]
