from __future__ import annotations

import socket

import pytest

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.notification.address import check_url, is_public, resolve


@pytest.mark.parametrize("text", [
    "127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "10.1.2.3", "192.168.0.1", "172.16.5.5", "100.64.0.1",
    "fe80::1%eth0",
    "fc00::1", "::ffff:127.0.0.1", "2002:7f00:0001::", "224.0.0.1", "ff02::1", "255.255.255.255", "no address",
])  # fmt: skip
def test_internal_addresses_are_not_public(text: str) -> None:
    assert not is_public(text)


@pytest.mark.parametrize("text", ["8.8.8.8", "2606:4700::1111"])
def test_public_addresses_are(text: str) -> None:
    assert is_public(text)


@pytest.mark.parametrize("url", [
    "https://127.0.0.1/x", "https://[::1]/x", "https://169.254.169.254/latest", "https://0.0.0.0/", "https://2130706433/",
    "https://0x7f000001/", "https://127.1/", "https://localhost/", "http://example.com/", "file:///etc/passwd",
    "ftp://example.com/", "https://user:secret@example.com/", "https:///x", "https://example.com:0/", "nothing",
    "https://example.com/a b", "https://example.com/\r\nX: y", "https://[bad/", "https://example.com:99999/",
])  # fmt: skip
def test_address_that_leads_inside_or_is_odd_is_refused(url: str) -> None:
    with pytest.raises(RosettaError) as refused:
        resolve(url, allow_internal=False)
    assert refused.value.kind is ErrorKind.CONFIG_INVALID
    assert "secret" not in str(refused.value)


def test_name_with_a_private_address_among_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with pytest.raises(RosettaError, match="own network"):
        resolve("https://hooks.example.com/x", allow_internal=False)
    endpoint = resolve("https://hooks.example.com:8443/x?y=1", allow_internal=True)
    assert endpoint.url == "https://8.8.8.8:8443/x?y=1"
    assert (endpoint.host_header, endpoint.server_name) == ("hooks.example.com:8443", "hooks.example.com")


def test_name_that_does_not_resolve_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(RosettaError) as failed:
        resolve("https://hooks.example.com/x", allow_internal=False)
    assert failed.value.kind is ErrorKind.NOTIFICATION_FAILED


def test_plain_http_needs_the_setting() -> None:
    check_url("http://collector.internal:8080/x", allow_internal=True)
    with pytest.raises(RosettaError, match="https"):
        check_url("http://collector.internal:8080/x", allow_internal=False)
