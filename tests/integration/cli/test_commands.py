"""The command line on real servers: what it applies, shows, starts and changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc_runner.catalog import leases, reporting, table_reports
from cdc_runner.catalog.database import create_catalog_engine, session_scope
from cdc_runner.catalog.models import Pipeline, PipelineDestination
from cdc_runner.catalog.table_reports import TableReport
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId
from cdc_runner.spec import ResolvedSync
from tests.integration.cli.conftest import Run
from tests.support.catalog import store_pipeline
from tests.support.servers import Database, PostgresServer

pytestmark = pytest.mark.pg


def test_apply_then_doctor_status_and_lists(run: Run, real_file: Path):
    assert run("apply", str(real_file), "--dry-run", "--json").json["dry_run"]
    assert run("pipeline", "list", "--json").json == []
    applied = run("apply", str(real_file), "--json")
    assert applied.code == 0
    assert {change["action"] for change in applied.json["changes"]} == {"create"}
    assert {change["action"] for change in run("apply", str(real_file), "--json").json["changes"]} == {"nothing"}
    assert run("doctor", "daily", "--json").json["ok"]
    assert run("pipeline", "test", "daily").code == 0
    assert run("source", "test", "shop", "--json").json["ok"]
    assert run("destination", "test", "warehouse", "--json").json["ok"]
    assert run("source", "show", "shop", "--json").json["slot"] == "rosetta_shop"
    assert "password" not in run("source", "list", "--json").out
    assert run("destination", "show", "warehouse", "--json").json["stored_secrets"] == ["password"]
    assert run("pipeline", "show", "daily", "--json").json["status"] == "PAUSE"
    for arguments in (
        ("status",),
        ("doctor",),
        ("source", "list"),
        ("pipeline", "show", "daily"),
        ("settings", "list"),
    ):
        assert run(*arguments).code == 0


def test_status_tells_positions_lag_rows_load_and_error(run: Run, file: Path, config_database: Database):
    run("apply", str(file))
    run("pipeline", "start", "daily")
    before = run("status", "--json").json["pipelines"][0]
    assert (before["state"], before["alive"], before["destinations"][0]["state"]) == ("PAUSED", False, "STOPPED")
    engine = create_catalog_engine(config_database.url())
    table = ResolvedSync(None, TableId("public", "orders"), TableId("public", "orders"))
    with session_scope(engine) as session:
        pipeline, row = session.query(Pipeline).one(), session.query(PipelineDestination).one()
        leases.acquire(session, pipeline.id, "runner", 60)
        leases.report_runner(session, "runner", "RUNNING", health_port=8001)
        reporting.report_state(session, pipeline.id, "RUNNING")
        reporting.report_position(
            session, pipeline_id=pipeline.id, pipeline_destination_id=row.id, captured_lsn=0x16B374D848,
            applied_lsn=0x16B374D800, acknowledged_lsn=0x16B374D800, lag_bytes=72, lag_ms=40,
        )  # fmt: skip
        table_reports.report_table_states(session, row.id, [TableReport(table, "LOADING", loaded_rows=10)])
        table_reports.report_flow(session, pipeline.id, row.id, {table: 5})
    report = run("status", "--json").json
    (destination,) = report["pipelines"][0]["destinations"]
    assert report["runners"][0]["health_port"] == 8001
    assert (destination["state"], destination["captured_position"]) == ("LOADING", "16/B374D848")
    assert (destination["lag_bytes"], destination["lag_ms"]) == (72, 40)
    assert (destination["rows_applied"], destination["rows_loaded"]) == (5, 10)
    assert destination["load"]["tables"]["loading"] == 1
    assert destination["dead_letters"] == 0
    assert destination["dead_letter_tables"] == []
    with session_scope(engine) as session:
        table_reports.report_table_states(session, row.id, [TableReport(table, "STREAMING")])
        reporting.report_destination_error(
            session, row.id, RosettaError(ErrorKind.DESTINATION_UNAVAILABLE, "host is down")
        )
    (destination,) = run("status", "daily", "--json").json["pipelines"][0]["destinations"]
    assert (destination["state"], destination["last_error"]) == ("ERROR", "host is down")
    assert "host is down" in run("status").out
    engine.dispose()


def test_start_pause_refresh(run: Run, file: Path):
    run("apply", str(file))
    assert run("pipeline", "start", "daily", "--json").json == {"pipeline": "daily", "status": "START", "changed": True}
    assert not run("pipeline", "start", "daily", "--json").json["changed"]
    assert run("pipeline", "refresh", "daily", "--json").json["changed"]
    assert run("pipeline", "pause", "daily", "--json").json["changed"]


def test_create_one_by_one(run: Run, source_server: PostgresServer, target_server: PostgresServer):
    for kind, server in (("source", source_server), ("destination", target_server)):
        variable = "SOURCE_PASSWORD" if kind == "source" else "TARGET_PASSWORD"
        call = (
            kind, "create", kind, "--host", server.host, "--port", str(server.port), "--database", "x",
            "--username", server.username,
        )  # fmt: skip
        assert run(*call).code == 2
        assert run(*call, "--password-env", variable).code == 0
        again = run(*call, "--password-env", variable)
        assert (again.code, "exists already" in again.err) == (1, True)
    assert run("pipeline", "create", "p", "--source", "source", "--destination", "destination", "--start").code == 0
    assert run("pipeline", "show", "p", "--json").json["status"] == "START"
    assert run("pipeline", "create", "q", "--source", "source", "--destination", "destination").code == 2


def test_settings(run: Run):
    assert run("settings", "get", "wal_warning_megabytes", "--json").json["value"] == 3000
    assert run("settings", "set", "wal_warning_megabytes", "2000").code == 0
    assert run("settings", "get", "wal_warning_megabytes", "--json").json["value"] == 2000
    refused = run("settings", "set", "wal_warning_megabytes", "7000")
    assert (refused.code, "wal_error_megabytes" in refused.err) == (2, True)
    assert run("settings", "set", "wal_warning_megabytes", "--default", "--json").json["value"] == 3000
    assert run("settings", "set", "wal_warning_megabytes").code == 2
    assert len(run("settings", "list", "--json").json) > 15


def test_a_snowflake_pipeline_is_stored_and_its_key_is_checked(run: Run, tmp_path: Path, file: Path):
    (tmp_path / "key.p8").write_text("canary-key")
    file.write_text(
        file.read_text().replace(
            "pipelines:",
            "  lake: {type: snowflake, account: A, user: U, private_key: {file: key.p8}, database: D, schema: S}\n"
            "pipelines:",
        ).replace("[{destination: warehouse}]", "[{destination: lake}]")
    )  # fmt: skip
    assert run("apply", str(file)).code == 0
    assert run("pipeline", "start", "daily").code == 0
    result = run("destination", "test", "lake")
    assert (result.code, "private_key is not a PEM private key" in result.out + result.err) == (1, True)
    assert "canary" not in result.out + result.err


def test_presets_and_tags(run: Run, config_database: Database) -> None:
    store_pipeline(config_database.url(), "shop", ("orders", "items"))
    assert run("preset", "create", "shop-source", "core", "--table", "public.*", "--json").json["tables"] == [
        "public.*"
    ]
    assert run("preset", "create", "shop-source", "none").code == 2
    assert run("preset", "register", "shop-source", "core", "--json").json == {"added": []}
    assert run("preset", "change", "shop-source", "core", "--name", "all", "--json").json == {"name": ["core", "all"]}
    assert run("preset", "list", "shop-source", "--json").json == [
        {"source": "shop-source", "preset": "all", "tables": ["public.*"]}]  # fmt: skip
    assert run("preset", "remove", "shop-source", "all").code == 0
    assert run("preset", "list").out == "no presets\n"
    assert run("tag", "add", "shop", "pii", "Money", "--table", "public.*", "--json").json == {"added": 4}
    assert run("tag", "suggest", "m").out == "money\n"
    assert run("tag", "relations", "--json").json == [{"tag": "money", "other": "pii", "shared_tables": 2}]
    assert run("tag", "show", "pii").out.splitlines()[:3] == [
        "shop", "  shop-warehouse", "    public.items -> public.items"]  # fmt: skip
    assert run("tag", "rename", "money", "cash", "--json").json == {"places": 2}
    assert run("tag", "remove", "shop", "cash", "--table", "public.items", "--json").json == {"removed": 1}
    assert run("tag", "delete", "pii", "--json").json == {"places": 2}
    (left,) = run("tag", "list", "--json").json
    assert (left["tag"], left["tables"], left["pipelines"]) == ("cash", 1, ["shop"])
    assert run("tag", "show", "pii").code == 2


def test_sources_destinations_and_tables_are_changed_from_a_shell(run: Run, real_file: Path, config_database: Database):
    run("apply", str(real_file))
    assert run("source", "change", "shop", "--sslmode", "disable", "--json").json == {"sslmode": ["prefer", "disable"]}
    assert run("source", "change", "shop", "--password-env", "A", "--password-file", "b").code == 2
    assert run("source", "duplicate", "shop", "copy", "--json").json["slot"] == "rosetta_copy"
    listed = run("source", "tables", "shop", "--json").json
    assert listed and all(one["registered"] for one in listed)
    columns = run("source", "columns", "shop", "public.orders", "--json").json
    assert columns and {one["table"] for one in columns} == {"public.orders"}
    assert run("destination", "columns", "warehouse", "pg_temp.*").out == "no such table\n"
    assert run("source", "history", "shop", "--json").json == []
    published = run("source", "publish", "shop", "public.orders", "--json").json
    assert published["added"] == ["public.orders"] and published["publication"] == "rosetta_shop"
    assert run("source", "register", "copy", "sales.*", "--json").json == {"added": ["sales.*"]}
    assert run("source", "unregister", "copy", "sales.*", "--json").json == {"removed": ["sales.*"]}
    assert run("destination", "change", "warehouse", "--schema", "x", "--json").json["schema"][1] == "x"
    assert run("destination", "duplicate", "warehouse", "second").code == 0
    assert run("pipeline", "add-destination", "daily", "second").code == 0
    arguments = ("--mask", "email=hash", "--mask", "phone=truncate:3", "--rename", "id=key", "--tag", "pii")
    assert run("pipeline", "add-table", "daily", "second", "public.orders", *arguments, "--filter", "id > 1").code == 0
    assert run("pipeline", "add-table", "daily", "second", "public.items", "--mask", "a=rot13").code == 2
    assert run("pipeline", "add-table", "daily", "second").code == 2
    assert "say which: " in run("pipeline", "add-table", "daily", "public.items").err
    assert run("pipeline", "add-table", "daily", "second", "public.items", "more").code == 2
    sql = ("--target", "sums", "--custom-sql", "SELECT id, id * 2 AS twice FROM orders")
    assert run("pipeline", "add-table", "daily", "second", "public.orders", *sql, "--key", "id").code == 0
    run("preset", "create", "shop", "core", "--table", "public.items")
    assert run("pipeline", "add-table", "daily", "second", "--preset", "core").code == 0
    assert run("pipeline", "set", "daily", "load_workers=3").code == 0
    declared = {
        one["target"] or one["table"]: one
        for row in run("pipeline", "show", "daily", "--json").json["destinations"]
        for one in row["declared_tables"]
        if row["destination"] == "second"
    }
    assert declared["public.orders"]["tags"] == ["pii"]
    assert "twice" in declared["sums"]["shape"]
    assert "masked email (hash), phone (truncate 3)" in declared["public.orders"]["shape"]
    assert run("pipeline", "remove-table", "daily", "second", "public.items").code == 0
    assert run("pipeline", "remove-destination", "daily", "second").code == 0
    assert run("pipeline", "add-table", "daily", "public.more").code == 0
    assert run("pipeline", "add-table", "daily", "public.rest").code == 0
    assert run("pipeline", "remove-table", "daily", "public.more").code == 0
    assert run("pipeline", "show", "daily", "--json").json["settings"] == {"load_workers": "3"}
