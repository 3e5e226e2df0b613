"""The command line removes a pipeline: what goes with it, what stays, and what it could not remove."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cli.conftest import Run
from tests.support.servers import Database

pytestmark = pytest.mark.pg


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
