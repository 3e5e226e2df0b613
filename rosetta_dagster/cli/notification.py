"""`rosetta notification …`."""

from __future__ import annotations

import click

from cdc_runner.services import notification as service
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_fields, print_json, print_table

_SECRETS = ("url", "signing_secret", "bot_token", "password")


@click.group()
def notification() -> None:
    """List notifications; create, test and remove the channels that they are sent to."""


@notification.command("list")
@click.option("--status", type=click.Choice(["OPEN", "RESOLVED", "EVENT"]), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@json_option
def list_notifications(status: str | None, limit: int, as_json: bool) -> None:
    """List the newest notifications with their delivery."""
    with catalog_session() as session:
        rows = service.describe_notifications(session, status=status, limit=limit)
    if as_json:
        print_json(rows)
    else:
        columns = ("severity", "status", "title", "count", "key", "last_seen_at", "deliveries")
        print_table(rows, columns, empty="no notifications")


@notification.command("channels")
@json_option
def list_channels(as_json: bool) -> None:
    """List the channels, without their secrets."""
    with catalog_session() as session:
        rows = service.describe_channels(session)
    if as_json:
        print_json(rows)
    else:
        columns = ("name", "type", "enabled", "minimum_severity", "last_delivered_at", "last_error")
        print_table(rows, columns, empty="no channels")


@notification.command("create")
@click.argument("name")
@click.option("--type", "kind", required=True, type=click.Choice(["webhook", "telegram", "slack", "email", "apprise"]))
@click.option("--minimum-severity", default="WARNING", show_default=True, help="INFO, WARNING or ERROR.")
@click.option("--url-env", help="webhook, slack, apprise: variable with the address.")
@click.option("--url-file", help="webhook, slack, apprise: file with the address.")
@click.option("--signing-secret-env", help="webhook: variable with the key of the signature.")
@click.option("--signing-secret-file", help="webhook: file with the key of the signature.")
@click.option("--bot-token-env", help="telegram: variable with the bot's token.")
@click.option("--bot-token-file", help="telegram: file with the bot's token.")
@click.option("--chat-id", help="telegram: chat.")
@click.option("--api-url", help="telegram: Bot API server of your own.")
@click.option("--host", help="email: mail server.")
@click.option("--port", type=int, help="email: port; default 587.")
@click.option("--security", help="email: starttls (default), ssl or none.")
@click.option("--username", help="email: user name at the mail server.")
@click.option("--password-env", help="email: variable with the password.")
@click.option("--password-file", help="email: file with the password.")
@click.option("--sender", help="email: address that writes.")
@click.option("--recipient", "recipients", multiple=True, help="email: address that receives; repeatable.")
@json_option
def create(name: str, kind: str, minimum_severity: str, as_json: bool, **options: object) -> None:
    """Create a channel, or give an existing one these options. Secrets come from variables or files only."""
    entry: dict[str, object] = {}
    for field, value in options.items():
        secret, _, place = field.rpartition("_")
        if value in (None, ()):
            continue
        if secret in _SECRETS and place in ("env", "file"):
            if secret in entry:
                raise click.UsageError(f"give one of --{secret}-env and --{secret}-file".replace("_", "-"))
            entry[secret] = {place: value}
        else:
            entry[field] = list(value) if isinstance(value, tuple) else value
    with catalog_session() as session:
        made = service.create_channel(session, name, kind, entry, minimum_severity=minimum_severity)
    if as_json:
        print_json(made)
    else:
        click.echo(f"stored channel {name}; `rosetta notification test {name}` sends a message to it")


@notification.command("test")
@click.argument("name")
@json_option
def test(name: str, as_json: bool) -> int:
    """Send a test message to a channel now."""
    with catalog_session() as session:
        told = service.test_channel(session, name)
    if as_json:
        print_json(told)
    else:
        print_fields(told)
    return 0 if told["ok"] else 1


def _set(name: str, enabled: bool, as_json: bool) -> None:
    with catalog_session() as session:
        row = service.set_channel(session, name, enabled=enabled)
    if as_json:
        print_json(row)
    else:
        click.echo(f"channel {name} is {'on' if enabled else 'off'}")


@notification.command("enable")
@click.argument("name")
@json_option
def enable(name: str, as_json: bool) -> None:
    """Turn a channel on; what waited for it is sent."""
    _set(name, True, as_json)


@notification.command("disable")
@click.argument("name")
@json_option
def disable(name: str, as_json: bool) -> None:
    """Turn a channel off; what is not sent waits."""
    _set(name, False, as_json)


@notification.command("remove")
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Remove a channel with the messages that wait for it."""
    with catalog_session() as session:
        waiting = service.remove_channel(session, name)
    if as_json:
        print_json({"removed": name, "messages_lost": waiting})
    else:
        click.echo(f"removed channel {name}; {waiting} messages waited for it")


@notification.command("read")
@click.argument("key", required=False)
@click.option("--resolve", is_flag=True, help="Also close it; a monitor that sees its cause opens it again.")
@json_option
def read(key: str | None, resolve: bool, as_json: bool) -> None:
    """Mark one notification, or all, as read: no reminders."""
    if resolve and key is None:
        raise click.UsageError("--resolve needs the KEY of a notification")
    with catalog_session() as session:
        count = service.acknowledge(session, key)
        closed = bool(resolve and key and service.close_notification(session, key))
    if as_json:
        print_json({"read": count, "closed": closed})
    else:
        click.echo(f"{count} marked as read" + ("; closed" if closed else ""))


@notification.command("clear")
@json_option
def clear(as_json: bool) -> None:
    """Take what is over off the list."""
    with catalog_session() as session:
        count = service.clear_notifications(session)
    if as_json:
        print_json({"cleared": count})
    else:
        click.echo(f"{count} taken off the list")
