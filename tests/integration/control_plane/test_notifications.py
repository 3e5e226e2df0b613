"""Receivers on loopback that fail at first: the message arrives once, later, and no secret is anywhere."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.notifications import record_event, resolve_event
from cdc_runner.catalog.settings import set_setting
from cdc_runner.errors import RosettaError
from cdc_runner.notification.dispatch import Round, send_round
from cdc_runner.services.credentials import rotate_credentials
from cdc_runner.services.notification import (
    acknowledge,
    clear_notifications,
    create_channel,
    describe_channels,
    describe_notifications,
    remove_channel,
    set_channel,
    test_channel,
)
from rosetta_dagster.resources.catalog import catalog_engine
from tests.support.receiver import Receiver, receiving

pytestmark = [pytest.mark.dagster, pytest.mark.pg]

TOKEN = "7654321:canary-word_TOKEN"
SIGNING = "canary-word-signing"
KEYRING = Keyring(bytes(range(32)))


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def telegram() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def channels(catalog, hook, telegram, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOOK_URL", f"{hook.url}/in?key=canary-word-url")
    monkeypatch.setenv("HOOK_SECRET", SIGNING)
    (tmp_path / "token").write_text(TOKEN + "\n")
    with session_scope(catalog_engine()) as session:
        set_setting(session, "notification_allow_internal", "true")
        set_setting(session, "notification_quiet_seconds", "0")
        create_channel(
            session, "hook", "webhook", {"url": {"env": "HOOK_URL"}, "signing_secret": {"env": "HOOK_SECRET"}}
        )
        create_channel(
            session, "phone", "telegram",
            {"bot_token": {"file": str(tmp_path / "token")}, "chat_id": "-100123", "api_url": telegram.url},
        )  # fmt: skip


def note(key: str = "wal/shop", severity: str = "ERROR", told: str = "the slot keeps 7000 MB", **more: bool) -> None:
    with session_scope(catalog_engine()) as session:
        record_event(session, key, severity, "wal", told, title="WAL of shop", **more)  # type: ignore[arg-type]


def due_now(catalog) -> None:
    catalog.execute("UPDATE notification_deliveries SET next_attempt_at = now() WHERE state = 'PENDING'")


def send() -> Round:
    return send_round(catalog_engine(), KEYRING)


def test_message_arrives_once_and_later_when_receivers_fail_at_first(catalog, channels, hook, telegram, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    hook.answers, telegram.answers = [500, 0], [401, 502]
    note()
    first = send()
    assert (first.announced, first.delivered, first.failed) == (2, 0, 2)
    # Not before its time.
    assert send().line == "nothing to send"
    due_now(catalog)
    assert send().delivered == 0
    note()
    due_now(catalog)
    assert send().delivered == 2
    due_now(catalog)
    note()
    assert send().line == "nothing to send"
    assert (len(hook.taken), len(telegram.taken)) == (1, 1)
    assert {request.content["delivery"] for request in hook.requests} == {hook.taken[0].content["delivery"]}
    assert telegram.taken[0].path == f"/bot{TOKEN}/sendMessage"
    assert "the slot keeps 7000 MB" in telegram.taken[0].content["text"]
    assert (hook.taken[0].content["key"], hook.taken[0].content["announcement"]) == ("wal/shop", "OPENED")
    assert catalog.execute("SELECT is_sent, last_send_error FROM notification_log") == [(True, None)]
    assert catalog.execute("SELECT attempts, state FROM notification_deliveries ORDER BY id") == [
        (3, "DELIVERED"), (3, "DELIVERED")]  # fmt: skip
    assert_no_secret(catalog, caplog.text)


def assert_no_secret(catalog, logged: str) -> None:
    """Neither in a log line nor in any table, in any spelling."""
    import base64
    from urllib.parse import quote

    forms = {"canary-word", TOKEN, quote(TOKEN), base64.b64encode(TOKEN.encode()).decode()[:20]}
    tables = [name for (name,) in catalog.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    dump = "\n".join(row for table in tables for (row,) in catalog.execute(f'SELECT one::text FROM "{table}" one'))
    assert "wal/shop" in dump
    for form in forms:
        assert form not in logged
        assert form not in dump


def test_signature_verifies_and_covers_time_and_body(channels, hook) -> None:
    note()
    send()
    (request,) = hook.taken
    timestamp, told = request.headers["X-Rosetta-Timestamp"], request.headers["X-Rosetta-Signature"]
    # As docs/notifications.md tells a receiver to do it.
    expected = "v1=" + hmac.new(SIGNING.encode(), timestamp.encode() + b"." + request.body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(expected, told)
    assert abs(time.time() - int(timestamp)) < 300


def test_recovery_is_told_once_and_only_after_the_alarm(catalog, channels, hook) -> None:
    note()
    send()
    with session_scope(catalog_engine()) as session:
        resolve_event(session, "wal/shop", "it keeps 10 MB")
    send()
    send()
    assert [one.content["announcement"] for one in hook.taken] == ["OPENED", "RESOLVED"]
    assert hook.taken[1].content["text"] == "it keeps 10 MB"
    assert hook.taken[1].content["resolved_at"]
    note("wal/other")
    with session_scope(catalog_engine()) as session:
        resolve_event(session, "wal/other")
    assert send().line == "nothing to send"


def test_escalation_is_told_and_takes_the_place_of_what_was_not_delivered(catalog, channels, hook) -> None:
    hook.answers = [500]
    note(severity="WARNING")
    send()
    note(severity="ERROR", told="the slot keeps 9000 MB")
    due_now(catalog)
    send()
    (request,) = hook.taken
    assert (request.content["announcement"], request.content["text"]) == ("ESCALATED", "the slot keeps 9000 MB")
    states = "SELECT state FROM notification_deliveries d JOIN notification_channels c ON c.id = d.channel_id" \
             " WHERE c.name = 'hook' ORDER BY d.id"  # fmt: skip
    assert catalog.execute(states) == [("SUPERSEDED",), ("DELIVERED",)]


def test_channel_is_told_what_is_severe_enough_for_it(channels, hook, telegram) -> None:
    with session_scope(catalog_engine()) as session:
        set_channel(session, "hook", minimum_severity="INFO")
        set_channel(session, "phone", minimum_severity="ERROR")
    note(severity="INFO", told="a column was added", lasting=False)
    send()
    assert (len(hook.taken), len(telegram.taken)) == (1, 0)


def test_dead_channel_holds_up_no_other_and_keeps_its_messages(catalog, channels, hook, telegram) -> None:
    telegram.answers = [500] * 50
    for number in range(12):
        note(f"wal/{number}")
    for _ in range(3):
        send()
    assert len(hook.taken) == 12
    # One attempt a round tells that it is down.
    assert len(telegram.requests) <= 3
    telegram.answers.clear()
    for _ in range(3):
        due_now(catalog)
        send()
    assert len(telegram.taken) == 12


def test_retry_after_is_respected(catalog, channels, hook) -> None:
    hook.answers, hook.headers = [429], {"Retry-After": "900"}
    note()
    send()
    ((wait,),) = catalog.execute(
        "SELECT extract(epoch FROM max(next_attempt_at) - now())::int"
        " FROM notification_deliveries WHERE state = 'PENDING'"
    )
    assert 800 < wait <= 900


def test_two_senders_at_once_send_once(catalog, channels, hook, telegram) -> None:
    import threading

    for number in range(5):
        note(f"wal/{number}")
    barrier = threading.Barrier(3)

    def work() -> None:
        barrier.wait(10)
        send()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    send()
    assert len(hook.taken) == len({one.content["key"] for one in hook.taken}) == 5


def test_redirect_is_not_followed_and_internal_addresses_are_refused_by_default(channels, hook, telegram) -> None:
    hook.answers, hook.headers = [302], {"Location": f"{telegram.url}/elsewhere"}
    note()
    send()
    assert not any(request.path == "/elsewhere" for request in telegram.requests)
    before = len(hook.requests)
    with session_scope(catalog_engine()) as session:
        set_setting(session, "notification_allow_internal", "false")
        told = test_channel(session, "hook", KEYRING)
    assert not told["ok"]
    assert "notification_allow_internal" in told["error"]
    assert len(hook.requests) == before
    with session_scope(catalog_engine()) as session, pytest.raises(RosettaError, match="https"):
        create_channel(session, "late", "webhook", {"url": {"env": "HOOK_URL"}})


def test_test_message_is_sent_at_once_and_says_what_is_wrong(channels, hook) -> None:
    with session_scope(catalog_engine()) as session:
        assert test_channel(session, "hook", KEYRING)["ok"]
        hook.answers = [403]
        told = test_channel(session, "hook", KEYRING)
    assert told["error"] == "the channel refused the credentials (HTTP 403)"
    assert hook.taken[0].content["announcement"] == "TEST"


def test_slack_text_is_escaped_and_cut(catalog, channels, hook) -> None:
    with session_scope(catalog_engine()) as session:
        create_channel(session, "team", "slack", {"url": {"env": "HOOK_URL"}})
        remove_channel(session, "hook")
    note(told="<b>&" * 1500)
    send()
    (request,) = hook.taken
    assert "&lt;b&gt;&amp;" in request.content["text"]
    assert "<b>" not in request.content["text"]


@pytest.mark.parametrize(("kind", "options", "told"), [
    ("webhook", {"url": "https://hooks.example.com/canary-word"}, "url: "),
    ("webhook", {"url": {"env": "NOT_SET_HERE"}}, "NOT_SET_HERE is not set"),
    ("webhook", {"url": {"env": "HOOK_URL"}, "token": "canary-word"}, "token: "),
    ("telegram", {"bot_token": {"env": "HOOK_SECRET"}, "chat_id": "a b"}, "chat_id: "),
    ("email", {"host": "mail.example.com", "sender": "a@b.c", "recipients": "x@y.z; canary-word"}, "recipients"),
    ("pager", {}, "type: must be one of"),
])  # fmt: skip
def test_wrong_options_are_refused_by_field_and_not_repeated(channels, kind, options, told) -> None:
    with session_scope(catalog_engine()) as session, pytest.raises(RosettaError) as refused:
        create_channel(session, "new", kind, options)
    assert told in str(refused.value)
    assert "canary-word" not in str(refused.value)


def test_rotation_of_the_key_includes_channels(channels, hook) -> None:
    new = Keyring(bytes(range(1, 33)), (bytes(range(32)),))
    with session_scope(catalog_engine()) as session:
        assert rotate_credentials(session, new).rotated == 3
    note()
    assert send_round(catalog_engine(), Keyring(bytes(range(1, 33)))).delivered == 2


def test_unreadable_credential_is_told_at_the_channel(catalog, channels) -> None:
    note()
    outcome = send_round(catalog_engine(), Keyring(bytes(range(2, 34))))
    assert outcome.failed == 2
    ((told,),) = catalog.execute("SELECT last_error FROM notification_channels WHERE name = 'hook'")
    assert "cannot decrypt" in told


def test_list_tells_delivery_and_clearing_keeps_what_is_open_or_unsent(channels, hook) -> None:
    hook.answers = [500]
    note()
    note("crash/shop", told="ended", lasting=False)
    send()
    with session_scope(catalog_engine()) as session:
        rows = {row["key"]: row for row in describe_notifications(session)}
        assert any("hook OPENED PENDING after 1 attempts: the channel answered HTTP 500" in one
                   for one in rows["wal/shop"]["deliveries"])  # fmt: skip
        assert acknowledge(session, "wal/shop") == 1
        assert clear_notifications(session) == 1
        assert [row["key"] for row in describe_notifications(session)] == ["wal/shop"]
        shown = str(describe_channels(session))
    assert "canary-word" not in shown
    assert "'stored_secrets': ['signing_secret', 'url']" in shown
