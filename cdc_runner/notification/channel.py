"""The kinds of channels: what each is told at its creation, which of that is secret, and how a stored one is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, StringConstraints, ValidationError

from cdc_runner.catalog.credentials import CredentialPlace, Keyring
from cdc_runner.catalog.file_format import ConfigurationProblems, Secret, SecretReference
from cdc_runner.catalog.models import NotificationChannel

ChannelType = Literal["webhook", "telegram", "slack", "email", "apprise"]

_Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
_Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:_-]{1,255}$")]
_Mail = Annotated[str, StringConstraints(pattern=r"^[^@\s,<>]{1,64}@[^@\s,<>]{1,255}$")]


def _words(value: object) -> object:
    return [word for word in value.replace(",", " ").split()] if isinstance(value, str) else value


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class WebhookEntry(_Entry):
    """An HTTP endpoint that takes JSON. Its address may hold a token, so it is a secret."""

    url: Secret
    signing_secret: Secret | None = None


class TelegramEntry(_Entry):
    """A Telegram bot and the chat that it writes to."""

    bot_token: Secret
    chat_id: Annotated[str, StringConstraints(pattern=r"^(-?[0-9]{1,20}|@[A-Za-z0-9_]{1,64})$")]
    api_url: _Text = "https://api.telegram.org"


class SlackEntry(_Entry):
    """An incoming webhook of Slack, or of anything that understands the same JSON."""

    url: Secret


class EmailEntry(_Entry):
    """A mail server, who writes, and to whom."""

    host: _Host
    port: Annotated[int, Field(ge=1, le=65535)] = 587
    security: Literal["starttls", "ssl", "none"] = "starttls"
    username: _Text | None = None
    password: Secret | None = None
    sender: _Mail
    recipients: Annotated[list[_Mail], BeforeValidator(_words), Field(min_length=1, max_length=50)]


class AppriseEntry(_Entry):
    """Any service that the library apprise knows, by its address."""

    url: Secret


ENTRIES: dict[str, type[_Entry]] = {
    "webhook": WebhookEntry,
    "telegram": TelegramEntry,
    "slack": SlackEntry,
    "email": EmailEntry,
    "apprise": AppriseEntry,
}


def parse_entry(kind: str, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, SecretReference]]:
    """Return the options of a channel and the references of its secrets.

    Raises:
        ConfigurationProblems: every problem with its field; a value is never repeated.
    """
    entry = ENTRIES.get(kind)
    if entry is None:
        raise ConfigurationProblems([f"type: must be one of {', '.join(ENTRIES)}"])
    given = {name: value for name, value in content.items() if value is not None}
    try:
        parsed = entry.model_validate(given)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].replace('Input should', 'must')}"
            for one in error.errors(include_input=False)
        ]
        raise ConfigurationProblems(problems) from None
    fields = {name: getattr(parsed, name) for name in type(parsed).model_fields}
    references = {name: value for name, value in fields.items() if isinstance(value, SecretReference)}
    config = {name: value for name, value in fields.items() if name not in references and value is not None}
    return config, references


def channel_place(channel_id: int, secret: str) -> CredentialPlace:
    """Return where a channel's secret is stored."""
    return CredentialPlace("notification_channels", f"secrets.{secret}", channel_id)


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel with its secrets at hand; they do not show in a repr."""

    id: int
    name: str
    type: str
    config: dict[str, Any]
    secrets: dict[str, SecretStr]

    def secret(self, name: str) -> str:
        """Return a secret; empty when there is none."""
        found = self.secrets.get(name)
        return found.get_secret_value() if found else ""


def open_channel(row: NotificationChannel, keyring: Keyring) -> Channel:
    """Return a stored channel with its secrets decrypted.

    Raises:
        RosettaError: CREDENTIAL_UNREADABLE.
    """
    secrets = {name: keyring.decrypt(stored, channel_place(row.id, name)) for name, stored in row.secrets.items()}
    return Channel(row.id, row.name, row.type, dict(row.config), secrets)
