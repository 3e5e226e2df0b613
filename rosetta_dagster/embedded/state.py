"""How to reach embedded servers: what `embedded.json` holds, joined with their passwords."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import SecretStr

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import PostgresAddress
from rosetta_dagster.embedded.port import LOOPBACK
from rosetta_dagster.embedded.postgres import SUPERUSER
from rosetta_dagster.embedded.private_file import write_private

STATE_FILE = "embedded.json"


@dataclass(frozen=True, slots=True)
class StoredServer:
    """A server as `embedded.json` knows it since its last start. Without secrets.

    Attributes:
        port: where it listens.
        preferred_port: where it was asked to listen; 0 for anywhere.
        pid: of its main process at its last start.
        directory: of its files.
        log: its log file.
    """

    port: int
    preferred_port: int
    pid: int
    directory: str
    log: str


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """Whether a server runs now. `pid` is None when it does not, `port` when it never did."""

    name: str
    running: bool
    pid: int | None
    port: int | None


@dataclass(frozen=True, slots=True)
class PostgresState:
    """How to reach an embedded PostgreSQL server as its superuser."""

    name: str
    stored: StoredServer
    password: SecretStr
    databases: tuple[str, ...]

    @property
    def host(self) -> str:
        """The loopback address."""
        return LOOPBACK

    @property
    def port(self) -> int:
        """The TCP port."""
        return self.stored.port

    @property
    def username(self) -> str:
        """The superuser."""
        return SUPERUSER

    @property
    def moved(self) -> bool:
        """True when the preferred port was busy and another one was taken."""
        return self.stored.port != self.stored.preferred_port > 0

    def address(self, database: str | None = None) -> PostgresAddress:
        """Return the address of a database; of the server's first one by default."""
        name = database or self.databases[0]
        return PostgresAddress(self.host, self.port, name, self.username, self.password, sslmode="disable")

    def url(self, database: str | None = None, *, scheme: str = "postgresql+psycopg2") -> SecretStr:
        """Return a URL with the password in it; never put it in an argument list or a log."""
        password = quote(self.password.get_secret_value(), safe="")
        name = quote(database or self.databases[0], safe="")
        return SecretStr(f"{scheme}://{self.username}:{password}@{self.host}:{self.port}/{name}")


@dataclass(frozen=True, slots=True)
class RedisState:
    """How to reach the embedded Redis server."""

    name: str
    stored: StoredServer
    password: SecretStr

    @property
    def host(self) -> str:
        """The loopback address."""
        return LOOPBACK

    @property
    def port(self) -> int:
        """The TCP port."""
        return self.stored.port

    @property
    def moved(self) -> bool:
        """True when the preferred port was busy and another one was taken."""
        return self.stored.port != self.stored.preferred_port > 0

    @property
    def url(self) -> SecretStr:
        """URL of database 0 with the password in it; never put it in an argument list or a log."""
        return SecretStr(f"redis://:{quote(self.password.get_secret_value(), safe='')}@{self.host}:{self.port}/0")


@dataclass(frozen=True, slots=True)
class StackState:
    """How to reach the servers of one home. `redis` is None when the stack has none."""

    home: Path
    postgres: Mapping[str, PostgresState]
    redis: RedisState | None

    def as_json(self) -> dict[str, object]:
        """Return ports, pids and directories for a report; without secrets."""
        servers: list[PostgresState | RedisState] = [*self.postgres.values(), *([self.redis] if self.redis else [])]
        return {each.name: {**asdict(each.stored), "host": each.host, "moved": each.moved} for each in servers}

    @staticmethod
    def read_file(home: Path) -> dict[str, StoredServer]:
        """Return the servers that a home knows; none when nothing was ever started there.

        Raises:
            RosettaError: the file is damaged.
        """
        path = home / STATE_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): StoredServer(**fields) for name, fields in content["servers"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise RosettaError(
                ErrorKind.EMBEDDED_SERVER, f"{path} is damaged or not readable; stop the servers and delete it"
            ) from None

    @staticmethod
    def write_file(home: Path, servers: Mapping[str, StoredServer]) -> None:
        """Replace the state file."""
        content = {"version": 1, "servers": {name: asdict(server) for name, server in sorted(servers.items())}}
        write_private(home / STATE_FILE, json.dumps(content, indent=1) + "\n")
