"""One embedded PostgreSQL server: its data directory, start, stop and recovery.

The package's own Python interface is not used: it creates an account, opens every parent directory to everyone, trusts
every connection, listens on a socket only and ends the server with the process. Its programs are driven here instead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
import psycopg2.extensions
import structlog
from pydantic import SecretStr

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import quote_identifier
from cdc_runner.spec import PostgresAddress
from rosetta_dagster.embedded.account import Account
from rosetta_dagster.embedded.port import LOOPBACK
from rosetta_dagster.embedded.private_file import write_private
from rosetta_dagster.embedded.process import is_postmaster, server_children
from rosetta_dagster.embedded.waiting import until

_log = structlog.get_logger(__name__)

SUPERUSER = "rosetta"
START_TIMEOUT_SECONDS = 120
"""Long enough for crash recovery of a few GB of WAL."""
STOP_TIMEOUT_SECONDS = 20
_LOG_LIMIT_BYTES = 10_000_000

_SETTINGS: dict[str, str] = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # a path of a socket is limited to 107 bytes; nothing here needs one
    "password_encryption": "scram-sha-256",
    "wal_level": "logical",
    "max_replication_slots": "50",
    "max_wal_senders": "50",
    "max_connections": "200",
    "max_worker_processes": "32",
    "max_logical_replication_workers": "16",
    "max_locks_per_transaction": "256",
    "TimeZone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a %u@%d ",
    # The log must hold neither row values nor the text of a statement with a password in it.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_parameter_max_length_on_error": "0",
}


class PortTaken(Exception):
    """Somebody else took the port between the choice and the start."""


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """A PostgreSQL server of the Python package, on the loopback address only. Holds no process.

    Two objects with the same directory are the same server, in this process or another. Callers serialise `start` and
    `stop` of one directory.

    Attributes:
        name: short word, shown in the titles of the server's processes.
        directory: holds `data/` and `server.log`; belongs to `account`.
        binaries: directory of `postgres`, `initdb` and `pg_ctl`.
        account: the account that the server runs under.
        password: of the superuser `rosetta`; used when the data directory is made, and to create databases.
        databases: created when absent.
        settings: more server settings.
        fsync: false makes a crash of the machine lose the data; for tests.
    """

    name: str
    directory: Path
    binaries: Path
    account: Account
    password: SecretStr
    databases: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    fsync: bool = True

    @property
    def data_directory(self) -> Path:
        """PGDATA."""
        return self.directory / "data"

    @property
    def log_file(self) -> Path:
        """What the server has to say; without row values."""
        return self.directory / "server.log"

    @property
    def cluster_name(self) -> str:
        """Unique for a directory, so that the server's processes are told from those of every other."""
        return f"rosetta-{self.name}-{_directory_digest(self.directory)}"

    def running_pid(self) -> int | None:
        """Return the pid of the running server, or None; a stale pid file counts as not running."""
        lines = self._pid_file_lines()
        pid = int(lines[0]) if lines and lines[0].strip().isdigit() else None
        return pid if pid is not None and is_postmaster(pid, self.data_directory) else None

    def running_port(self) -> int | None:
        """Return the port of the running server, or None."""
        lines = self._pid_file_lines()
        return int(lines[3]) if self.running_pid() is not None and len(lines) > 3 and lines[3].isdigit() else None

    def start(self, port: int) -> int:
        """Start the server unless it runs, wait until it accepts connections, and create missing databases.

        Returns:
            The pid of its main process. A server that runs already keeps its port.

        Raises:
            PortTaken: the port is busy; start again with another.
            RosettaError: it did not start; the message names the log file.
        """
        pid = self.running_pid()
        if pid is None:
            self._initialise()
            self.clear_remains()
            self._write_settings(port)
            pid = self._launch(port)
        self._create_databases(self.running_port() or port)
        return pid

    def stop(self) -> None:
        """Stop the server; does nothing when it does not run.

        Sessions are ended and data is written first (`fast`). When that does not end within 20 s, for instance because
        a replication client does not answer, the server stops at once and recovers from its WAL at the next start.
        """
        pid = self.running_pid()
        if pid is None:
            return
        seconds = str(STOP_TIMEOUT_SECONDS)
        if self._run("pg_ctl", ["stop", "-w", "-s", "-m", "fast", "-t", seconds, "-D", str(self.data_directory)]):
            _log.warning("embedded.stop_immediate", server=self.name, waited_seconds=STOP_TIMEOUT_SECONDS)
            self._run("pg_ctl", ["stop", "-w", "-s", "-m", "immediate", "-t", seconds, "-D", str(self.data_directory)])
        if not until(lambda: not is_postmaster(pid, self.data_directory), timeout_seconds=STOP_TIMEOUT_SECONDS):
            raise self._failure("did not stop")

    def address(self, database: str, port: int) -> PostgresAddress:
        """Return how to reach a database of this server as its superuser."""
        return PostgresAddress(LOOPBACK, port, database, SUPERUSER, self.password, sslmode="disable")

    def create_database(self, database: str, port: int) -> None:
        """Create a database when it is absent."""
        connection = self._connect("postgres", port)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {quote_identifier(database)}")
        finally:
            connection.close()

    def _connect(self, database: str, port: int) -> psycopg2.extensions.connection:
        try:
            return psycopg2.connect(
                host=LOOPBACK,
                port=port,
                dbname=database,
                user=SUPERUSER,
                password=self.password.get_secret_value(),
                sslmode="disable",
                gssencmode="disable",
                connect_timeout=10,
                application_name="rosetta embedded",
            )
        except psycopg2.OperationalError as error:
            if "authentication failed" in str(error):
                text = "refuses the password kept for it: embedded.secret and the data directory do not belong together"
                raise self._failure(text) from None
            raise self._failure("does not accept connections") from None

    def _create_databases(self, port: int) -> None:
        for database in self.databases:
            self.create_database(database, port)

    def _pid_file_lines(self) -> list[str]:
        try:
            text = (self.data_directory / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return [line.strip() for line in text.splitlines()]

    def _initialise(self) -> None:
        """Make the data directory; under another name first, so that a half-made one is never taken for whole."""
        if (self.data_directory / "PG_VERSION").is_file():
            self._check_version()
            return
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.account.own(self.directory)
        partial = self.directory / "data.partial"
        if partial.exists():
            shutil.rmtree(partial)
        password_file = self.directory / "initial-password"
        write_private(password_file, self.password.get_secret_value())
        self.account.own(password_file)
        arguments = ["-D", str(partial), "-U", SUPERUSER, f"--pwfile={password_file}", "--auth=scram-sha-256"]
        arguments += ["--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions"]
        arguments += [] if self.fsync else ["--no-sync"]
        try:
            if self._run("initdb", arguments):
                raise self._failure("could not be initialised")
        finally:
            password_file.unlink(missing_ok=True)
        with (partial / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.write("\ninclude = 'rosetta.conf'\n")
        partial.rename(self.data_directory)

    def _check_version(self) -> None:
        found = (self.data_directory / "PG_VERSION").read_text().strip()
        answer = subprocess.run(
            [str(self.binaries / "postgres"), "--version"], capture_output=True, text=True, check=False
        )
        offered = answer.stdout.split()[-1].split(".")[0] if answer.stdout.split() else found
        if offered != found:
            raise self._failure(f"has data of PostgreSQL {found}, but PostgreSQL {offered} is installed")

    def clear_remains(self) -> None:
        """Remove what a killed server left, as far as that is safe; its port is free afterwards.

        PostgreSQL recovers from a stale pid file by itself, unless the number belongs to another process of the account
        by now. The file also guards against children of the killed server that still write: so they end first.
        """
        pid_file = self.data_directory / "postmaster.pid"
        if not pid_file.exists() or self.running_pid() is not None:
            return
        name = self.cluster_name
        if not until(lambda: not server_children(name), timeout_seconds=5):
            for process in server_children(name):
                process.kill()
            if not until(lambda: not server_children(name), timeout_seconds=10):
                raise self._failure("was killed, but some of its processes do not end")
        _log.info("embedded.stale_pid_file", server=self.name)
        pid_file.unlink()

    def _write_settings(self, port: int) -> None:
        settings = {**_SETTINGS, "port": str(port), "cluster_name": self.cluster_name}
        settings["fsync"] = "on" if self.fsync else "off"
        settings.update(self.settings)
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()]
        path = self.data_directory / "rosetta.conf"
        path.write_text("# Written at every start; changes here are lost.\n" + "".join(lines), encoding="utf-8")
        self.account.own(path)

    def _launch(self, port: int) -> int:
        if self.log_file.exists() and self.log_file.stat().st_size > _LOG_LIMIT_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        before = self.log_file.stat().st_size if self.log_file.exists() else 0
        arguments = ["start", "-w", "-s", "-t", str(START_TIMEOUT_SECONDS)]
        arguments += ["-D", str(self.data_directory), "-l", str(self.log_file)]
        failed = self._run("pg_ctl", arguments)
        pid = self.running_pid()
        if not failed and pid is not None:
            return pid
        said = self._log_since(before)
        if "could not bind" in said or "Address already in use" in said:
            raise PortTaken(str(port))
        raise self._failure("did not start")

    def _log_since(self, offset: int) -> str:
        try:
            with self.log_file.open("rb") as log:
                log.seek(offset)
                return log.read(100_000).decode("utf-8", "replace")
        except OSError:
            return ""

    def _run(self, program: str, arguments: list[str]) -> int:
        """Run a program of the package under the server's account and return its exit code.

        Its output goes to a file, because the server inherits it and would keep a pipe open for ever. The environment
        holds nothing of the caller's: `COPY ... TO PROGRAM` could read it.
        """
        output = self.directory / f"{program}.log"
        with output.open("wb") as sink:
            self.account.own(output)
            result = subprocess.run(
                [str(self.binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.directory)},
                check=False,
                timeout=START_TIMEOUT_SECONDS + 30,
                umask=0o077,
                **self.account.subprocess_options(),
            )
        return result.returncode

    def _failure(self, what: str) -> RosettaError:
        log = self.log_file if self.log_file.exists() else self.directory
        return RosettaError(
            ErrorKind.EMBEDDED_SERVER,
            f"embedded PostgreSQL server {self.name} {what}; see {log}",
            {"server": self.name},
        )


def _directory_digest(directory: Path) -> str:
    return hashlib.sha256(str(directory).encode()).hexdigest()[:10]
