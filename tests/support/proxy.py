"""A TCP proxy on the loopback address that can delay, stall, cut, reset and refuse: the network's bad days.

proxy = tcp_proxy(server.host, server.port)
...connect to proxy.port...
proxy.delay(0.2)     every piece of data waits so long, in both directions
proxy.stall()        data stays where it is, connections stay open (a silent partition)
proxy.cut()          connections are closed in order
proxy.reset()        connections end with RST
proxy.refuse()       new connections are closed at once
proxy.heal()         all of the above end
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

_PIECE_BYTES = 65536


class TcpProxy:
    """Forwards connections to one address. Every method may be called from any thread."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self._flow = threading.Event()
        self._flow.set()
        self._closed = threading.Event()
        self._refusing = False
        self._delay_seconds = 0.0
        self._forwarded_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = "127.0.0.1"
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="proxy-accept", daemon=True)
        self._acceptor.start()

    @property
    def connection_count(self) -> int:
        """Open connections."""
        with self._lock:
            return len(self._pairs)

    @property
    def forwarded_bytes(self) -> int:
        """Bytes forwarded in both directions since the start."""
        with self._lock:
            return self._forwarded_bytes

    def delay(self, seconds: float) -> None:
        """Hold every piece of data for so long before it is forwarded."""
        self._delay_seconds = seconds

    def stall(self) -> None:
        """Forward nothing; connections stay open."""
        self._flow.clear()

    def cut(self) -> None:
        """Close every open connection in order (FIN)."""
        self._end_all(reset=False)

    def reset(self) -> None:
        """End every open connection with RST."""
        self._end_all(reset=True)

    def refuse(self) -> None:
        """Close new connections at once; open ones stay."""
        self._refusing = True

    def heal(self) -> None:
        """Forward everything at once again."""
        self._refusing = False
        self._delay_seconds = 0.0
        self._flow.set()

    def close(self) -> None:
        """End everything and wait for the threads."""
        self._closed.set()
        self.heal()
        # A listener that another thread waits on does not wake up by close alone.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(10)
        self._end_all(reset=True)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing or self._closed.is_set():
                client.close()
                continue
            try:
                server = socket.create_connection(self._upstream, timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            for origin, target in (pair, pair[::-1]):
                thread = threading.Thread(target=self._forward, args=(pair, origin, target), name="proxy", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _forward(self, pair: tuple[socket.socket, socket.socket], origin: socket.socket, target: socket.socket) -> None:
        try:
            while piece := origin.recv(_PIECE_BYTES):
                if self._delay_seconds:
                    self._closed.wait(self._delay_seconds)
                self._flow.wait()
                # Counted first: who has received it may look at the count at once.
                with self._lock:
                    self._forwarded_bytes += len(piece)
                target.sendall(piece)
        except OSError:
            pass
        self._end(pair, reset=False)

    def _end_all(self, *, reset: bool) -> None:
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair, reset=reset)

    def _end(self, pair: tuple[socket.socket, socket.socket], *, reset: bool) -> None:
        with self._lock:
            if pair not in self._pairs:
                return
            self._pairs.remove(pair)
        for each in pair:
            if reset:
                with contextlib.suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for each in pair:
            if reset:
                # The other thread waits in recv on it: the RST goes out when the last reference is closed.
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RD)
            each.close()


@pytest.fixture
def tcp_proxy() -> Iterator[Callable[[str, int], TcpProxy]]:
    """A factory of proxies: `tcp_proxy(host, port)`."""
    proxies: list[TcpProxy] = []

    def start(host: str, port: int) -> TcpProxy:
        proxy = TcpProxy(host, port)
        proxies.append(proxy)
        return proxy

    yield start
    for proxy in proxies:
        proxy.close()
