"""All embedded servers of one ROSETTA_HOME: start, stop and status, from any process.

home/embedded.json     ports, pids and directories; no secret
home/embedded.secret   passwords, 0600
home/embedded.lock     held while servers are started or stopped
home/postgres/NAME/    one PostgreSQL server each (or a link to where its account can reach them)
home/redis/
home/credential.key    key for credentials in the config database, 0600
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import structlog

from cdc_runner.errors import ErrorKind, RosettaError
from rosetta_dagster.embedded import port as loopback_port
from rosetta_dagster.embedded.account import remove_server_root, server_account, server_root
from rosetta_dagster.embedded.binaries import postgres_binaries, redis_binary
from rosetta_dagster.embedded.postgres import EmbeddedPostgres, PortTaken
from rosetta_dagster.embedded.private_file import server_passwords
from rosetta_dagster.embedded.redis_server import EmbeddedRedis
from rosetta_dagster.embedded.state import PostgresState, RedisState, ServerStatus, StackState, StoredServer
from rosetta_dagster.embedded.waiting import until

_log = structlog.get_logger(__name__)

REDIS = "redis"
DEFAULT_PORTS: dict[str, int] = {"config": 5433, "source": 5434, "target": 5435, "second_target": 5436, REDIS: 6379}
DATABASES: dict[str, tuple[str, ...]] = {
    "config": ("rosetta", "dagster"),
    "source": ("shop",),
    "target": ("warehouse",),
    "second_target": ("warehouse",),
}
SERVER_SETTINGS: dict[str, dict[str, str]] = {"source": {"max_prepared_transactions": "20"}}
LOCK_TIMEOUT_SECONDS = 300
_PORT_ATTEMPTS = 5

_Result = TypeVar("_Result")


def home_directory(environment: Mapping[str, str] | None = None) -> Path:
    """Return ROSETTA_HOME, or `.rosetta` below the working directory."""
    named = (os.environ if environment is None else environment).get("ROSETTA_HOME", "")
    return Path(named).expanduser() if named else Path.cwd() / ".rosetta"


class EmbeddedStack:
    """The embedded servers of one home directory.

    Servers outlive the process that started them; `stop` works from any process. Starting what runs, and stopping what
    does not, does nothing. As a context manager it starts at the beginning and stops at the end.

    Example:
        >>> with EmbeddedStack(home_directory()) as state:  # doctest: +SKIP
        ...     address = state.postgres["config"].address("rosetta")
    """

    def __init__(
        self,
        home: Path,
        servers: Sequence[str] = tuple(DEFAULT_PORTS),
        *,
        ports: Mapping[str, int] | None = None,
        fsync: bool = True,
    ) -> None:
        """Describe a stack; nothing is started or created.

        Args:
            home: directory of the state; created at the first start.
            servers: names out of `config`, `source`, `target`, `second_target`, `redis`.
            ports: preferred ports by server name, 0 for any free one; defaults to `DEFAULT_PORTS`.
            fsync: false for tests only: a crash of the machine then loses data.
        """
        unknown = sorted(set(servers) - set(DEFAULT_PORTS))
        if unknown:
            raise ValueError(f"unknown servers {unknown}; known are {sorted(DEFAULT_PORTS)}")
        self.home = home.expanduser().resolve()
        self.servers = tuple(servers)
        self._ports = {**DEFAULT_PORTS, **(ports or {})}
        self._fsync = fsync

    def __enter__(self) -> StackState:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> StackState:
        """Start the servers that do not run and return how to reach all of them.

        A server takes the port that it had before, else its preferred one, else any free one; `PostgresState.moved`
        tells the last case, which is also logged. When one server fails, those that this call started are stopped.

        Raises:
            RosettaError: a server did not start, or another process holds the home for more than five minutes.
        """
        self._create_home()
        with self._locked():
            stored = StackState.read_file(self.home)
            taken: set[int] = set()
            servers = {name: self._server(name) for name in self.servers}
            idle = [name for name, server in servers.items() if server.running_pid() is None]
            ports = {name: self._choose_port(server, stored, taken) for name, server in servers.items()}
            try:
                started = _in_parallel(self.servers, lambda name: self._start_one(servers[name], ports[name], taken))
            except BaseException:
                _in_parallel(idle, lambda name: servers[name].stop())
                raise
            StackState.write_file(self.home, {**stored, **started})
            for name, server in started.items():
                if server.port != server.preferred_port > 0:
                    _log.warning("embedded.port_moved", server=name, wanted=server.preferred_port, port=server.port)
        return self.state()

    def stop(self) -> None:
        """Stop the servers, each cleanly where it lets itself; what they hold is kept."""
        if not self.home.is_dir():
            return
        with self._locked():
            servers = {name: self._server(name) for name in self.servers if self._was_made(name)}
            _in_parallel(list(servers), lambda name: servers[name].stop())

    def remove(self) -> None:
        """Stop every server of the home and delete all their data, passwords and the credential key with it."""
        EmbeddedStack(self.home).stop()
        if self.home.is_dir():
            remove_server_root(self.home)
            shutil.rmtree(self.home)

    def state(self) -> StackState:
        """Return how to reach the servers, as of their last start; they may have been stopped since.

        Raises:
            RosettaError: one of them was never started in this home.
        """
        stored = StackState.read_file(self.home)
        missing = [name for name in self.servers if name not in stored]
        if missing:
            raise RosettaError(
                ErrorKind.EMBEDDED_SERVER,
                f"no embedded server {', '.join(missing)} in {self.home}; start it with `rosetta up`",
            )
        passwords = server_passwords(self.home, self.servers)
        postgres = {
            name: PostgresState(name, stored[name], passwords[name], DATABASES[name])
            for name in self.servers
            if name != REDIS
        }
        redis = RedisState(REDIS, stored[REDIS], passwords[REDIS]) if REDIS in self.servers else None
        return StackState(self.home, postgres, redis)

    def status(self) -> dict[str, ServerStatus]:
        """Return, for each server, whether it runs now, its pid and port; starts and changes nothing."""
        stored = StackState.read_file(self.home)
        result = {}
        for name in self.servers:
            known = stored.get(name)
            pid = self._server_at(name, Path(known.directory)).running_pid() if known else None
            result[name] = ServerStatus(name, pid is not None, pid, known.port if known else None)
        return result

    def _start_one(self, server: EmbeddedPostgres | EmbeddedRedis, port: int, taken: set[int]) -> StoredServer:
        for _ in range(_PORT_ATTEMPTS):
            try:
                pid = server.start(port)
            except PortTaken:
                port = loopback_port.choose([], taken)
                continue
            return StoredServer(port, self._ports[server.name], pid, str(server.directory), str(server.log_file))
        raise RosettaError(ErrorKind.EMBEDDED_SERVER, f"found no free port for embedded server {server.name}")

    def _choose_port(
        self, server: EmbeddedPostgres | EmbeddedRedis, stored: Mapping[str, StoredServer], taken: set[int]
    ) -> int:
        """Return the port to start on: that of a running server, else that of before, the preferred one, or any."""
        running = server.running_port()
        if running is not None:
            taken.add(running)
            return running
        if isinstance(server, EmbeddedPostgres):
            server.clear_remains()  # children of a killed server hold its port
        # The port of before comes first: addresses stored in the config database stay right.
        known = stored.get(server.name)
        return loopback_port.choose([known.port if known else 0, self._ports[server.name]], taken)

    def _was_made(self, name: str) -> bool:
        parent = self.home if name == REDIS else self.home / "postgres"
        return (parent / name).is_dir()

    def _server(self, name: str) -> EmbeddedPostgres | EmbeddedRedis:
        if name == REDIS:
            return self._server_at(name, self.home / "redis")
        return self._server_at(name, server_root(self.home, server_account()) / name)

    def _server_at(self, name: str, directory: Path) -> EmbeddedPostgres | EmbeddedRedis:
        password = server_passwords(self.home, (name,))[name]
        if name == REDIS:
            return EmbeddedRedis(name, directory, redis_binary(), password)
        account = server_account()
        return EmbeddedPostgres(
            name=name,
            directory=directory,
            binaries=postgres_binaries(account, directory.parent),
            account=account,
            password=password,
            databases=DATABASES[name],
            settings=SERVER_SETTINGS.get(name, {}),
            fsync=self._fsync,
        )

    def _create_home(self) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if server_account().changes and self.home.stat().st_uid == os.geteuid():
            # The server's account must pass through; listing stays closed and every file of ours is 0600.
            self.home.chmod(self.home.stat().st_mode | 0o011)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.home / "embedded.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not until(lambda: _try_lock(descriptor), timeout_seconds=LOCK_TIMEOUT_SECONDS):
                raise RosettaError(
                    ErrorKind.EMBEDDED_SERVER, f"another process is starting or stopping the servers of {self.home}"
                )
            yield
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_parallel(names: Sequence[str], action: Callable[[str], _Result]) -> dict[str, _Result]:
    """Do the same for every server, wait for all of them, and raise the first failure."""
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        futures = {name: pool.submit(action, name) for name in names}
    return {name: future.result() for name, future in futures.items()}
