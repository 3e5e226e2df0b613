"""A strict local server for the Snowflake destination: checks what the service would, and fails as it is told to.

It checks who asks (`snowflake_door`), the order of continuation and offset tokens, sizes and rates. What a client does
wrong beyond what the protocol answers with an error is kept in `violations`.
"""

from __future__ import annotations

import gzip
import json
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pytest

from tests.support.snowflake_door import Answer, Door
from tests.support.snowflake_key import private_key
from tests.support.snowflake_sql import SnowflakeSql, SqlError

DATABASE = "ANALYTICS"
FAULTS = ("401", "409", "429", "503", "timeout", "stale", "ignored", "invalid", "slow", "proxy")
MAX_BYTES = 4_000_000


@dataclass
class Channel:
    """A channel of the server. `pending` rows become durable at their time."""

    table: str
    sequencer: int = 0
    row: int = 0
    accepted: str | None = None
    committed: str | None = None
    inserted: int = 0
    errors: int = 0
    valid: bool = True
    pending: deque[tuple[float, str, list[dict[str, Any]]]] = field(default_factory=deque)
    requests: deque[float] = field(default_factory=deque)

    @property
    def token(self) -> str:
        return f"{self.sequencer}_{self.row}"


class Elsewhere(Exception):
    """Ends a request with what a proxy on the way answers in the service's place."""


