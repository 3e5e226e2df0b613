"""A channel against a service that fails in every way it can."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cdc_runner.destinations.snowflake.auth import KeyPairTokens
from cdc_runner.destinations.snowflake.channel import Channel, RowsRejected
from cdc_runner.destinations.snowflake.pack import Packer
from cdc_runner.destinations.snowflake.streaming import Pipe, Rows, StreamingService, parse_hostname
from cdc_runner.destinations.snowflake.transport import Transport
from cdc_runner.errors import ErrorKind, RosettaError
from tests.support.snowflake_events import IMPATIENT, address_of
from tests.support.snowflake_server import FAULTS, SnowflakeServer

PIPE = Pipe("ANALYTICS", "MAIN", "T-STREAMING")


@pytest.fixture
def service(snowflake: SnowflakeServer) -> Iterator[StreamingService]:
    snowflake.sql.query('CREATE TABLE "ANALYTICS"."MAIN"."T" (_ROSETTA_POSITION VARCHAR)')
    address = address_of(snowflake)
    transport = Transport(sleep=lambda seconds: None)
    yield StreamingService(address, KeyPairTokens(address), transport)
    transport.close()


def rows(first: int, count: int = 3, compression: str = "zstd") -> list[Rows]:
    """Requests of one row each."""
    packer = Packer(compression)
    return [packer.single({"_ROSETTA_POSITION": f"{n:08d}"}, f"{n:08d}") for n in range(first, first + count)]


def channel_of(service: StreamingService, **options: object) -> Channel:
    made = Channel(service, PIPE, "C", patience=IMPATIENT, **options)  # type: ignore[arg-type]
    made.open()
    return made


def landed(server: SnowflakeServer) -> list[str]:
    return [row[0] for row in server.sql.query('SELECT _ROSETTA_POSITION FROM "ANALYTICS"."MAIN"."T" ORDER BY rowid')]


def deliver(channel: Channel, requests: list[Rows]) -> None:
    for one in requests:
        channel.send(one)
    channel.settle()


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_leaves_each_row_once(snowflake: SnowflakeServer, service: StreamingService, fault: str):
    channel = channel_of(service)
    snowflake.fail("append", "", fault, "", fault)
    deliver(channel, rows(1))
    deliver(channel, rows(4))
    assert landed(snowflake) == [f"{n:08d}" for n in range(1, 7)]
    assert snowflake.seen == {fault: 2}


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_rows_that_are_durable_are_not_sent_again(
    snowflake: SnowflakeServer, service: StreamingService, compression: str
):
    deliver(channel_of(service), rows(1, 5, compression))
    again = channel_of(service)
    assert again.committed == "00000005"
    deliver(again, rows(1, 7, compression))
    assert landed(snowflake) == [f"{n:08d}" for n in range(1, 8)]


def test_a_slow_commit_is_waited_for(snowflake: SnowflakeServer, service: StreamingService):
    snowflake.commit_seconds = 0.2
    channel = channel_of(service)
    channel.send(rows(1, 1)[0])
    assert channel.committed is None
    # Rows on their way are never opened over.
    other = channel_of(service)
    assert other.committed == "00000001"
    assert snowflake.calls["open"] > 2
    assert landed(snowflake) == ["00000001"]


def test_a_channel_that_is_lost_for_ever_is_an_error(snowflake: SnowflakeServer, service: StreamingService):
    channel = channel_of(service)
    snowflake.fail("append", *["stale"] * 50)
    with pytest.raises(RosettaError, match="no row became durable") as caught:
        deliver(channel, rows(1))
    assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE
    assert snowflake.calls["append"] < 10


def test_a_fence_is_asked_before_a_channel_is_taken_back(snowflake: SnowflakeServer, service: StreamingService):
    def fenced() -> None:
        raise RosettaError(ErrorKind.FENCED, "another runner")

    channel = channel_of(service, fence=fenced)
    channel_of(service)
    with pytest.raises(RosettaError, match="another runner"):
        deliver(channel, rows(1))
    assert landed(snowflake) == []


def test_refused_rows_are_counted(snowflake: SnowflakeServer, service: StreamingService):
    snowflake.reject = "00000002"
    with pytest.raises(RowsRejected) as caught:
        deliver(channel_of(service), rows(1))
    assert (caught.value.missing, caught.value.through) == (1, "00000003")


def test_tokens_are_renewed_before_and_after_they_are_refused(snowflake: SnowflakeServer, service: StreamingService):
    snowflake.door.token_seconds = 30.0  # less than what is kept in reserve: each call asks for another
    channel = channel_of(service)
    deliver(channel, rows(1))
    assert snowflake.calls["token"] > 2
    snowflake.fail("status", "401")
    deliver(channel, rows(4))
    snowflake.fail("append", "401", "401")
    with pytest.raises(RosettaError) as caught:
        deliver(channel, rows(7))
    assert caught.value.kind is ErrorKind.DESTINATION_AUTHENTICATION


@pytest.mark.parametrize("call", ["hostname", "open"])
def test_what_a_proxy_answers_is_told_and_not_kept(snowflake: SnowflakeServer, service: StreamingService, call: str):
    snowflake.fail(call, "proxy")
    with pytest.raises(RosettaError, match=r"did not answer when asked to open channel C \(what came is no") as caught:
        channel_of(service)
    assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE
    deliver(channel_of(service), rows(1))
    assert landed(snowflake) == ["00000001", "00000002", "00000003"]


def test_what_a_proxy_answers_is_not_taken_for_a_token(snowflake: SnowflakeServer, service: StreamingService):
    snowflake.fail("token", "proxy", "proxy")
    deliver(channel_of(service), rows(1))
    assert landed(snowflake) == ["00000001", "00000002", "00000003"]
    assert snowflake.seen == {"proxy": 2}


def test_random_faults_leave_each_row_once(snowflake: SnowflakeServer, service: StreamingService):
    snowflake.chaos = 0.3
    channel = channel_of(service)
    for start in range(1, 201, 5):
        if start % 50 == 1:
            channel = channel_of(service)
        try:
            deliver(channel, rows(start, 5))
        except RosettaError as error:
            assert error.policy.reaction == "retry"
            channel = channel_of_retrying(service)
            deliver_retrying(channel, rows(start, 5))
    assert landed(snowflake) == [f"{n:08d}" for n in range(1, 201)]
    assert len(snowflake.seen) >= 8


def channel_of_retrying(service: StreamingService) -> Channel:
    for _ in range(50):
        try:
            return channel_of(service)
        except RosettaError:
            continue
    raise AssertionError("the channel could not be opened")


def deliver_retrying(channel: Channel, requests: list[Rows]) -> None:
    for _ in range(50):
        try:
            deliver(channel, requests)
            return
        except RosettaError:
            continue
    raise AssertionError("rows could not be delivered")


def test_hosts_come_as_text_or_json():
    assert parse_hostname("my_account.ingest.example\n") == "my-account.ingest.example"
    assert parse_hostname('{"hostname": "a_b.example"}') == "a-b.example"
