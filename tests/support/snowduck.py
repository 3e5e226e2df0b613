"""The independent stand-in, `snowduck`, in an environment of its own, behind a small adapter.

It has neither streams nor tasks nor blocks of statements: the adapter keeps those and sends their statements one by
one. Everything else goes through as it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import threading
import venv
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.snowflake_key import private_key
from tests.support.snowflake_server import DATABASE
from tests.support.snowflake_sql import _TASK, held_query
from tests.support.waiting import wait_for

PACKAGES = ("snowduck[server]==0.3.0", "sqlglot[c]==30.18.0")
_PROGRAM = str(Path(__file__).with_name("snowduck_server.py"))
_HOP = {"host", "content-length", "connection", "transfer-encoding", "content-encoding", "date", "server"}


def environment() -> Path:
    """Return the program, installed once into a cache directory.

    Raises:
        RuntimeError: the package index does not give it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rosetta-tests" / "snowduck-0.3.0-1"
    program = cache / "bin" / "snowduck"
    done = cache / "installed"
    cache.parent.mkdir(parents=True, exist_ok=True)
    with (cache.parent / "snowduck.lock").open("w") as lock:
        # Two sessions must not install at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            venv.create(cache, with_pip=True, clear=True)
            command = [str(cache / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES]
            result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            if result.returncode or not program.exists():
                raise RuntimeError((result.stderr.strip().splitlines() or ["no reason given"])[-1][:300])
            done.touch()
    return program


class Snowduck:
    """The server and its adapter; `url` is the account's URL."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._upstream = f"http://127.0.0.1:{port}"
        self._client = httpx.Client(timeout=120)
        self.tasks: dict[str, str] = {}
        self.resumed: set[str] = set()
        self.streams: set[str] = set()
        self.failed: list[str] = []
        adapter = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                return

            def _handle(self) -> None:
                adapter.answer(self, self.rfile.read(int(self.headers.get("Content-Length") or 0)))

            do_GET = do_POST = do_PUT = do_DELETE = _handle

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._log = (home / "snowduck.log").open("wb")
        self._process = subprocess.Popen(
            [str(environment().with_name("python")), "-P", _PROGRAM, "--port", str(port)],
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "SNOWDUCK_STREAMING_HOSTNAME": f"127.0.0.1:{self._http.server_port}"},
        )
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        wait_for(self._answers, 60, "snowduck to answer")
        # A database that a statement names is made by itself.
        self.run(f"CREATE SCHEMA IF NOT EXISTS {DATABASE}.SHOP")

    def private_key(self) -> str:
        """The user's private key as PEM."""
        return private_key()

    def _answers(self) -> bool:
        assert self._process.poll() is None, "snowduck ended"
        try:
            return self._client.get(f"{self._upstream}/v2/streaming/hostname").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Stop both."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)
        self._process.terminate()
        self._process.wait(20)
        self._log.close()
        self._client.close()

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement of Snowflake and return its rows as text."""
        return [tuple(row) for row in self.run(statement).get("data") or ()]

    def run(self, statement: str, bindings: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run one statement."""
        asked = {"statement": statement, "database": DATABASE, "schema": "SHOP", "bindings": bindings or {}}
        response = self._client.post(
            f"{self._upstream}/api/v2/statements",
            json=asked,
            headers={"Authorization": "Bearer test"},
        )
        answer: dict[str, Any] = response.json()
        if response.status_code >= 400:
            self.failed.append(f"{answer.get('message')}: {statement}"[:3000])
            raise RuntimeError(self.failed[-1])
        return answer

    def run_tasks(self) -> None:
        """Run every task that is resumed, once."""
        for name in sorted(self.resumed):
            self._block(self.tasks[name])

    def _block(self, block: str) -> None:
        held = held_query(block)
        if held and self.query(held) != [("0",)]:
            return
        body = block.partition("BEGIN TRANSACTION;\n")[2].partition(";\nCOMMIT")[0]
        for statement in body.split(";\n"):
            if not any(stream in statement for stream in self.streams):
                self.run(statement)

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Handle a request, or pass it on."""
        if request.path.startswith("/api/v2/statements"):
            asked = json.loads(body)
            statement = asked["statement"]
            try:
                answer = self._managed(statement) or self.run(statement, asked.get("bindings"))
                status, content = 200, json.dumps(answer).encode()
            except RuntimeError as error:
                status, content = 422, json.dumps({"code": "001003", "message": str(error)}).encode()
        else:
            headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
            encoding = request.headers.get("Content-Encoding")
            if encoding:
                headers["Content-Encoding"] = encoding
            response = self._client.request(
                request.command, self._upstream + request.path, headers=headers, content=body
            )
            status, content = response.status_code, response.content
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _managed(self, statement: str) -> dict[str, Any] | None:
        words, task = statement.split(), _TASK.match(statement)
        if task:
            self.tasks[task.group(1)] = task.group(3)
        elif statement.startswith("ALTER TASK"):
            self.resumed.add(words[2])
        elif statement.startswith("CREATE STREAM"):
            self.streams.add(words[5])
        elif statement.startswith("BEGIN\n"):
            self._block(statement)
        else:
            return None
        return {"code": "090001", "resultSetMetaData": {"rowType": []}, "data": []}


@pytest.fixture
def snowduck(tmp_path: Path) -> Iterator[Snowduck]:
    """The independent stand-in; the test is skipped where it cannot be installed."""
    try:
        environment()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"snowduck cannot be installed from the package index: {error}")
    server = Snowduck(tmp_path)
    try:
        yield server
    finally:
        server.close()
