"""A stored channel with its secrets at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from cdc_runner.catalog.channel_entry import channel_place
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.models import NotificationChannel


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
