"""The command line and the key of stored credentials: made, changed, wrong, and nothing in clear."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import text

from cdc_runner.catalog.credentials import generate_key
from cdc_runner.catalog.database import create_catalog_engine
from tests.integration.cli.conftest import Run
from tests.support.servers import Database, PostgresServer

pytestmark = pytest.mark.pg


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


def test_a_wrong_key_stops_a_start(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch):
    run("apply", str(file))
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", generate_key())
    result = run("pipeline", "start", "daily")
    assert (result.code, "cannot decrypt credential" in result.err) == (1, True)
    assert run("pipeline", "show", "daily", "--json").json["status"] == "PAUSE"


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
