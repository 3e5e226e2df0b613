"""What one run of `apply` works with."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.file_format import ConfigurationFile
from cdc_runner.catalog.plan import Plan
from cdc_runner.catalog.secret_source import Secrets


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
