"""Redis as the dead-letter queue needs it: reachable, and keeping what it was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from cdc_runner.errors import ErrorKind, RosettaError

TIMEOUT_SECONDS = 5.0
SYNC_TIMEOUT_MS = 5000


@dataclass(frozen=True, slots=True)
class Durability:
    """Whether Redis keeps what it was given.

    Attributes:
        version: of the server.
        problems: why it does not; empty when it does.
        warnings: what is a risk, but no reason to stop.
        run: name of the server's run; another one after a restart.
    """

    version: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    run: str = ""


class LetterStore:
    """A connection to Redis. Opens by itself; used by one thread at a time.

    Errors never hold the URL's password: only host and port are named.
    """

    def __init__(self, url: SecretStr | None, *, binary: bool = False) -> None:
        """Args:
        url: `redis://…` or `rediss://…`; None when REDIS_URL is not set.
        binary: what is read is bytes, not text.
        """
        self._url = url
        self._binary = binary
        self._client: redis.Redis | None = None
        self._syncs = True

    @property
    def place(self) -> str:
        """Host and port, for messages."""
        if self._url is None:
            return "none (REDIS_URL is not set)"
        try:
            parts = urlsplit(self._url.get_secret_value())
            return f"{parts.hostname}:{parts.port or 6379}"
        except ValueError:
            return "an address that is not a URL"

    def another(self) -> LetterStore:
        """Return a further connection to the same server, for another thread."""
        return LetterStore(self._url, binary=self._binary)

    @property
    def configured(self) -> bool:
        """Whether REDIS_URL is set."""
        return self._url is not None

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Give the client; its errors become RosettaErrors.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE.
        """
        if self._url is None:
            raise unavailable("REDIS_URL is not set: there is no dead-letter queue")
        try:
            if self._client is None:
                self._client = redis.Redis.from_url(
                    self._url.get_secret_value(),
                    decode_responses=not self._binary,
                    encoding_errors="surrogatepass",
                    socket_timeout=TIMEOUT_SECONDS + SYNC_TIMEOUT_MS / 1000,
                    socket_connect_timeout=TIMEOUT_SECONDS,
                    socket_keepalive=True,
                    # A retry could store an entry twice; whoever calls decides.
                    retry=Retry(NoBackoff(), 0),
                    client_name="rosetta",
                )
            yield self._client
        except ValueError:
            raise unavailable("REDIS_URL is not a URL of Redis (redis://:password@host:port/0)") from None
        except RedisError as error:
            self.close()
            raise unavailable(f"Redis at {self.place} {_words(error)}") from None

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def durability(self) -> Durability:
        """Return whether the server keeps what it was given.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE when it cannot be reached.
        """
        with self.client() as client:
            info = client.info("everything")
            try:
                found = list(client.config_get("appendfsync").values())
                fsync = found[0].decode() if found and isinstance(found[0], bytes) else next(iter(found), None)
            except ResponseError:
                fsync = None  # servers of others often do not tell
        problems, warnings = [], []
        if not int(info.get("aof_enabled", 0)):
            problems.append("it keeps no append-only file (appendonly no): a restart would lose entries")
        elif info.get("aof_last_write_status", "ok") != "ok":
            problems.append("its last write to the append-only file failed")
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if policy != "noeviction":
            problems.append(f"it may evict entries when memory is short (maxmemory-policy {policy})")
        if fsync == "no":
            problems.append("it never syncs its append-only file (appendfsync no)")
        if str(info.get("role", "master")) != "master":
            problems.append("it is a replica, which cannot be written to")
        if self._url is not None and not self._private():
            warnings.append("it is reached without a password, and not on this machine")
        version = str(info.get("valkey_version") or info.get("redis_version", "?"))
        return Durability(version, tuple(problems), tuple(warnings), str(info.get("run_id", "")))

    def require_durable(self) -> None:
        """Make sure that the server keeps what it is given.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE, saying why not.
        """
        found = self.durability()
        if found.problems:
            raise unavailable(f"Redis at {self.place} is not durable: {'; '.join(found.problems)}")

    def sync(self) -> None:
        """Wait until everything that this connection wrote is on the server's disk.

        Servers before Redis 7.2 cannot tell; there the append-only file is synced within a second.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE when that takes too long.
        """
        if not self._syncs:
            return
        with self.client() as client:
            try:
                local, _ = client.waitaof(1, 0, SYNC_TIMEOUT_MS)
            except ResponseError as error:
                if "unknown command" not in str(error).lower():
                    raise
                self._syncs = False
                return
        if local < 1:
            raise unavailable(f"Redis at {self.place} did not write its append-only file within {SYNC_TIMEOUT_MS} ms")

    def _private(self) -> bool:
        assert self._url is not None, "asked only when there is one"
        parts = urlsplit(self._url.get_secret_value())
        return bool(parts.password) or parts.hostname in ("127.0.0.1", "localhost", "::1", None)


def unavailable(message: str) -> RosettaError:
    """Return the error of a queue that cannot be used now."""
    return RosettaError(ErrorKind.DEAD_LETTER_UNAVAILABLE, message)


def _words(error: RedisError) -> str:
    """Return what is wrong, without the server's text, which may repeat what was sent."""
    if isinstance(error, AuthenticationError):
        return "refuses the user or password of REDIS_URL"
    if isinstance(error, OutOfMemoryError):
        return "has no memory left (maxmemory)"
    if isinstance(error, ReadOnlyError):
        return "is a replica, which cannot be written to"
    if isinstance(error, ResponseError):
        return f"refused a command ({str(error).split(' ', 1)[0][:40]})"
    return f"cannot be reached ({type(error).__name__})"
