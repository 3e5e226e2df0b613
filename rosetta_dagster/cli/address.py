"""Options that say how to reach a PostgreSQL database; the password only as a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PLACE = (
    click.option("--host", required=True),
    click.option("--port", type=int, default=5432, show_default=True),
    click.option("--database", required=True),
    click.option("--username", required=True),
)
_OTHER_PLACE = (
    click.option("--host"),
    click.option("--port", type=int),
    click.option("--database"),
    click.option("--username"),
)
_OPTIONS = (
    click.option("--password-env", help="Environment variable that holds the password."),
    click.option("--password-file", help="File that holds the password."),
    click.option("--sslmode", help="disable, allow, prefer (default), require, verify-ca or verify-full."),
    click.option("--sslrootcert", help="File with the certificate authority."),
    click.option("--sslcert", help="File with the client certificate."),
    click.option("--sslkey", help="File with the client key."),
)


def address_options(function: _Function) -> _Function:
    """Add the options of a PostgreSQL address."""
    for option in reversed((*_PLACE, *_OPTIONS)):
        function = option(function)
    return function


def change_options(function: _Function) -> _Function:
    """Add the same options, none of which has to be given."""
    for option in reversed((*_OTHER_PLACE, *_OPTIONS)):
        function = option(function)
    return function


def given_changes(options: Mapping[str, object]) -> dict[str, object]:
    """Return the given options as fields of an entry of a configuration file.

    Raises:
        click.UsageError: two references to the password.
    """
    variable, file = options.get("password_env"), options.get("password_file")
    if variable is not None and file is not None:
        raise click.UsageError("give one of --password-env and --password-file")
    entry: dict[str, object] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if name not in ("password_env", "password_file") and value not in (None, ())
    }
    if variable is not None or file is not None:
        entry["password"] = {"env": variable} if variable is not None else {"file": file}
    return entry


def given_address(options: Mapping[str, object]) -> dict[str, object]:
    """Return the given options as an entry of a configuration file.

    Raises:
        click.UsageError: not exactly one reference to the password.
    """
    variable, file = options.get("password_env"), options.get("password_file")
    if (variable is None) == (file is None):
        raise click.UsageError("give one of --password-env and --password-file")
    return given_changes(options)