class SnowflakeServer:
    """The stand-in; `url` is the account's URL. Faults are given one by one (`fail`) or at random (`chaos`)."""

    def __init__(self) -> None:
        self.door = Door()
        self.sql = SnowflakeSql(DATABASE)
        self.channels: dict[tuple[str, str], Channel] = {}
        self.violations: list[str] = []
        self.seen: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.commit_seconds = 0.0
        self.counting_only = False
        self.rate_limit = 25
        self.raw_bytes = 0
        self.keep_bodies = False
        self.raw_bodies = b""
        """Every row that was sent, as it was sent."""
        self.reject: str | None = None
        """A text: rows that hold it are rejected."""
        self.chaos = 0.0
        self.pipe_suffix = "-STREAMING"
        self.polls = 0
        """How often a statement is asked for before it has a result."""
        self.cancelled: list[str] = []
        self._late: dict[str, dict[str, Any]] = {}
        self._faults: dict[str, deque[str]] = {}
        self._random = random.Random(7)
        self._last: dict[str, str] = {}
        self._lock = threading.RLock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                return

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.answer(self, body)

            do_GET = do_POST = do_PUT = do_DELETE = _handle

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)
        self.sql.close()

    def private_key(self, passphrase: str | None = None) -> str:
        """The user's private key as PEM."""
        return private_key(passphrase)

    def fail(self, call: str, *faults: str) -> None:
        """Let the next calls of a kind fail; an empty name lets one through.

        Kinds are hostname, token, open, append, status and sql.
        """
        self._faults.setdefault(call, deque()).extend(faults)

    def _fault(self, call: str) -> str:
        with self._lock:
            self.calls[call] = self.calls.get(call, 0) + 1
            queue = self._faults.get(call)
            fault = queue.popleft() if queue else ""
            if not fault and call == "append" and self._random.random() < self.chaos:
                fault = self._random.choice(FAULTS)
            if not fault and call in ("status", "open") and self._random.random() < self.chaos / 3:
                fault = self._random.choice(("429", "503", "401"))
            if fault == "401" and self.chaos and self._last.get(call) == "401":
                fault = ""  # a second one in a row means that the key is wrong
            self._last[call] = fault
            if fault:
                self.seen[fault] = self.seen.get(fault, 0) + 1
        if fault == "proxy":
            raise Elsewhere
        if fault == "401":
            raise Answer(401, "390144", "token is invalid")
        if fault == "429":
            raise Answer(429, "ReceiverSaturated", **{"Retry-After": "0.02"})
        if fault == "503":
            raise Answer(503, "ERR_GENERAL_EXCEPTION_RETRY_REQUEST", **{"Retry-After": "0.01"})
        return fault

    # -- requests ----------------------------------------------------------------------------------------------------

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Handle one request."""
        status, headers = 200, dict[str, str]()
        try:
            content: bytes | dict[str, Any] | None = self._route(request, body)
        except Elsewhere:
            content = b"<html>\nSign in, please\n</html>"
        except Answer as error:
            content = {"code": error.code, "message": error.message}
            status, headers = error.status, error.headers
        except SqlError as error:
            content, status, headers = {"code": "001003", "message": str(error), "sqlState": "42000"}, 422, {}
            self.violations.append(str(error)[:2000])
        if content is None:
            # No answer: the client must not take silence for either outcome.
            request.close_connection = True
            request.connection.close()
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _route(self, request: BaseHTTPRequestHandler, body: bytes) -> bytes | dict[str, Any] | None:
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path = [unquote(part) for part in parts.path.strip("/").split("/")]
        if path[:3] == ["api", "v2", "statements"]:
            self.door.check_jwt(request.headers)
            if path[-1] == "cancel":
                self.cancelled.append(path[3])
                return {"code": "000604"}
            return self._poll(path[3]) if len(path) > 3 else self._statement(body)
        if path[-1] == "hostname":
            self.door.check_jwt(request.headers)
            self._fault("hostname")
            return f"127.0.0.1:{self._http.server_port}".encode()
        if path[:2] == ["oauth", "token"]:
            self.door.check_jwt(request.headers)
            self._fault("token")
            form = parse_qs(body.decode())
            assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
            assert form["scope"] == [f"127.0.0.1:{self._http.server_port}"]
            return self.door.scoped_token().encode()
        if request.headers.get("X-Snowflake-Authorization-Token-Type"):
            self.violations.append("a token type was sent to the ingest host")
        self.door.check_scoped(request.headers)
        return self._streaming(request, path, query, body)

    def _poll(self, handle: str) -> dict[str, Any]:
        """Answer for a statement that takes longer: not yet, then its result."""
        self.polls -= 1
        if self.polls > 0:
            return {"code": "333334", "statementHandle": handle, "message": "in progress"}
        return self._late.pop(handle)

    def _statement(self, body: bytes) -> dict[str, Any]:
        self._fault("sql")
        asked = json.loads(body)
        assert asked["database"] == DATABASE
        given = asked.get("bindings") or {}
        assert all(one["type"] == "TEXT" for one in given.values())
        names, rows = self.sql.run(asked["statement"], [given[str(n + 1)]["value"] for n in range(len(given))])
        data = [[None if value is None else _text(value) for value in row] for row in rows]
        meta = {"numRows": len(rows), "rowType": [{"name": name.upper()} for name in names], "partitionInfo": [{}]}
        handle = secrets.token_hex(8)
        answer = {"code": "090001", "statementHandle": handle, "resultSetMetaData": meta, "data": data}
        if self.polls > 0:
            self._late[handle] = answer
            return {"code": "333334", "statementHandle": handle, "message": "in progress"}
        return answer

    # -- streaming ---------------------------------------------------------------------------------------------------

    def _streaming(
        self, request: BaseHTTPRequestHandler, path: list[str], query: dict[str, str], body: bytes
    ) -> dict[str, Any] | None:
        assert path[:2] == ["v2", "streaming"]
        rest = path[3:] if path[2] == "data" else path[2:]
        assert (rest[0], rest[2], rest[4]) == ("databases", "schemas", "pipes")
        pipe = rest[5].removesuffix(":bulk-channel-status")
        table = f'"{rest[1]}"."{rest[3]}"."{pipe.removesuffix(self.pipe_suffix)}"'
        if rest[5].endswith(":bulk-channel-status"):
            self._fault("status")
            names = json.loads(body)["channel_names"]
            with self._lock:
                found = {name: self.channels[(table, name)] for name in names if (table, name) in self.channels}
                return {"channel_statuses": {name: self._status(one) for name, one in found.items()}}
        place = (table, rest[7])
        if request.command == "PUT":
            return self._open(place, json.loads(body or b"{}"))
        if request.command == "DELETE":
            return self._drop(place)
        assert rest[8] == "rows"
        return self._append(place, query, request, body)

    def _open(self, place: tuple[str, str], asked: dict[str, Any]) -> dict[str, Any]:
        self._fault("open")
        try:
            self.sql.query(f"SELECT 1 FROM {place[0]} LIMIT 0")
        except Exception:
            raise Answer(404, "ERR_TABLE_DOES_NOT_EXIST_NOT_AUTHORIZED") from None
        with self._lock:
            channel = self.channels.setdefault(place, Channel(place[0]))
            self._commit(channel)
            if channel.pending:
                if asked.get("fail_on_uncommitted_rows"):
                    raise Answer(409, "ERR_CHANNEL_HAS_UNCOMMITTED_DATA")
                self.violations.append("a channel was opened over rows on their way")
                channel.pending.clear()
            channel.sequencer += 1
            channel.row = 0
            channel.accepted = channel.committed
            channel.valid = True
            return {"next_continuation_token": channel.token, "channel_status": self._status(channel)}

    def _drop(self, place: tuple[str, str]) -> dict[str, Any]:
        with self._lock:
            channel = self.channels.get(place)
            if channel is None:
                raise Answer(404, "ERR_CHANNEL_DOES_NOT_EXIST_OR_IS_NOT_AUTHORIZED")
            self._commit(channel)
            if channel.pending:
                raise Answer(409, "ERR_CHANNEL_HAS_UNCOMMITTED_DATA")
            del self.channels[place]
            return {}

    def _append(
        self, place: tuple[str, str], query: dict[str, str], request: BaseHTTPRequestHandler, body: bytes
    ) -> dict[str, Any] | None:
        fault = self._fault("append")
        if len(body) > MAX_BYTES:
            raise Answer(413, "ERR_PAYLOAD_TOO_LARGE")
        with self._lock:
            channel = self.channels.get(place)
            if channel is None:
                raise Answer(400, "ERR_CHANNEL_DOES_NOT_EXIST_OR_IS_NOT_AUTHORIZED")
            self._count(channel, place[1])
            sent = query["continuationToken"]
            if fault == "409":
                raise Answer(409, "ERR_CHANNEL_MUST_BE_REOPENED")
            if fault == "invalid":
                channel.valid = False
                channel.pending.clear()
            if not channel.valid:
                raise Answer(400, "ERR_CHANNEL_MUST_BE_REOPENED")
            if fault == "stale":
                channel.sequencer += 1
            if sent != channel.token:
                raise Answer(400, "STALE_CONTINUATION_TOKEN_SEQUENCER")
            if fault == "ignored":
                return {"next_continuation_token": sent}
            rows = self._rows(request, body)
            self._accept(channel, query, rows, slow=fault == "slow")
            return None if fault == "timeout" else {"next_continuation_token": channel.token}

    def _count(self, channel: Channel, name: str) -> None:
        now = time.monotonic()
        channel.requests.append(now)
        while channel.requests and channel.requests[0] < now - 1.0:
            channel.requests.popleft()
        if len(channel.requests) > self.rate_limit:
            # Ten a second, and a burst of as many after a pause; the rest is tolerance for a busy machine.
            self.violations.append(f"channel {name}: {len(channel.requests)} requests in a second")

    def _rows(self, request: BaseHTTPRequestHandler, body: bytes) -> list[dict[str, Any]]:
        assert request.headers["Content-Type"] == "application/x-ndjson"
        encoding = request.headers["Content-Encoding"]
        raw = gzip.decompress(body) if encoding == "gzip" else pa.input_stream(pa.BufferReader(body), "zstd").read()
        self.raw_bytes += len(raw)
        if self.keep_bodies:
            self.raw_bodies += raw
        assert raw.endswith(b"\n"), "a row without an end of line"
        if self.counting_only:
            return [{}] * raw.count(b"\n")
        return [json.loads(line) for line in raw.decode().split("\n")[:-1]]

    def _accept(self, channel: Channel, query: dict[str, str], rows: list[dict[str, Any]], *, slow: bool) -> None:
        first, last = query["startOffsetToken"], query["endOffsetToken"]
        if channel.accepted is not None and not channel.accepted < first <= last:
            self.violations.append(f"offset {first} came after {channel.accepted}")
        positions = [str(row.get("_ROSETTA_POSITION") or row.get("POSITION")) for row in rows]
        if (not self.counting_only and (positions[0], positions[-1]) != (first, last)) or positions != sorted(
            positions
        ):
            self.violations.append(f"rows {positions[0]}…{positions[-1]} were sent as {first}…{last}")
        channel.row += 1
        channel.accepted = last
        delay = self.commit_seconds + (0.3 if slow else 0.0)
        channel.pending.append((time.monotonic() + delay, last, rows))
        self._commit(channel)

    def _commit(self, channel: Channel) -> None:
        while channel.pending and channel.pending[0][0] <= time.monotonic():
            _, last, rows = channel.pending.popleft()
            good = [row for row in rows if self.reject is None or self.reject not in json.dumps(row)]
            channel.errors += len(rows) - len(good)
            channel.inserted += len(good)
            if good and not self.counting_only:
                self.sql.insert(channel.table, good)
            channel.committed = last

    def _status(self, channel: Channel) -> dict[str, Any]:
        self._commit(channel)
        return {
            "channel_status_code": "ACTIVE" if channel.valid else "ERR_CHANNEL_MUST_BE_REOPENED",
            "last_committed_offset_token": channel.committed,
            "rows_inserted": channel.inserted,
            "rows_parsed": channel.inserted + channel.errors,
            "rows_error_count": channel.errors,
        }


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.fixture
def snowflake() -> Iterator[SnowflakeServer]:
    """The strict stand-in; the test fails when a client broke the protocol."""
    server = SnowflakeServer()
    try:
        yield server
    finally:
        server.close()
    assert not server.violations, server.violations
