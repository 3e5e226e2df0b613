"""The kinds of notification channels: what each is told at its creation, and which of that is secret."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from cdc_runner.catalog.credentials import CredentialPlace
from cdc_runner.catalog.entry_fields import ConfigurationProblems, Secret, SecretReference, storable

Severity = Literal["INFO", "WARNING", "ERROR"]

_Text = Annotated[str, BeforeValidator(storable), StringConstraints(min_length=1, max_length=1024)]
_Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:_-]{1,255}$")]
_Mail = Annotated[str, BeforeValidator(storable), StringConstraints(pattern=r"^[^@\s,<>]{1,64}@[^@\s,<>]{1,255}$")]


def _words(value: object) -> object:
    return [word for word in value.replace(",", " ").split()] if isinstance(value, str) else value


def _number_as_text(value: object) -> object:
    # YAML takes an id without quotes for a number.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class _Channel(BaseModel):
    # Not strict: a command line and a launchpad give numbers as text.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    minimum_severity: Severity = "WARNING"
    enabled: bool = True


class WebhookEntry(_Channel):
    """An HTTP endpoint that takes JSON. Its address may hold a token, so it is a secret."""

    type: Literal["webhook"]
    url: Secret
    signing_secret: Secret | None = None


class TelegramEntry(_Channel):
    """A Telegram bot and the chat that it writes to."""

    type: Literal["telegram"]
    bot_token: Secret
    chat_id: Annotated[
        str,
        BeforeValidator(_number_as_text),
        StringConstraints(pattern=r"^(-?[0-9]{1,20}|@[A-Za-z0-9_]{1,64})$"),
    ]
    api_url: _Text = "https://api.telegram.org"


class SlackEntry(_Channel):
    """An incoming webhook of Slack, or of anything that understands the same JSON."""

    type: Literal["slack"]
    url: Secret


class EmailEntry(_Channel):
    """A mail server, who writes, and to whom."""

    type: Literal["email"]
    host: _Host
    port: Annotated[int, Field(ge=1, le=65535)] = 587
    security: Literal["starttls", "ssl", "none"] = "starttls"
    username: _Text | None = None
    password: Secret | None = None
    sender: _Mail
    recipients: Annotated[list[_Mail], BeforeValidator(_words), Field(min_length=1, max_length=50)]


class AppriseEntry(_Channel):
    """Any service that the library apprise knows, by its address."""

    type: Literal["apprise"]
    url: Secret


AnyChannel = WebhookEntry | TelegramEntry | SlackEntry | EmailEntry | AppriseEntry
ChannelEntry = Annotated[AnyChannel, Field(discriminator="type")]

CHANNEL_TYPES: dict[str, type[AnyChannel]] = {
    "webhook": WebhookEntry,
    "telegram": TelegramEntry,
    "slack": SlackEntry,
    "email": EmailEntry,
    "apprise": AppriseEntry,
}
_NOT_OPTIONS = ("type", "minimum_severity", "enabled")


def channel_options(entry: AnyChannel) -> tuple[dict[str, Any], dict[str, SecretReference]]:
    """Return the options of a channel as they are stored, and the references of its secrets."""
    fields = {name: getattr(entry, name) for name in type(entry).model_fields if name not in _NOT_OPTIONS}
    references = {name: value for name, value in fields.items() if isinstance(value, SecretReference)}
    config = {name: value for name, value in fields.items() if name not in references and value is not None}
    return config, references


def parse_channel(kind: str, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, SecretReference]]:
    """Return the options of a channel and the references of its secrets.

    Raises:
        ConfigurationProblems: every problem with its field; a value is never repeated.
    """
    entry = CHANNEL_TYPES.get(kind)
    if entry is None:
        raise ConfigurationProblems([f"type: must be one of {', '.join(CHANNEL_TYPES)}"])
    given = {name: value for name, value in content.items() if value is not None and name not in _NOT_OPTIONS}
    try:
        parsed = entry.model_validate({**given, "type": kind})
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].replace('Input should', 'must')}"
            for one in error.errors(include_input=False)
        ]
        raise ConfigurationProblems(problems) from None
    return channel_options(parsed)


def channel_place(channel_id: int, secret: str) -> CredentialPlace:
    """Return where a channel's secret is stored."""
    return CredentialPlace("notification_channels", f"secrets.{secret}", channel_id)
