"""The runner's health over HTTP, on the loopback address only.

    GET /live     200 while the process lives
    GET /health   200 when every wanted pipeline runs, 503 otherwise; a JSON document either way

The document is built from memory: no request reaches a database, so that the answer comes during an outage too.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any

ADDRESS = "127.0.0.1"
MOST_REQUESTS_AT_ONCE = 16
REQUEST_SECONDS = 5.0

Document = dict[str, Any]
HealthOf = Callable[[], tuple[bool, Document]]


class HealthServer:
    """Serves health until it is closed.

    Args:
        health_of: returns whether all is well, and the document; called in the threads of requests.
        port: the wanted port; a free one is taken when it is busy.

    Raises:
        OSError: no port can be opened at all.
    """

    def __init__(self, health_of: HealthOf, port: int) -> None:
        try:
            self._server = _Server(port, health_of)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            self._server = _Server(0, health_of)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="health", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is really served."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    # With SO_REUSEADDR a busy port is still refused, and a restart does not wait for old connections to fade.
    allow_reuse_address = True

    def __init__(self, port: int, health_of: HealthOf) -> None:
        self.health_of = health_of
        self._slots = threading.BoundedSemaphore(MOST_REQUESTS_AT_ONCE)
        super().__init__((ADDRESS, port), _Handler)

    def process_request(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """Say nothing: a client that went away is not worth a traceback."""


class _Handler(BaseHTTPRequestHandler):
    server_version = "rosetta"
    sys_version = ""
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].rstrip("/")
        if path == "/live":
            self._answer(HTTPStatus.OK, {"live": True})
        elif path == "/health":
            assert isinstance(self.server, _Server)
            well, document = self.server.health_of()
            self._answer(HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, document)
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "known paths: /health, /live"})

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, document: Document) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: probes come every few seconds."""
