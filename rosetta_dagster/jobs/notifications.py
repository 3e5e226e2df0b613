"""Jobs about notifications: channels, a test message, the list, and what a person says about it."""

# The services reach into the engine and its libraries: they are imported by a run, never by the code server.
# Annotations stay objects here: Dagster looks at the one of `context` before it could resolve a text.

from typing import Any

from dagster import Config, Failure, OpExecutionContext, op
from pydantic import Field

from rosetta_dagster.jobs.outcome import engine_outcome
from rosetta_dagster.jobs.partitions import CHANNELS
from rosetta_dagster.jobs.verb import fields, given, reference, table, verb_job
from rosetta_dagster.resources.catalog import catalog_session

_SECRETS = ("url", "signing_secret", "bot_token", "password")


class ChannelConfig(Config):
    """A channel. Addresses and tokens are secrets: they come from variables or files, and are stored encrypted."""

    name: str = Field(
        description="Its name, e.g. on_call: letters, digits, - and _. An existing one gets these options."
    )
    type: str = Field(description="webhook, telegram, slack, email or apprise.")
    minimum_severity: str = Field(default="WARNING", description="INFO, WARNING or ERROR; less is not sent there.")
    url_env: str = Field(default="", description="webhook, slack, apprise: variable with the address.")
    url_file: str = Field(default="", description="webhook, slack, apprise: file with the address.")
    signing_secret_env: str = Field(default="", description="webhook: variable with the key of its HMAC signature.")
    signing_secret_file: str = Field(default="", description="webhook: file with that key.")
    bot_token_env: str = Field(default="", description="telegram: variable with the bot's token.")
    bot_token_file: str = Field(default="", description="telegram: file with the bot's token.")
    chat_id: str = Field(default="", description="telegram: chat, e.g. -1001234567890 or @channel.")
    api_url: str = Field(default="", description="telegram: a Bot API server of your own. Empty: api.telegram.org.")
    host: str = Field(default="", description="email: mail server.")
    port: int = Field(default=0, description="email: its port. 0: 587.")
    security: str = Field(default="", description="email: starttls (default), ssl or none.")
    username: str = Field(default="", description="email: user name at the mail server.")
    password_env: str = Field(default="", description="email: variable with the password.")
    password_file: str = Field(default="", description="email: file with the password.")
    sender: str = Field(default="", description="email: address that writes.")
    recipients: list[str] = Field(default=[], description="email: addresses that receive.")


class ChangeChannelConfig(Config):
    """What to change."""

    enabled: bool = Field(default=True, description="Off: nothing is sent; what waits is sent when it is on again.")
    minimum_severity: str = Field(default="", description="INFO, WARNING or ERROR. Empty: as it is.")


class RemoveChannelConfig(Config):
    """Asked for twice."""

    dry_run: bool = Field(default=True, description="On: only say what would be lost.")


class ListNotificationsConfig(Config):
    """Which notifications."""

    status: str = Field(default="", description="OPEN, RESOLVED or EVENT. Empty: all.")
    limit: int = Field(default=50, description="Newest ones to show.")


class AcknowledgeConfig(Config):
    """Which notifications."""

    key: str = Field(default="", description="Key of one. Empty: all.")
    resolve: bool = Field(default=False, description="Also close it; a monitor that sees its cause opens it again.")
    clear: bool = Field(default=False, description="Also take everything that is over off the list.")


def _options(values: dict[str, Any]) -> dict[str, Any]:
    references = [f"{secret}_{kind}" for secret in _SECRETS for kind in ("env", "file")]
    options = given(values, "name", "type", "minimum_severity", *references)
    for secret in _SECRETS:
        found = reference(secret, values[f"{secret}_env"], values[f"{secret}_file"], required=False)
        if found is not None:
            options[secret] = found
    return options


@op(name="store_channel")
def create_channel_op(context: OpExecutionContext, config: ChannelConfig) -> None:
    from cdc_runner.services.notification import create_channel

    values = config.model_dump()
    with engine_outcome(), catalog_session() as session:
        options = _options(values)
        described = create_channel(session, config.name, config.type, options, minimum_severity=config.minimum_severity)
    result = f"channel {config.name} is stored; next: job test_notification"
    context.add_output_metadata({"result": result, **fields(described)})


