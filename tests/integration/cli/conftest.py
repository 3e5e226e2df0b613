"""The command line in this process, and configuration files for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdc_runner.catalog.credentials import generate_key
from rosetta_dagster.cli import main as command_line
from tests.support.servers import Database, PostgresServer


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
