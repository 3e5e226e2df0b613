"""Channels of notifications in configuration files."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select, text

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.models import NotificationChannel
from cdc_runner.errors import RosettaError
from cdc_runner.notification.channel import open_channel
from tests.unit.catalog.conftest import SHOP, Apply, actions

pytestmark = pytest.mark.pg


CHANNELS = """
notifications:
  ops:
    type: webhook
    url: {env: HOOK_URL}
    signing_secret: {file: warehouse.secret}
  phone:
    type: telegram
    bot_token: {env: BOT_TOKEN}
    chat_id: -100123
    minimum_severity: ERROR
"""


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_URL", "https://hooks.example.com/canary-url")
    monkeypatch.setenv("BOT_TOKEN", "123:canary-token")


def channels(engine: Engine) -> list[tuple[str, str, bool]]:
    query = "SELECT name, minimum_severity, enabled FROM notification_channels ORDER BY name"
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_channels_are_created_changed_and_found_unchanged(engine: Engine, apply: Apply, hooks, monkeypatch):
    assert actions(apply(CHANNELS)) == {"channel ops": "create", "channel phone": "create"}
    assert channels(engine) == [("ops", "WARNING", True), ("phone", "ERROR", True)]
    assert not apply(CHANNELS).changes_anything
    monkeypatch.setenv("BOT_TOKEN", "124:canary-token")
    plan = apply(CHANNELS.replace("minimum_severity: ERROR", "enabled: false"))
    told = plan.as_text()
    assert "canary" not in told + repr(plan)
    assert "    bot_token: (secret) changed" in told and "    enabled: true -> false" in told
    assert channels(engine) == [("ops", "WARNING", True), ("phone", "WARNING", False)]
    with session_scope(engine) as session:
        row = session.scalars(select(NotificationChannel).where(NotificationChannel.name == "phone")).one()
        opened = open_channel(row, Keyring.from_environment())
    assert (opened.secret("bot_token"), opened.config["chat_id"]) == ("124:canary-token", "-100123")


def test_channels_are_pruned_only_by_a_file_that_has_channels(engine: Engine, apply: Apply, hooks):
    apply(CHANNELS)
    apply(SHOP, prune=True, dry_run=True)
    apply("destinations: {}", prune=True)
    assert len(channels(engine)) == 2
    without = CHANNELS[: CHANNELS.index("  phone:")]
    assert actions(apply(without))["channel phone"] == "left alone"
    assert actions(apply(without, prune=True))["channel phone"] == "remove"
    assert [name for name, _, _ in channels(engine)] == ["ops"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("{env: BOT_TOKEN}", "123:canary-literal"), r"notifications\.phone\.bot_token: a literal secret is refused"),
        (("{env: BOT_TOKEN}", "{env: NOT_SET_HERE}"), r"notifications\.phone\.bot_token: .*NOT_SET_HERE is not set"),
        (("type: telegram", "type: pager"), r"notifications\.phone\.type: must be webhook, telegram.* or apprise"),
        (("    type: telegram\n", ""), r"notifications\.phone\.type: is missing"),
        (("chat_id: -100123", "chat_id: nowhere"), r"notifications\.phone\.chat_id: "),
        (("chat_id: -100123", "chat: 1"), r"notifications\.phone\.chat: is not a known field"),
        (("minimum_severity: ERROR", "minimum_severity: LOUD"), r"notifications\.phone\.minimum_severity: must be"),
        (
            ("chat_id: -100123", "chat_id: 1\n    api_url: http://10.0.0.1"),
            r"notifications\.phone: .*must begin with https",
        ),
        (("  ops:", "  o ps:"), "the name may hold letters"),
    ],
)
def test_a_wrong_channel_is_named_and_nothing_is_changed(
    engine: Engine, apply: Apply, hooks, change: tuple[str, str], problem: str
):
    content = CHANNELS.replace(*change, 1)
    assert content != CHANNELS
    with pytest.raises(RosettaError, match=problem) as caught:
        apply(content)
    assert "canary" not in str(caught.value)
    assert channels(engine) == []
    apply(CHANNELS)
    with pytest.raises(RosettaError, match=r"notifications\.ops\.type: cannot change from webhook to slack"):
        apply("notifications: {ops: {type: slack, url: {env: HOOK_URL}}}")
