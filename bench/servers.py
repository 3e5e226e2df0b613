"""Servers of the benchmark: embedded ones in a home of their own, as users get them (fsync on)."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
from pydantic import SecretStr

from cdc_runner.schema import quote_identifier
from cdc_runner.spec import PostgresAddress
from rosetta_dagster.embedded import EmbeddedStack, PostgresState

_NAMES = ("config", "source", "target")


@dataclass(frozen=True, slots=True)
class Database:
    """A database of the benchmark, reached as the superuser."""

    host: str
    port: int
    name: str
    username: str
    password: str = field(repr=False)

    def connect(self) -> psycopg2.extensions.connection:
        """Open a connection in autocommit mode; the caller closes it."""
        connection: psycopg2.extensions.connection = psycopg2.connect(self.dsn())
        connection.autocommit = True
        return connection

    def execute(self, statement: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own and return its rows, if it has any."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def dsn(self) -> str:
        """Return the libpq connection string; it holds the password."""
        return (
            f"host={self.host} port={self.port} dbname={self.name} user={self.username} password={self.password} "
            "sslmode=disable"
        )

    def url(self) -> str:
        """Return the SQLAlchemy URL; it holds the password."""
        return f"postgresql+psycopg2://{self.username}:{self.password}@{self.host}:{self.port}/{self.name}"

    def uri(self) -> str:
        """Return the libpq URI; it holds the password."""
        return f"postgresql://{self.username}:{self.password}@{self.host}:{self.port}/{self.name}?sslmode=disable"

    def address(self) -> PostgresAddress:
        """Return the address as the engine takes it."""
        return PostgresAddress(self.host, self.port, self.name, self.username, SecretStr(self.password), "disable")


@dataclass(frozen=True, slots=True)
class Servers:
    """The three servers, and a directory for files."""

    states: dict[str, PostgresState]
    home: Path

    def database(self, server: str, name: str = "postgres") -> Database:
        """Return a database that exists."""
        state = self.states[server]
        return Database(state.host, state.port, name, state.username, state.password.get_secret_value())

    def create(self, server: str, prefix: str) -> Database:
        """Create an empty database."""
        name = f"{prefix}_{secrets.token_hex(3)}"
        self.database(server).execute(f"CREATE DATABASE {quote_identifier(name)}")
        return self.database(server, name)

    def drop(self, server: str, database: Database) -> None:
        """Drop a database that has no slot and no subscription any more."""
        self.database(server).execute(f"DROP DATABASE IF EXISTS {quote_identifier(database.name)} WITH (FORCE)")

    def settle(self) -> None:
        """Write what is dirty, so that one measure does not pay for the one before."""
        for name in self.states:
            self.database(name).execute("CHECKPOINT")


@contextmanager
def servers() -> Iterator[Servers]:
    """Start the servers in a temporary home; stop and remove them at the end."""
    home = Path(tempfile.mkdtemp(prefix="rosetta-bench-"))
    stack = EmbeddedStack(home, _NAMES, ports=dict.fromkeys(_NAMES, 0))
    try:
        yield Servers(dict(stack.start().postgres), home)
    finally:
        stack.remove()
