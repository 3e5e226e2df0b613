"""TLS in front of a PostgreSQL server that has none: certificates, and a front that ends TLS and forwards.

authority = CertificateAuthority(directory)
front = tls_front(server.host, server.port, authority.issue("localhost"))
...connect to front.port with sslmode=verify-full and sslrootcert=authority.path...
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104


@dataclass(frozen=True)
class ServerCertificate:
    """A certificate and its key, both in one PEM file."""

    path: Path


class CertificateAuthority:
    """Issues certificates; its own is at `path`."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=400))
            .not_valid_after(now + timedelta(days=400))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.path = directory / f"{name}.pem"
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, host: str, *, address: str | None = None, expired: bool = False) -> ServerCertificate:
        """Issue a server certificate for a host name, and an address."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(host)]
        if address:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=300))
            .not_valid_after(now - timedelta(days=1) if expired else now + timedelta(days=300))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path = self._directory / f"{self.path.stem}-{host}-{certificate.serial_number}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        return ServerCertificate(path)


class TlsFront:
    """Answers PostgreSQL's SSLRequest, ends TLS, and forwards to a server without TLS; refuses plain connections."""

    def __init__(self, host: str, port: int, certificate: ServerCertificate) -> None:
        self._upstream = (host, port)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.path)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls-front", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result(10)
        self.host = "127.0.0.1"
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.encrypted_connections = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                await self._forward(reader, writer)
        finally:
            # Also when the front is closed within a handshake: a transport that is left open warns in a later test.
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, code = struct.unpack("!ii", await reader.readexactly(8))
            if code == _SSL_REQUEST:
                break
            if code != _GSS_REQUEST:
                return
            writer.write(b"N")
        writer.write(b"S")
        await writer.drain()
        plain = writer.transport
        try:
            await writer.start_tls(self._context)
            self.encrypted_connections += 1
            far_reader, far_writer = await asyncio.open_connection(*self._upstream)
            try:
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            finally:
                far_writer.transport.abort()
        finally:
            plain.abort()

    def close(self) -> None:
        """End everything."""

        async def end() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(3):
                await asyncio.sleep(0)  # transports close in the turns that follow

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


@pytest.fixture
def tls_front() -> Iterator[Callable[[str, int, ServerCertificate], TlsFront]]:
    """A factory of fronts: `tls_front(host, port, certificate)`."""
    fronts: list[TlsFront] = []

    def start(host: str, port: int, certificate: ServerCertificate) -> TlsFront:
        front = TlsFront(host, port, certificate)
        fronts.append(front)
        return front

    yield start
    for front in fronts:
        front.close()
