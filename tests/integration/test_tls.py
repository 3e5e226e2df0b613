"""sslmode verify-full: only the right server is spoken to, on every path to a database."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from cdc_runner.connections import connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import PostgresAddress
from tests.support.pipelines import PipelineHarness
from tests.support.servers import PostgresServer
from tests.support.tls import CertificateAuthority, ServerCertificate, TlsFront, tls_front

__all__ = ["tls_front"]

pytestmark = pytest.mark.pg

Front = Callable[[str, int, ServerCertificate], TlsFront]


def through(server: PostgresServer, front: TlsFront, authority: CertificateAuthority, host: str) -> PostgresAddress:
    address = server.address("postgres", port=front.port)
    return dataclasses.replace(address, host=host, sslmode="verify-full", sslrootcert=str(authority.path))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_right_server_is_spoken_to(target_server: PostgresServer, tls_front: Front, tmp_path: Path, host: str):
    authority = CertificateAuthority(tmp_path)
    front = tls_front(target_server.host, target_server.port, authority.issue("localhost", address="127.0.0.1"))
    connection = connect(through(target_server, front, authority, host), application_name="test")
    assert connection.info.ssl_in_use
    connection.close()


@pytest.mark.parametrize("case", ["other authority", "other host", "expired", "no TLS"])
def test_any_other_server_is_refused_before_the_password_is_sent(
    target_server: PostgresServer, tls_front: Front, tmp_path: Path, case: str
):
    authority, other = CertificateAuthority(tmp_path), CertificateAuthority(tmp_path, "other")
    certificate = {
        "other authority": other.issue("localhost"),
        "other host": authority.issue("elsewhere.example"),
        "expired": authority.issue("localhost", expired=True),
        "no TLS": authority.issue("localhost"),
    }[case]
    front = tls_front(target_server.host, target_server.port, certificate)
    address = through(target_server, front, authority, "localhost")
    if case == "no TLS":
        address = dataclasses.replace(address, host=target_server.host, port=target_server.port)
    with pytest.raises(RosettaError) as caught:
        connect(address, application_name="test")
    assert caught.value.kind is ErrorKind.SOURCE_UNAVAILABLE
    assert target_server.password not in caught.value.message
    words = {
        "other authority": "certificate verify failed",
        "other host": "does not match host name",
        "expired": "certificate",
        "no TLS": "server does not support SSL",
    }
    assert words[case] in caught.value.message


@pytest.mark.jvm
def test_a_pipeline_speaks_tls_on_both_sides(pipeline: PipelineHarness, tls_front: Front, tmp_path: Path):
    authority = CertificateAuthority(tmp_path)
    certificate = authority.issue("localhost", address="127.0.0.1")
    source = tls_front(pipeline.source.server.host, pipeline.source.server.port, certificate)
    (name, target), *_ = pipeline.targets.items()
    destination = tls_front(target.server.host, target.server.port, certificate)
    pipeline.ports.update({"source": source.port, name: destination.port})
    pipeline.source.execute("CREATE TABLE item (id int PRIMARY KEY, note text)")
    pipeline.source.execute("INSERT INTO item SELECT i, 'before' FROM generate_series(1, 100) i")
    pipeline.configure()
    pipeline.config.execute("UPDATE sources SET sslmode = 'verify-full', sslrootcert = %s", (str(authority.path),))
    options = "jsonb_build_object('sslmode', 'verify-full', 'sslrootcert', %s::text)"
    pipeline.config.execute(f"UPDATE destinations SET config = config || {options}", (str(authority.path),))
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.source.execute("UPDATE item SET note = 'after' WHERE id < 50")
    pipeline.wait_caught_up()
    pipeline.assert_equal()
    assert source.encrypted_connections > 0
    assert destination.encrypted_connections > 0
