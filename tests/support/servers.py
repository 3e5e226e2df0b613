"""Embedded servers for tests: started once a session, in a temporary home, without fsync.

    config_server, source_server, target_server, second_target_server   PostgresServer, for the session
    config_database, source_database, target_database, second_target_database   an empty Database, for one test
    redis_server, redis_client   the client finds an empty database
    own_servers                  a factory of servers of one test, which it may kill

`ROSETTA_TEST_DSN` names a PostgreSQL server (superuser, `wal_level=logical`) to use in place of all four.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import psycopg2.extensions
import pytest
import redis
from pydantic import SecretStr

from cdc_runner.schema import quote_identifier
from cdc_runner.spec import PostgresAddress
from rosetta_dagster.embedded import EmbeddedStack, PostgresState, RedisState, StackState
from tests.support.waiting import wait_for

_PREFIX = "rosetta-test-"
_FREE_PORTS = {name: 0 for name in ("config", "source", "target", "second_target", "redis")}


@dataclass(frozen=True)
class PostgresServer:
    """A PostgreSQL server and its superuser."""

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    stack: EmbeddedStack | None = field(default=None, repr=False)

    def connect(self, database: str = "postgres", **parameters: Any) -> psycopg2.extensions.connection:
        """Open a connection in autocommit mode; the caller closes it."""
        connection: psycopg2.extensions.connection = psycopg2.connect(
            host=self.host,
            port=self.port,
            user=self.username,
            password=self.password,
            dbname=database,
            # A new session waits for the disk when others fill it; a machine under test may be slow, not wrong.
            connect_timeout=60,
            **parameters,
        )
        connection.autocommit = True
        return connection

    def execute(self, statement: str, parameters: Sequence[Any] | None = None, database: str = "postgres") -> list[Any]:
        """Run a statement on a connection of its own and return its rows, if it has any."""
        connection = self.connect(database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def address(self, database: str, *, port: int | None = None) -> PostgresAddress:
        """Return the address of a database; `port` puts a proxy in between."""
        return PostgresAddress(self.host, port or self.port, database, self.username, SecretStr(self.password))

    def create_database(self, name: str) -> Database:
        """Create an empty database."""
        self.execute(f"CREATE DATABASE {quote_identifier(name)}")
        return Database(self, name)

    def drop_database(self, name: str) -> None:
        """Drop a database with everything that holds on to it: sessions, slots, subscriptions."""
        self._drop_subscriptions(name)
        for (slot,) in self.execute("SELECT slot_name FROM pg_replication_slots WHERE database = %s", (name,)):
            self._drop_slot(slot)
        self.execute(f"DROP DATABASE IF EXISTS {quote_identifier(name)} WITH (FORCE)")

    def _drop_subscriptions(self, database: str) -> None:
        found = self.execute(
            "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE datname = %s",
            (database,),
        )
        for (name,) in found:
            quoted = quote_identifier(name)
            self.execute(f"ALTER SUBSCRIPTION {quoted} DISABLE", database=database)
            self.execute(f"ALTER SUBSCRIPTION {quoted} SET (slot_name = NONE)", database=database)
            self.execute(f"DROP SUBSCRIPTION {quoted}", database=database)

    def _drop_slot(self, slot: str) -> None:
        def dropped() -> bool:
            self.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", (slot,)
            )
            try:
                self.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
            except psycopg2.errors.ObjectInUse:
                return False
            except psycopg2.errors.UndefinedObject:
                return True
            return True

        wait_for(dropped, 20, f"slot {slot} to be dropped")

    # Faults. Only for servers of one test (`own_servers`), or followed by `start`.

    def stop(self) -> None:
        """Stop the server cleanly; `start` brings it back on the same port."""
        self._stack().stop()

    def start(self) -> None:
        """Start the server again."""
        self._stack().start()

    def kill(self) -> None:
        """Kill the server's main process as a crash would; its children end by themselves soon after."""
        (status,) = self._stack().status().values()
        assert status.pid is not None, "the server does not run"
        os.kill(status.pid, signal.SIGKILL)

    def _stack(self) -> EmbeddedStack:
        if self.stack is None:
            pytest.skip("the server is not ours to stop (ROSETTA_TEST_DSN)")
        return self.stack


@dataclass(frozen=True)
class Database:
    """A database of one test."""

    server: PostgresServer
    name: str

    def connect(self, **parameters: Any) -> psycopg2.extensions.connection:
        """Open a connection in autocommit mode; the caller closes it."""
        return self.server.connect(self.name, **parameters)

    def execute(self, statement: str, parameters: Sequence[Any] | None = None) -> list[Any]:
        """Run a statement on a connection of its own and return its rows, if it has any."""
        return self.server.execute(statement, parameters, self.name)

    def address(self, *, port: int | None = None) -> PostgresAddress:
        """Return its address; `port` puts a proxy in between."""
        return self.server.address(self.name, port=port)

    def url(self, scheme: str = "postgresql+psycopg2") -> str:
        """Return a URL with the password in it."""
        server = self.server
        return f"{scheme}://{server.username}:{server.password}@{server.host}:{server.port}/{self.name}"


