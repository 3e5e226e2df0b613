"""The command line on real servers: what it prints, its exit codes, and that nothing is changed by a wrong call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from cdc_runner.catalog import leases, reporting, table_reports
from cdc_runner.catalog.credentials import generate_key
from cdc_runner.catalog.database import create_catalog_engine, session_scope
from cdc_runner.catalog.models import Pipeline, PipelineDestination
from cdc_runner.catalog.table_reports import TableReport
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId
from cdc_runner.spec import ResolvedSync
from rosetta_dagster.cli import main as command_line
from tests.support.catalog import store_pipeline
from tests.support.servers import Database, PostgresServer

pytestmark = pytest.mark.pg


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(
    config_database: Database,
    source_server: PostgresServer,
    target_server: PostgresServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Call `rosetta` in this process."""
    monkeypatch.setenv("CONFIG_DATABASE_URL", config_database.url())
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", generate_key())
    monkeypatch.setenv("SOURCE_PASSWORD", source_server.password)
    monkeypatch.setenv("TARGET_PASSWORD", target_server.password)
    monkeypatch.delenv("ROSETTA_DEBUG", raising=False)
    secrets = {config_database.server.password, source_server.password, target_server.password}

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = command_line.main(arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert not [secret for secret in secrets if secret in captured.out + captured.err]
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def file(tmp_path: Path, source_server: PostgresServer, target_server: PostgresServer) -> Path:
    """A configuration whose databases are not there: enough for what only changes the config database."""
    return write(tmp_path, source_server, "absent_source", target_server, "absent_target")


@pytest.fixture
def real_file(tmp_path: Path, source_database: Database, target_database: Database) -> Path:
    """A configuration of databases that are there."""
    source_database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    return write(tmp_path, source_database.server, source_database.name, target_database.server, target_database.name)


def write(directory: Path, source: PostgresServer, source_name: str, target: PostgresServer, target_name: str) -> Path:
    path = directory / "rosetta.yaml"
    path.write_text(
        f"""
sources:
  shop: {address(source, source_name, "SOURCE_PASSWORD")}
destinations:
  warehouse: {{type: postgres, {address(target, target_name, "TARGET_PASSWORD")[1:]}
pipelines:
  daily: {{source: shop, destinations: [{{destination: warehouse}}]}}
"""
    )
    return path


def address(server: PostgresServer, database: str, variable: str) -> str:
    return (
        f"{{host: {server.host}, port: {server.port}, database: {database}, username: {server.username},"
        f" password: {{env: {variable}}}}}"
    )


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


def test_removing_a_pipeline_removes_slot_publication_and_positions(
    run: Run, real_file: Path, source_database: Database, target_database: Database
):
    run("apply", str(real_file))
    source_database.execute("SELECT pg_create_logical_replication_slot('rosetta_shop', 'pgoutput')")
    source_database.execute("CREATE PUBLICATION rosetta_shop FOR TABLE orders")
    connection = target_database.connect()
    connection.autocommit = False
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA _rosetta")
        for table in ("stream_position", "table_state", "load_chunk"):
            cursor.execute(f"CREATE TABLE _rosetta.{table} (pipeline text)")
            cursor.execute(f"INSERT INTO _rosetta.{table} VALUES ('daily'), ('other')")
    connection.close()
    run("pipeline", "start", "daily")
    refused = run("pipeline", "remove", "daily")
    assert (refused.code, "rosetta pipeline pause daily" in refused.err) == (1, True)
    assert run("source", "remove", "shop").code == 1
    assert run("destination", "remove", "warehouse").code == 1
    run("pipeline", "pause", "daily")
    removed = run("pipeline", "remove", "daily", "--json").json
    assert removed["left_over"] == []
    assert len(removed["removed"]) == 4
    database = source_database.name
    assert source_database.execute("SELECT count(*) FROM pg_replication_slots WHERE database = %s", (database,)) == [
        (0,)
    ]
    assert source_database.execute("SELECT count(*) FROM pg_publication") == [(0,)]
    assert target_database.execute("SELECT DISTINCT pipeline FROM _rosetta.stream_position") == [("other",)]
    assert run("source", "remove", "shop").code == 0
    assert run("destination", "remove", "warehouse").code == 0
    assert run("source", "list", "--json").json == []


def test_what_cannot_be_removed_is_listed_with_the_statement(run: Run, real_file: Path, source_database: Database):
    run("apply", str(real_file))
    source_database.execute("SELECT pg_create_logical_replication_slot('rosetta_shop', 'pgoutput')")
    name, port = source_database.name, source_database.server.port
    unreachable = real_file.read_text().replace(f"port: {port}, database: {name}", f"port: 1, database: {name}")
    real_file.write_text(unreachable)
    assert run("apply", str(real_file)).code == 0
    removed = run("pipeline", "remove", "daily", "--json").json
    statements = [line.rpartition(": ")[2] for line in removed["left_over"]]
    assert statements == ["SELECT pg_drop_replication_slot('rosetta_shop');", 'DROP PUBLICATION "rosetta_shop";']
    # The statement works where it is meant for.
    source_database.execute(statements[0])


def test_a_foreign_publication_is_kept(run: Run, real_file: Path, source_database: Database):
    run("apply", str(real_file))
    source_database.execute("CREATE PUBLICATION rosetta_shop FOR ALL TABLES")
    removed = run("pipeline", "remove", "daily", "--json").json
    assert any("FOR ALL TABLES" in line for line in removed["kept"])
    assert source_database.execute("SELECT count(*) FROM pg_publication") == [(1,)]


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


def test_keygen_gives_keys_that_work(run: Run, monkeypatch: pytest.MonkeyPatch, file: Path):
    key = run("keygen").out.strip()
    assert key != run("keygen", "--json").json["key"]
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", key)
    assert run("apply", str(file)).code == 0


def test_rotation_of_the_key(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch):
    run("apply", str(file))
    old = os.environ["CREDENTIAL_ENCRYPTION_KEY"]
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", generate_key())
    assert run("rotate-key").code == 1
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEYS_OLD", old)
    assert run("rotate-key", "--json").json == {"rotated": 2, "unchanged": 0}
    assert run("rotate-key", "--json").json == {"rotated": 0, "unchanged": 2}
    monkeypatch.delenv("CREDENTIAL_ENCRYPTION_KEYS_OLD")
    assert run("pipeline", "start", "daily").code == 0


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "words"),
    [
        (("nothing",), {}, 2, "No such command"),
        (("apply",), {}, 2, "Missing argument"),
        (("apply", "absent.yaml"), {}, 2, "cannot read absent.yaml"),
        (("pipeline", "start", "absent"), {}, 2, "no pipeline 'absent'"),
        (("doctor", "absent"), {}, 2, "no pipeline 'absent'"),
        (("status", "absent"), {}, 2, "no pipeline 'absent'"),
        (("settings", "get", "absent"), {}, 2, "no setting 'absent'"),
        (("status",), {"CONFIG_DATABASE_URL": "canary://nowhere"}, 1, "CONFIG_DATABASE_URL is not of the form"),
        (("status",), {"CONFIG_DATABASE_URL": "postgresql://u:canary@127.0.0.1:1/x"}, 1, "Connection refused"),
        (("status",), {"CONFIG_DATABASE_URL": "postgresql://u:canary@nowhere.invalid/x"}, 1, "could not translate"),
        (("status",), {"CONFIG_DATABASE_URL": "", "ROSETTA_HOME": "/nonexistent"}, 1, "CONFIG_DATABASE_URL is not set"),
        (("apply", "{file}"), {"CREDENTIAL_ENCRYPTION_KEY": "canary"}, 2, "CREDENTIAL_ENCRYPTION_KEY is"),
        (("apply", "{file}"), {"CREDENTIAL_ENCRYPTION_KEY": ""}, 2, "CREDENTIAL_ENCRYPTION_KEY is not set"),
        (("apply", "{file}"), {"SOURCE_PASSWORD": ""}, 2, "SOURCE_PASSWORD is not set"),
    ],
)
def test_bad_input_gives_one_clear_line(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], variables: dict[str, str],
    code: int, words: str,
):  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = run(*(argument.format(file=file) for argument in arguments))
    assert result.code == code
    assert words in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert result.out == ""
    assert "canary" not in result.err


