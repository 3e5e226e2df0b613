"""The strict stand-in itself refuses what the service would refuse: a client that passes keeps to the protocol."""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from cdc_runner.destinations.snowflake.auth import fingerprint
from tests.support.snowflake_door import ACCOUNT, USER
from tests.support.snowflake_key import user_key
from tests.support.snowflake_server import SnowflakeServer

PIPE = "databases/ANALYTICS/schemas/MAIN/pipes/T-STREAMING"


@pytest.fixture
def server() -> Iterator[SnowflakeServer]:
    """A stand-in whose violations are what the test looks for."""
    made = SnowflakeServer()
    made.sql.query('CREATE TABLE "ANALYTICS"."MAIN"."T" (_ROSETTA_POSITION VARCHAR)')
    yield made
    made.close()


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def token(key: rsa.RSAPrivateKey | None = None, **claims: Any) -> str:
    key = key or user_key()
    now = int(time.time())
    name = f"{ACCOUNT}.{USER}"
    given = {"iss": f"{name}.{fingerprint(user_key())}", "sub": name, "iat": now, "exp": now + 3000, **claims}
    signed = f"{encoded({'alg': 'RS256'})}.{encoded(given)}"
    signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def ask_host(server: SnowflakeServer, jwt: str, kind: str = "KEYPAIR_JWT") -> int:
    headers = {"Authorization": f"Bearer {jwt}", "X-Snowflake-Authorization-Token-Type": kind}
    return httpx.get(f"{server.url}/v2/streaming/hostname", headers=headers).status_code


def test_tokens_are_checked_in_every_part(server: SnowflakeServer) -> None:
    now = int(time.time())
    assert ask_host(server, token()) == 200
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for wrong in (
        token(stranger),
        token(sub=f"{ACCOUNT}.OTHER"),
        token(iss=f"{ACCOUNT}.{USER}.SHA256:other"),
        token(exp=now - 1),
        token(iat=now + 600, exp=now + 1200),
        token(exp=now + 3700),
        token()[:-4] + "AAAA",
        "no.token",
    ):
        assert ask_host(server, wrong) == 401
    assert ask_host(server, token(), "OAUTH") == 401


class Raw:
    """Calls of the streaming API without a client that keeps to its rules."""

    def __init__(self, server: SnowflakeServer) -> None:
        headers = {"Authorization": f"Bearer {token()}", "X-Snowflake-Authorization-Token-Type": "KEYPAIR_JWT"}
        form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "scope": server.url.partition("//")[2]}
        self.scoped = httpx.post(f"{server.url}/oauth/token", headers=headers, data=form).text
        self._client = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {self.scoped}"})
        self.continuation = ""

    def open(self) -> httpx.Response:
        answer = self._client.put(f"/v2/streaming/{PIPE}/channels/C", json={"fail_on_uncommitted_rows": True})
        self.continuation = answer.json().get("next_continuation_token", "")
        return answer

    def append(self, first: int, last: int, positions: list[int] | None = None, **query: str) -> httpx.Response:
        rows = positions if positions is not None else list(range(first, last + 1))
        body = "".join(json.dumps({"_ROSETTA_POSITION": f"{one:08d}"}) + "\n" for one in rows).encode()
        params = {"continuationToken": self.continuation, "startOffsetToken": f"{first:08d}",
                  "endOffsetToken": f"{last:08d}", **query}  # fmt: skip
        headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
        answer = self._client.post(
            f"/v2/streaming/data/{PIPE}/channels/C/rows", params=params, headers=headers, content=gzip.compress(body)
        )
        if answer.status_code == 200:
            self.continuation = answer.json()["next_continuation_token"]
        return answer

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def raw(server: SnowflakeServer) -> Iterator[Raw]:
    made = Raw(server)
    yield made
    made.close()


def test_continuation_and_offset_tokens_must_be_in_order(server: SnowflakeServer, raw: Raw) -> None:
    raw.open()
    first = raw.continuation
    assert raw.append(1, 3).status_code == 200
    answer = raw.append(4, 5, continuationToken=first)
    assert (answer.status_code, answer.json()["code"]) == (400, "STALE_CONTINUATION_TOKEN_SEQUENCER")
    assert not server.violations
    raw.append(3, 4)
    assert "came after" in server.violations.pop()
    raw.append(5, 7, positions=[5, 7, 6])
    assert "were sent as" in server.violations.pop()


def test_an_opened_channel_takes_the_older_one_over_and_waits_for_rows(server: SnowflakeServer, raw: Raw) -> None:
    raw.open()
    before = raw.continuation
    raw.open()
    assert raw.append(1, 1, continuationToken=before).json()["code"] == "STALE_CONTINUATION_TOKEN_SEQUENCER"
    server.commit_seconds = 5.0
    raw.append(1, 1)
    answer = raw.open()
    assert (answer.status_code, answer.json()["code"]) == (409, "ERR_CHANNEL_HAS_UNCOMMITTED_DATA")


def test_sizes_rates_and_expired_tokens_are_noticed(server: SnowflakeServer, raw: Raw) -> None:
    raw.open()
    too_much = httpx.post(
        f"{server.url}/v2/streaming/data/{PIPE}/channels/C/rows",
        headers={"Authorization": f"Bearer {raw.scoped}"},
        content=b"x" * 4_000_001,
    )
    assert too_much.status_code == 413
    server.rate_limit = 2
    for number in range(1, 5):
        raw.append(number, number)
    assert "requests in a second" in server.violations[0]
    assert httpx.put(f"{server.url}/v2/streaming/{PIPE}/channels/C", json={}).status_code == 401
    server.door.forget_tokens()
    assert raw.open().status_code == 401
