"""Reads the secrets that a configuration file refers to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, SecretStr

from cdc_runner.catalog.entry_fields import ConfigurationProblems, SecretReference
from cdc_runner.catalog.file_format import ConfigurationFile

MAX_SECRET_BYTES = 65_536

Secrets = dict[tuple[str, str, str], SecretStr]
"""(`sources`, `destinations` or `notifications`, name, field) -> secret."""


def read_secrets(file: ConfigurationFile, directory: Path, variables: Mapping[str, str] | None = None) -> Secrets:
    """Return every secret that the file refers to; relative paths are below the file's directory.

    Raises:
        ConfigurationProblems: each variable that is not set and each file that cannot be read.
    """
    environment = os.environ if variables is None else variables
    secrets: Secrets = {}
    problems: list[str] = []
    for section, name, field, reference in _references(file):
        try:
            secrets[(section, name, field)] = _read(reference, directory, environment)
        except ValueError as error:
            problems.append(f"{section}.{name}.{field}: {error}")
    if problems:
        raise ConfigurationProblems(problems)
    return secrets


def read_secret(
    reference: SecretReference, field: str, directory: Path, variables: Mapping[str, str] | None = None
) -> SecretStr:
    """Return the secret that a reference points to; a relative path is below the directory.

    Raises:
        ConfigurationProblems: the variable is not set, or the file cannot be read.
    """
    try:
        return _read(reference, directory, os.environ if variables is None else variables)
    except ValueError as error:
        raise ConfigurationProblems([f"{field}: {error}"]) from None


def _references(file: ConfigurationFile) -> list[tuple[str, str, str, SecretReference]]:
    found: list[tuple[str, str, str, SecretReference]] = []
    entries: list[tuple[str, str, BaseModel]] = [
        *(("sources", name, one) for name, one in file.sources.items()),
        *(("destinations", name, one) for name, one in file.destinations.items()),
        *(("notifications", name, one) for name, one in (file.notifications or {}).items()),
    ]
    for section, name, entry in entries:
        for field in type(entry).model_fields:
            value = getattr(entry, field)
            if isinstance(value, SecretReference):
                found.append((section, name, field, value))
    return found


def _read(reference: SecretReference, directory: Path, environment: Mapping[str, str]) -> SecretStr:
    if reference.env is not None:
        value = environment.get(reference.env)
        if not value:
            raise ValueError(f"the environment variable {reference.env} is not set")
        return _checked(value, f"the environment variable {reference.env}")
    path = directory / Path(str(reference.file)).expanduser()
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise ValueError(f"the file {reference.file} cannot be read ({error.strerror})") from None
    if len(content) > MAX_SECRET_BYTES:
        raise ValueError(f"the file {reference.file} is longer than {MAX_SECRET_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the file {reference.file} is not UTF-8 text") from None
    # Editors end a file with a line break, which is not a part of the secret.
    return _checked(text.removesuffix("\n").removesuffix("\r"), f"the file {reference.file}")


def _checked(value: str, where: str) -> SecretStr:
    if not value:
        raise ValueError(f"{where} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} is not valid text") from None
    if "\x00" in value:
        raise ValueError(f"{where} holds a NUL character")
    return SecretStr(value)