@op(name="update_channel")
def change_channel_op(context: OpExecutionContext, config: ChangeChannelConfig) -> None:
    from cdc_runner.services.notification import set_channel

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        severity = config.minimum_severity or None
        described = set_channel(session, name, enabled=config.enabled, minimum_severity=severity)
    context.add_output_metadata({"result": f"channel {name} is changed", **fields(described)})


@op(name="delete_channel")
def remove_channel_op(context: OpExecutionContext, config: RemoveChannelConfig) -> None:
    from cdc_runner.services.notification import remove_channel

    name = context.partition_key
    with engine_outcome(), catalog_session() as session:
        waiting = remove_channel(session, name)
        if config.dry_run:
            session.rollback()
    done = "dry run: would be removed" if config.dry_run else "is removed"
    context.add_output_metadata({"result": f"channel {name} {done}, with {waiting} messages that wait for it"})


@op(name="send_test_message")
def test_channel_op(context: OpExecutionContext) -> None:
    from cdc_runner.services.notification import test_channel

    with engine_outcome(), catalog_session() as session:
        told = test_channel(session, context.partition_key)
    if not told["ok"]:
        raise Failure(f"{told['name']}: {told['error']} — {told['solution']}", fields(told), allow_retries=False)
    context.add_output_metadata({"result": f"channel {told['name']} took the message", **fields(told)})


@op(name="read_notifications")
def list_notifications_op(context: OpExecutionContext, config: ListNotificationsConfig) -> None:
    from cdc_runner.services.notification import describe_channels, describe_notifications

    with engine_outcome(), catalog_session() as session:
        rows = describe_notifications(session, status=config.status or None, limit=min(config.limit, 500))
        channels = describe_channels(session)
    columns = ("severity", "status", "title", "text", "count", "key", "last_seen_at", "deliveries")
    context.add_output_metadata(
        {
            "result": f"{sum(row['status'] == 'OPEN' for row in rows)} open of {len(rows)} shown",
            "notifications": table(rows, columns),
            "channels": table(
                channels, ("name", "type", "enabled", "minimum_severity", "last_delivered_at", "last_error")
            ),
        }
    )


@op(name="mark_notifications")
def acknowledge_op(context: OpExecutionContext, config: AcknowledgeConfig) -> None:
    from cdc_runner.services.notification import acknowledge, clear_notifications, close_notification

    with engine_outcome(), catalog_session() as session:
        if config.resolve and not config.key:
            raise Failure("resolve needs the key of one notification", allow_retries=False)
        read = acknowledge(session, config.key or None)
        closed = config.resolve and close_notification(session, config.key)
        cleared = clear_notifications(session) if config.clear else 0
    told = f"{read} marked as read, {int(closed)} closed, {cleared} taken off the list"
    context.add_output_metadata({"result": f"{told}; what was not sent yet is still sent"})


create_notification_channel = verb_job(
    create_channel_op,
    name="create_notification_channel",
    description="Creates a channel that notifications are sent to: webhook, Telegram, Slack, e-mail, or any service of "
    "the library apprise.",
)
change_notification_channel = verb_job(
    change_channel_op,
    name="change_notification_channel",
    picker=CHANNELS,
    kind="change",
    description="Turns a channel on or off, or changes how severe a notification must be for it.",
)
remove_notification_channel = verb_job(
    remove_channel_op,
    name="remove_notification_channel",
    picker=CHANNELS,
    kind="change",
    description="Removes a channel. A dry run unless told otherwise.",
)
test_notification = verb_job(
    test_channel_op,
    name="test_notification",
    picker=CHANNELS,
    description="Sends a test message to a channel now and says what came of it.",
)
list_notifications = verb_job(
    list_notifications_op,
    name="list_notifications",
    description="Lists notifications with their delivery, and the channels.",
)
acknowledge_notifications = verb_job(
    acknowledge_op,
    name="acknowledge_notifications",
    description="Marks notifications as read: no reminders. What was not sent yet is still sent.",
)

NOTIFICATION_JOBS = [
    create_notification_channel, change_notification_channel, remove_notification_channel, test_notification,
    list_notifications, acknowledge_notifications,
]  # fmt: skip