@dataclass(frozen=True)
class RedisServer:
    """A Redis server."""

    host: str
    port: int
    password: str = field(repr=False)
    stack: EmbeddedStack | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """URL of database 0 with the password in it."""
        return f"redis://:{self.password}@{self.host}:{self.port}/0"

    def client(self) -> redis.Redis:
        """Return a client; the caller closes it."""
        return redis.Redis(host=self.host, port=self.port, password=self.password, socket_timeout=10)


def postgres_server(state: PostgresState, stack: EmbeddedStack | None = None) -> PostgresServer:
    """Return the test object of an embedded server."""
    return PostgresServer(state.host, state.port, state.username, state.password.get_secret_value(), stack)


def redis_server_of(state: RedisState, stack: EmbeddedStack | None = None) -> RedisServer:
    """Return the test object of an embedded Redis server."""
    return RedisServer(state.host, state.port, state.password.get_secret_value(), stack)


def temporary_home() -> Path:
    """Return a new home below the directory for temporary files; its name says which process it belongs to."""
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))


def remove_left_homes() -> None:
    """Stop and remove servers of test sessions that were killed before they could."""
    for home in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        match = re.fullmatch(rf"{_PREFIX}(\d+)-.*", home.name)
        if match and home.stat().st_uid == os.geteuid() and not psutil.pid_exists(int(match.group(1))):
            # Another session may be removing it, too.
            with suppress(FileNotFoundError):
                EmbeddedStack(home).remove()


@pytest.fixture(scope="session")
def embedded_home() -> Iterator[Path]:
    """The home of the session's servers; they are stopped and removed at the end."""
    remove_left_homes()
    home = temporary_home()
    try:
        yield home
    finally:
        EmbeddedStack(home).remove()


def _session_server(name: str) -> Callable[..., PostgresServer]:
    @pytest.fixture(scope="session", name=f"{name}_server")
    def server(request: pytest.FixtureRequest) -> PostgresServer:
        dsn = os.environ.get("ROSETTA_TEST_DSN")
        if dsn:
            parsed = psycopg2.extensions.parse_dsn(dsn)
            return PostgresServer(parsed["host"], int(parsed.get("port", 5432)), parsed["user"], parsed["password"])
        home: Path = request.getfixturevalue("embedded_home")
        stack = EmbeddedStack(home, (name,), ports=_FREE_PORTS, fsync=False)
        return postgres_server(stack.start().postgres[name], stack)

    return server


def _test_database(name: str) -> Callable[..., Iterator[Database]]:
    @pytest.fixture(name=f"{name}_database")
    def database(request: pytest.FixtureRequest) -> Iterator[Database]:
        server: PostgresServer = request.getfixturevalue(f"{name}_server")
        created = server.create_database(f"test_{name}_{secrets.token_hex(4)}")
        try:
            yield created
        finally:
            server.drop_database(created.name)

    return database


config_server = _session_server("config")
source_server = _session_server("source")
target_server = _session_server("target")
second_target_server = _session_server("second_target")
config_database = _test_database("config")
source_database = _test_database("source")
target_database = _test_database("target")
second_target_database = _test_database("second_target")


@pytest.fixture(scope="session")
def redis_server(embedded_home: Path) -> RedisServer:
    """A durable Redis server for the session."""
    stack = EmbeddedStack(embedded_home, ("redis",), ports=_FREE_PORTS)
    state = stack.start().redis
    assert state is not None
    return redis_server_of(state, stack)


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client of the session's server that finds it empty and leaves it so."""
    client = redis_server.client()
    client.flushall()
    try:
        yield client
    finally:
        client.flushall()
        client.close()


@dataclass(frozen=True)
class OwnServers:
    """Servers of one test."""

    state: StackState
    stack: EmbeddedStack

    def postgres(self, name: str) -> PostgresServer:
        """Return one server, with `stop`, `start` and `kill` for it alone."""
        alone = EmbeddedStack(self.stack.home, (name,), ports=_FREE_PORTS, fsync=False)
        return postgres_server(self.state.postgres[name], alone)

    def kill(self, name: str) -> None:
        """Kill a server's main process as a crash would."""
        pid = self.stack.status()[name].pid
        assert pid is not None, "the server does not run"
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def own_servers() -> Iterator[Callable[..., OwnServers]]:
    """A factory of servers for one test, by name: `own_servers("source", "target")`."""
    with ExitStack() as cleanup:

        def start(*names: str, fsync: bool = False) -> OwnServers:
            stack = EmbeddedStack(temporary_home(), names, ports=_FREE_PORTS, fsync=fsync)
            cleanup.callback(stack.remove)
            return OwnServers(stack.start(), stack)

        yield start
