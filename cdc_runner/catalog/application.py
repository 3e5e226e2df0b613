"""What one run of `apply` works with."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import SecretStr
from sqlalchemy.orm import Session

from cdc_runner.catalog.credentials import CredentialPlace, Keyring
from cdc_runner.catalog.file_format import ConfigurationFile
from cdc_runner.catalog.plan import Plan
from cdc_runner.catalog.secret_source import Secrets
from cdc_runner.errors import ErrorKind, RosettaError


@dataclass(frozen=True, slots=True)
class Application:
    """One run of `apply`."""

    session: Session
    file: ConfigurationFile
    secrets: Secrets
    keyring: Keyring
    plan: Plan
    replace_credentials: bool
    prune: bool


def stored_secret(run: Application, stored: str, place: CredentialPlace, wanted: SecretStr) -> str | None:
    """Return None when the stored secret is the wanted one, else a mark that differs from SECRET."""
    try:
        same = run.keyring.decrypt(stored, place).get_secret_value() == wanted.get_secret_value()
    except RosettaError as error:
        if error.kind is not ErrorKind.CREDENTIAL_UNREADABLE or not run.replace_credentials:
            raise
        return "(unreadable)"
    # Written anew when it is of an older key: applying the file also rotates.
    return None if same and run.keyring.is_current(stored) else "(older secret)"


def shown(value: object) -> str | None:
    """Return a value as a plan shows it."""
    if value is None:
        return None
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    return str(value).lower() if isinstance(value, bool) else str(value)
