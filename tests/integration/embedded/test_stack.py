"""Embedded servers through what happens to servers: killed, half-made, found twice, pushed off their port."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from cdc_runner.errors import ErrorKind, RosettaError
from rosetta_dagster.embedded import EmbeddedStack, StackState
from rosetta_dagster.embedded import account as account_module
from rosetta_dagster.embedded.process import command_line
from tests.support.servers import temporary_home
from tests.support.waiting import wait_for

pytestmark = pytest.mark.pg

ANY_PORT = {name: 0 for name in ("config", "source", "target", "second_target", "redis")}


@pytest.fixture
def home() -> Iterator[Path]:
    path = temporary_home()
    yield path
    EmbeddedStack(path).remove()


def stack(home: Path, *servers: str, **ports: int) -> EmbeddedStack:
    return EmbeddedStack(home, servers, ports={**ANY_PORT, **ports}, fsync=False)


def query(state: StackState, name: str, statement: str, database: str | None = None) -> list[tuple[object, ...]]:
    address = state.postgres[name].address(database)
    connection = psycopg2.connect(
        host=address.host,
        port=address.port,
        dbname=address.database,
        user=address.username,
        password=address.password.get_secret_value(),
    )
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_servers_have_the_promised_settings_and_databases(home):
    state = stack(home, "config", "source").start()
    settings = "SELECT current_setting('wal_level'), current_setting('max_replication_slots'), "
    settings += "current_setting('max_wal_senders'), current_setting('TimeZone'), current_setting('listen_addresses'), "
    settings += "current_setting('server_encoding'), current_setting('password_encryption')"
    expected = ("logical", "50", "50", "UTC", "127.0.0.1", "UTF8", "scram-sha-256")
    assert query(state, "config", settings) == [expected]
    assert query(state, "source", "SHOW max_prepared_transactions") == [("20",)]
    locale = "SELECT datcollate, datctype, datlocale FROM pg_database WHERE datname = current_database()"
    assert query(state, "source", locale) == [("C.UTF-8", "C.UTF-8", "C.UTF-8")]
    databases = query(state, "config", "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1")
    assert databases == [("dagster",), ("postgres",), ("rosetta",)]
    assert query(state, "config", "SELECT DISTINCT auth_method FROM pg_hba_file_rules") == [("scram-sha-256",)]


def test_data_survives_stop_and_start_on_the_same_port(home):
    servers = stack(home, "target", "redis")
    first = servers.start()
    query(first, "target", "CREATE TABLE kept AS SELECT 7 AS i")
    assert first.redis is not None
    with redis.Redis.from_url(first.redis.url.get_secret_value()) as client:
        client.xadd("dlq", {"k": "v"})
    servers.stop()
    assert {name: each.running for name, each in servers.status().items()} == {"target": False, "redis": False}
    second = servers.start()
    assert query(second, "target", "SELECT i FROM kept") == [(7,)]
    assert second.redis is not None
    assert (second.postgres["target"].port, second.redis.port) == (first.postgres["target"].port, first.redis.port)
    with redis.Redis.from_url(second.redis.url.get_secret_value()) as client:
        assert client.xlen("dlq") == 1


def test_starting_what_runs_and_stopping_what_does_not_changes_nothing(home):
    servers = stack(home, "target", "redis")
    servers.stop()
    first = servers.start().as_json()
    assert servers.start().as_json() == first
    servers.stop()
    servers.stop()


def test_another_process_finds_and_stops_the_servers(home):
    """They outlive the process that started them."""
    code = (
        "import sys; from pathlib import Path; from rosetta_dagster.embedded import EmbeddedStack\n"
        "stack = EmbeddedStack(Path(sys.argv[1]), ('target', 'redis'), ports={'target': 0, 'redis': 0}, fsync=False)\n"
        "getattr(stack, sys.argv[2])()"
    )
    subprocess.run([sys.executable, "-c", code, str(home), "start"], check=True, timeout=120)
    servers = stack(home, "target", "redis")
    assert all(each.running for each in servers.status().values())
    assert query(servers.state(), "target", "SELECT 1") == [(1,)]
    subprocess.run([sys.executable, "-c", code, str(home), "stop"], check=True, timeout=120)
    assert not any(each.running for each in servers.status().values())


def test_simultaneous_starts_give_one_server(home):
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(lambda _: stack(home, "target").start().as_json(), range(4)))
    assert states == [states[0]] * 4


@pytest.mark.parametrize("name", ["target", "redis"])
def test_a_killed_server_recovers(home, name):
    servers = stack(home, "target", "redis")
    state = servers.start()
    query(state, "target", "CREATE TABLE kept AS SELECT 7 AS i")
    assert state.redis is not None
    with redis.Redis.from_url(state.redis.url.get_secret_value()) as client:
        client.set("k", "v")
    pid = servers.status()[name].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not servers.status()[name].running, 10, "the death to show")
    again = servers.start()
    assert again.as_json()[name]["port"] == state.as_json()[name]["port"]  # type: ignore[index]
    assert servers.status()[name].pid != pid
    assert query(again, "target", "SELECT i FROM kept") == [(7,)]
    assert again.redis is not None
    with redis.Redis.from_url(again.redis.url.get_secret_value()) as client:
        assert client.get("k") == b"v"


def test_children_that_outlive_a_killed_server_end_before_its_data_is_opened_again(home):
    """A child that still writes beside a new server would destroy the data; the pid file alone guards against that."""
    servers = stack(home, "target")
    state = servers.start()
    query(state, "target", "CREATE TABLE kept AS SELECT 7 AS i")
    pid = servers.status()["target"].pid
    children = psutil.Process(pid).children()
    (writer,) = [child for child in children if "checkpointer" in child.cmdline()[0]]
    writer.suspend()
    os.kill(writer.ppid(), signal.SIGKILL)
    wait_for(lambda: not servers.status()["target"].running, 10, "the death to show")
    assert lives(writer)
    again = servers.start()
    assert not lives(writer)
    assert again.as_json()["target"]["port"] == state.as_json()["target"]["port"]  # type: ignore[index]
    assert query(again, "target", "SELECT i FROM kept") == [(7,)]


def test_a_pid_that_belongs_to_another_process_now_is_neither_trusted_nor_harmed(home):
    servers = stack(home, "target", "redis")
    state = servers.start()
    pid_file = home / "postgres" / "target" / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    servers.stop()
    # A process of the server's own account: the case in which PostgreSQL itself refuses to start.
    account = account_module.server_account()
    other = subprocess.Popen(["/bin/sleep", "600"], cwd="/", **account.subprocess_options())
    try:
        pid_file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        account.own(pid_file)
        (home / "redis" / "redis.pid").write_text(f"{other.pid}\n")
        assert not any(each.running for each in servers.status().values())
        servers.stop()
        assert other.poll() is None
        again = servers.start()
        assert query(again, "target", "SELECT 1") == [(1,)]
        assert other.poll() is None
        assert again.as_json()["target"]["port"] == state.as_json()["target"]["port"]  # type: ignore[index]
    finally:
        other.kill()
        other.wait()


def test_a_busy_port_gives_a_free_one_that_is_recorded(home):
    with socket.create_server(("127.0.0.1", 0)) as blocker:
        port = blocker.getsockname()[1]
        servers = stack(home, "target", target=port)
        state = servers.start()
        moved = state.postgres["target"]
        assert moved.moved
        assert moved.port != port
        assert query(state, "target", "SELECT 1") == [(1,)]
        stored = json.loads((home / "embedded.json").read_text())["servers"]["target"]
        assert (stored["port"], stored["preferred_port"]) == (moved.port, port)
        servers.stop()
    # Addresses that were stored with the port of before stay right, although the preferred one is free again.
    assert servers.start().postgres["target"].port == moved.port


def test_a_port_taken_between_choice_and_start_gives_another(home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = {"target": first.getsockname()[1], "redis": second.getsockname()[1]}
        monkeypatch.setattr("rosetta_dagster.embedded.port.is_free", lambda port: True)
        state = stack(home, "target", "redis", **ports).start()
        assert state.postgres["target"].moved
        assert state.redis is not None and state.redis.moved
        assert query(state, "target", "SELECT 1") == [(1,)]


def test_an_interrupted_initialisation_is_begun_anew(home):
    servers = stack(home, "target")
    servers._create_home()
    server = servers._server("target")
    server.directory.mkdir()
    (server.directory / "data.partial").mkdir()
    (server.directory / "data.partial" / "PG_VERSION").write_text("18\n")
    account_module.server_account().own(server.directory)
    assert query(servers.start(), "target", "SELECT 1") == [(1,)]
    assert not (server.directory / "data.partial").exists()


def test_a_server_that_cannot_start_says_where_its_log_is_and_stops_the_others(home):
    servers = stack(home, "target", "second_target")
    servers.start()
    servers.stop()
    (home / "postgres" / "second_target" / "data" / "global" / "pg_control").unlink()
    with pytest.raises(RosettaError, match=r"server second_target did not start; see .*server\.log") as caught:
        servers.start()
    assert caught.value.kind is ErrorKind.EMBEDDED_SERVER
    assert not any(each.running for each in servers.status().values())


def test_lost_passwords_are_named_as_such(home):
    servers = stack(home, "target")
    servers.start()
    servers.stop()
    (home / "embedded.secret").unlink()
    with pytest.raises(RosettaError, match=r"embedded\.secret and the data directory do not belong together"):
        servers.start()
    assert not servers.status()["target"].running


def test_secrets_are_in_private_files_only(home):
    servers = stack(home, "target", "redis")
    state = servers.start()
    assert state.redis is not None
    passwords = [state.postgres["target"].password.get_secret_value(), state.redis.password.get_secret_value()]
    pids = [status.pid for status in servers.status().values()]
    processes = [psutil.Process(pid) for pid in pids if pid is not None]
    processes += [child for process in processes for child in process.children(recursive=True)]
    shown = " ".join(" ".join(process.cmdline()) for process in processes) + repr(state) + json.dumps(state.as_json())
    assert not [each for each in passwords if each in shown]
    holders = set()
    for path in home.rglob("*"):
        if path.is_file() and any(each.encode() in path.read_bytes() for each in passwords):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            holders.add(path.name)
    assert holders == {"embedded.secret", "redis.conf"}
    with pytest.raises(redis.AuthenticationError), redis.Redis(port=state.redis.port) as client:
        client.ping()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(
            host="127.0.0.1", port=state.postgres["target"].port, user="rosetta", password="x", dbname="postgres"
        )


def test_servers_do_not_inherit_the_callers_environment(home, monkeypatch):
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", "canary")
    state = stack(home, "target").start()
    query(state, "target", "CREATE TABLE e (line text)")
    query(state, "target", "COPY e FROM PROGRAM 'env'")
    assert query(state, "target", "SELECT count(*) FROM e WHERE line LIKE '%canary%'") == [(0,)]
    assert query(state, "target", "SELECT count(*) > 0 FROM e") == [(True,)]


def test_remove_leaves_nothing(home):
    servers = stack(home, "target", "redis")
    servers.start()
    pids = [status.pid for status in servers.status().values()]
    servers.remove()
    assert not home.exists()
    wait_for(lambda: not any(command_line(pid) for pid in pids if pid), 10, "the servers to end")


def test_status_and_state_of_a_home_without_servers(home):
    servers = stack(home, "target")
    assert not servers.status()["target"].running
    with pytest.raises(RosettaError, match="start it with `rosetta up`"):
        servers.state()


def test_a_damaged_state_file_is_named(home):
    (home / "embedded.json").write_text("{")
    with pytest.raises(RosettaError, match=r"embedded\.json is damaged"):
        stack(home, "target").start()