def test_every_problem_of_a_file_has_its_line(run: Run, file: Path, config_database: Database):
    file.write_text(file.read_text().replace("{env: SOURCE_PASSWORD}", "canary-literal", 1).replace("shop,", "shopp,"))
    result = run("apply", str(file))
    assert result.code == 2
    assert "error: sources.shop.password: a literal secret is refused; write {env: NAME}" in result.err
    assert "canary" not in result.err
    assert config_database.execute("SELECT count(*) FROM sources") == [(0,)]


def test_a_wrong_key_stops_a_start(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch):
    run("apply", str(file))
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", generate_key())
    result = run("pipeline", "start", "daily")
    assert (result.code, "cannot decrypt credential" in result.err) == (1, True)
    assert run("pipeline", "show", "daily", "--json").json["status"] == "PAUSE"


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


def test_debug_shows_the_traceback(
    config_database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CONFIG_DATABASE_URL", config_database.url())
    monkeypatch.setenv("ROSETTA_DEBUG", "1")
    assert command_line.main(["pipeline", "show", "absent"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_is_fast_and_loads_neither_dagster_nor_a_database_driver():
    program = (
        "import sys; from rosetta_dagster.cli.main import main; code = main(['--help']);"
        " heavy = {'dagster', 'sqlalchemy', 'psycopg2', 'jpype', 'duckdb'} & set(sys.modules);"
        " print(heavy); sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in command_line.COMMANDS:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", sorted(command_line.COMMANDS))
def test_every_command_has_help_and_is_a_command(name: str, capsys: pytest.CaptureFixture[str]):
    assert command_line.main([name, "--help"]) == 0
    assert "Usage: rosetta" in capsys.readouterr().out


def test_catalog_commands_do_not_load_dagster(run: Run, real_file: Path):
    run("apply", str(real_file))
    program = (
        "import sys; from rosetta_dagster.cli.main import main;"
        " codes = [main([name, '--json']) for name in ('status', 'doctor')];"
        " print({'dagster', 'jpype'} & set(sys.modules) or 'light', file=sys.stderr); sys.exit(max(codes))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )
    assert (done.returncode, done.stderr.strip()) == (0, "light")


def test_secrets_are_not_in_the_config_database(
    run: Run, file: Path, config_database: Database, source_server: PostgresServer, target_server: PostgresServer
):
    run("apply", str(file))
    engine = create_catalog_engine(config_database.url())
    with engine.connect() as connection:
        tables = connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars().all()
        content = repr([connection.execute(text(f'SELECT * FROM "{table}"')).all() for table in tables])
    engine.dispose()
    for server in (source_server, target_server):
        assert server.password not in content


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
    assert run("pipeline", "show", "daily", "--json").json["settings"] == {"load_workers": "3"}
