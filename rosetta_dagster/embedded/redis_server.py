"""One embedded Redis server: durable, with a password, on the loopback address only."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
import structlog
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry

from cdc_runner.errors import ErrorKind, RosettaError
from rosetta_dagster.embedded.port import LOOPBACK
from rosetta_dagster.embedded.postgres import PortTaken
from rosetta_dagster.embedded.private_file import write_private
from rosetta_dagster.embedded.process import is_redis
from rosetta_dagster.embedded.waiting import until

_log = structlog.get_logger(__name__)

START_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 20


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """A Redis server that keeps what it was given (`appendonly yes`) and evicts nothing. Holds no process.

    Two objects with the same directory are the same server, in this process or another. Callers serialise `start` and
    `stop` of one directory.

    Attributes:
        name: short word for messages.
        directory: holds the configuration, the append-only file and `server.log`.
        binary: `redis-server` or `valkey-server`.
        password: demanded of every client; in the configuration file (0600), never in an argument list.
    """

    name: str
    directory: Path
    binary: Path
    password: SecretStr

    @property
    def log_file(self) -> Path:
        """What the server has to say."""
        return self.directory / "server.log"

    @property
    def _pid_file(self) -> Path:
        return self.directory / "redis.pid"

    def running_pid(self) -> int | None:
        """Return the pid of the running server, or None; a stale pid file counts as not running."""
        try:
            pid = int(self._pid_file.read_text().strip())
        except (OSError, ValueError):
            return None
        return pid if is_redis(pid, self.directory) else None

    def running_port(self) -> int | None:
        """Return the port of the running server, or None."""
        if self.running_pid() is None:
            return None
        match = re.search(r"^port (\d+)$", (self.directory / "redis.conf").read_text(encoding="utf-8"), re.MULTILINE)
        return int(match.group(1)) if match else None

    def start(self, port: int) -> int:
        """Start the server unless it runs, and wait until it has loaded its data and answers.

        Returns:
            Its pid. A server that runs already keeps its port.

        Raises:
            PortTaken: the port is busy; start again with another.
            RosettaError: it did not start; the message names the log file.
        """
        pid = self.running_pid()
        if pid is not None:
            return pid
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self._pid_file.unlink(missing_ok=True)
        write_private(self.directory / "redis.conf", self._configuration(port))
        before = self.log_file.stat().st_size if self.log_file.exists() else 0
        result = subprocess.run(
            [str(self.binary), str(self.directory / "redis.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            check=False,
            timeout=START_TIMEOUT_SECONDS,
        )
        if result.returncode == 0:
            # The server leaves its parent before it binds the port, so the exit code does not tell a busy one.
            until(
                lambda: self._answers(port) or self._died() or _says_busy(self._log_since(before)),
                timeout_seconds=START_TIMEOUT_SECONDS,
            )
            pid = self.running_pid()
            if pid is not None and self._answers(port):
                return pid
        if _says_busy(self._log_since(before)):
            raise PortTaken(str(port))
        raise self._failure("did not start")

    def stop(self) -> None:
        """Stop the server after it has written its data; does nothing when it does not run."""
        pid = self.running_pid()
        if pid is None:
            return
        for each in (signal.SIGTERM, signal.SIGKILL):
            try:
                psutil.Process(pid).send_signal(each)
            except psutil.NoSuchProcess:
                break
            if until(lambda: not is_redis(pid, self.directory), timeout_seconds=STOP_TIMEOUT_SECONDS):
                break
            _log.warning("embedded.stop_immediate", server=self.name, waited_seconds=STOP_TIMEOUT_SECONDS)
        self._pid_file.unlink(missing_ok=True)

    def _answers(self, port: int) -> bool:
        client = redis.Redis(
            host=LOOPBACK,
            port=port,
            password=self.password.get_secret_value(),
            socket_timeout=1,
            # The loop around this call is the retry; the client's own takes a minute when a foreign server is silent.
            retry=Retry(NoBackoff(), 0),
        )
        try:
            # A foreign server on the port would answer too, but not to our password and with our pid.
            information: dict[str, object] = client.info("server")
            return information.get("process_id") == self.running_pid()
        except redis.RedisError:
            return False
        finally:
            client.close()

    def _died(self) -> bool:
        """Tell whether the server wrote its pid and ended since, as it does when its data cannot be loaded."""
        return self._pid_file.exists() and self.running_pid() is None

    def _configuration(self, port: int) -> str:
        return "\n".join(
            [
                "# Written at every start; changes here are lost.",
                f"bind {LOOPBACK}",
                f"port {port}",
                "protected-mode yes",
                f"requirepass {self.password.get_secret_value()}",
                "daemonize yes",
                f'pidfile "{self._pid_file}"',
                f'logfile "{self.log_file}"',
                f'dir "{self.directory}"',
                "appendonly yes",
                "appendfsync everysec",
                "aof-load-truncated yes",
                'save ""',
                "maxmemory-policy noeviction",
                "",
            ]
        )

    def _log_since(self, offset: int) -> str:
        try:
            with self.log_file.open("rb") as log:
                log.seek(offset)
                return log.read(100_000).decode("utf-8", "replace")
        except OSError:
            return ""

    def _failure(self, what: str) -> RosettaError:
        return RosettaError(
            ErrorKind.EMBEDDED_SERVER, f"embedded Redis server {what}; see {self.log_file}", {"server": self.name}
        )


def _says_busy(log: str) -> bool:
    return "Address already in use" in log or "Could not create server TCP listening socket" in log
