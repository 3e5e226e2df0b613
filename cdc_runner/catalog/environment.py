"""The one place of the engine that reads environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from cdc_runner.errors import ErrorKind, RosettaError

DEFAULT_HOME = ".rosetta"
DEFAULT_HEALTH_PORT = 8001


@dataclass(frozen=True, slots=True)
class Environment:
    """What the process was told from outside; secrets do not show in a repr.

    Attributes:
        config_database_url: SQLAlchemy or libpq URL of the config database; None when it is not set.
        redis_url: Redis of the dead-letter queue; None when it is not set.
        encryption_key: base64 of 32 bytes; None when it is not set.
        old_encryption_keys: base64 keys that are still accepted for reading.
        home: directory of local state.
        java_home: directory of a Java runtime; None takes the one of the wheel.
        health_port: port of the runner's health endpoint.
        debug: tracebacks instead of one line.
        failpoint: where the process is to die (`cdc_runner.failpoints`); None, as always outside of tests, is nowhere.
    """

    config_database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    encryption_key: SecretStr | None = None
    old_encryption_keys: tuple[SecretStr, ...] = field(default=())
    home: Path = Path(DEFAULT_HOME)
    java_home: str | None = None
    health_port: int = DEFAULT_HEALTH_PORT
    debug: bool = False
    failpoint: str | None = None


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """Return the environment of this process.

    Args:
        variables: instead of `os.environ`, for tests.

    Raises:
        RosettaError: a variable has a value that cannot be used.
    """
    given = os.environ if variables is None else variables
    home = Path(given.get("ROSETTA_HOME") or DEFAULT_HOME)
    values = {name: value for name, value in given.items() if value}

    def secret(name: str) -> SecretStr | None:
        return SecretStr(values[name]) if values.get(name) else None

    port = values.get("ROSETTA_HEALTH_PORT", str(DEFAULT_HEALTH_PORT))
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise RosettaError(ErrorKind.CONFIG_INVALID, "ROSETTA_HEALTH_PORT is not a port number (1 to 65535)")
    old = values.get("CREDENTIAL_ENCRYPTION_KEYS_OLD", "")
    return Environment(
        config_database_url=secret("CONFIG_DATABASE_URL"),
        redis_url=secret("REDIS_URL"),
        encryption_key=secret("CREDENTIAL_ENCRYPTION_KEY"),
        old_encryption_keys=tuple(SecretStr(key) for key in old.replace(",", " ").split()),
        home=home,
        java_home=values.get("JAVA_HOME"),
        health_port=int(port),
        debug=values.get("ROSETTA_DEBUG", "") not in ("", "0"),
        failpoint=values.get("ROSETTA_FAILPOINT"),
    )
