"""Changes and copies sources and destinations that exist, under the same rules as a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.catalog.apply_file import SOURCE_FIELDS, destination_config, source_values
from cdc_runner.catalog.credentials import CredentialPlace, Keyring
from cdc_runner.catalog.entry_fields import ConfigurationProblems, SecretReference, check_name
from cdc_runner.catalog.file_format import ConfigurationFile, check_configuration, default_slot
from cdc_runner.catalog.models import Destination, Preset, Source
from cdc_runner.catalog.pipelines import destination_place, source_place
from cdc_runner.catalog.repositories import (
    get_destination,
    get_source,
    list_destinations,
    list_sources,
    lock_configuration,
    next_id,
)
from cdc_runner.catalog.secret_source import read_secret
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.services.destination import describe_destination
from cdc_runner.services.source import describe_source

_SECRETS = ("password", "private_key", "private_key_passphrase")
_KEPT: dict[str, str] = {"env": "KEPT_AS_IT_IS"}


def change_source(
    session: Session, name: str, changes: Mapping[str, Any], keyring: Keyring | None = None
) -> dict[str, Any]:
    """Change fields of a source, named as in a configuration file; what is not named stays. Its pipeline starts anew.

    Returns:
        The changed fields: name -> [before, after]; secrets as `(changed)`.

    Raises:
        RosettaError: NOT_FOUND; CONFIG_INVALID; CONFLICT for slot or publication while a pipeline uses the source.
    """
    lock_configuration(session)
    source = get_source(session, name)
    old = {field: getattr(source, column) for field, column in SOURCE_FIELDS.items()}
    entry = {field: value for field, value in old.items() if value is not None}
    file = _checked({"sources": {name: {**entry, "password": _KEPT, **_given(changes)}}})
    new = source_values(name, file.sources[name], source)
    changed = {field: [old[field], new[field]] for field in SOURCE_FIELDS if old[field] != new[field]}
    for field in ("slot", "publication"):
        if field in changed and source.pipelines:
            raise RosettaError(
                ErrorKind.CONFLICT,
                f"{field} cannot change while pipeline {source.pipelines[0].name} uses the source, as its position"
                " belongs to it; remove the pipeline first",
            )
    for field in changed:
        setattr(source, SOURCE_FIELDS[field], new[field])
    if changes.get("password") is not None:
        secret = read_secret(file.sources[name].password, "password", Path.cwd())
        source.password = (keyring or Keyring.from_environment()).encrypt(secret, source_place(source.id))
        changed["password"] = ["(kept)", "(changed)"]
    session.flush()
    return changed


def change_destination(
    session: Session, name: str, changes: Mapping[str, Any], keyring: Keyring | None = None
) -> dict[str, Any]:
    """Change fields of a destination, named as in a configuration file; what is not named stays.

    Returns:
        The changed fields: name -> [before, after]; secrets as `(changed)`.

    Raises:
        RosettaError: NOT_FOUND or CONFIG_INVALID.
    """
    lock_configuration(session)
    row = get_destination(session, name)
    given = _given(changes)
    kept = {secret: _KEPT for secret in row.secrets}
    file = _checked({"destinations": {name: {"type": row.type, **row.config, **kept, **given}}})
    config, secret_names = destination_config(file.destinations[name])
    fields = sorted({*config, *row.config})
    changed = {one: [row.config.get(one), config.get(one)] for one in fields if row.config.get(one) != config.get(one)}
    secrets = dict(row.secrets)
    for secret in secret_names:
        if given.get(secret) is not None:
            plain = read_secret(SecretReference(**given[secret]), secret, Path.cwd())
            secrets[secret] = (keyring or Keyring.from_environment()).encrypt(plain, destination_place(row.id, secret))
            changed[secret] = ["(kept)", "(changed)"]
    row.config, row.secrets = config, secrets
    session.flush()
    return changed


def _given(changes: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        raise RosettaError(ErrorKind.CONFIG_INVALID, "nothing to change was given")
    for secret in _SECRETS:
        if secret in given and not isinstance(given[secret], dict):
            raise ConfigurationProblems(
                [f"{secret}: a literal secret is refused; write {{env: NAME}} or {{file: PATH}}"]
            )
    return given


def _checked(content: Mapping[str, Any]) -> ConfigurationFile:
    return check_configuration(content)


def duplicate_source(session: Session, name: str, new_name: str, keyring: Keyring | None = None) -> dict[str, Any]:
    """Copy a source with its credentials and presets; slot and publication get names of their own.

    Raises:
        RosettaError: NOT_FOUND, CONFLICT when the name or its slot is taken, CREDENTIAL_*.
    """
    lock_configuration(session)
    check_name(new_name)
    old, keys = get_source(session, name), keyring or Keyring.from_environment()
    taken = list_sources(session)
    slot = default_slot(new_name)
    if any(one.name == new_name for one in taken):
        raise RosettaError(ErrorKind.CONFLICT, f"a source {new_name} exists already")
    if any((one.host, one.port, one.slot_name) == (old.host, old.port, slot) for one in taken):
        raise RosettaError(ErrorKind.CONFLICT, f"slot {slot} of this server is used by another source")
    identifier = next_id(session, "sources")
    values = {column: getattr(old, column) for column in SOURCE_FIELDS.values()}
    values |= {"slot_name": slot, "publication_name": slot, "table_patterns": list(old.table_patterns)}
    password = _moved(keys, old.password, source_place(old.id), source_place(identifier))
    session.add(Source(id=identifier, name=new_name, password=password, **values))
    session.flush()
    presets = session.scalars(select(Preset).where(Preset.source_id == old.id))
    session.add_all(Preset(source_id=identifier, name=row.name, table_names=list(row.table_names)) for row in presets)
    session.flush()
    return describe_source(session, new_name)


def duplicate_destination(session: Session, name: str, new_name: str, keyring: Keyring | None = None) -> dict[str, Any]:
    """Copy a destination with its credentials.

    Raises:
        RosettaError: NOT_FOUND, CONFLICT when the name is taken, CREDENTIAL_*.
    """
    lock_configuration(session)
    check_name(new_name)
    old, keys = get_destination(session, name), keyring or Keyring.from_environment()
    if any(one.name == new_name for one in list_destinations(session)):
        raise RosettaError(ErrorKind.CONFLICT, f"a destination {new_name} exists already")
    identifier = next_id(session, "destinations")
    secrets = {
        secret: _moved(keys, stored, destination_place(old.id, secret), destination_place(identifier, secret))
        for secret, stored in old.secrets.items()
    }
    session.add(Destination(id=identifier, name=new_name, type=old.type, config=dict(old.config), secrets=secrets))
    session.flush()
    return describe_destination(session, new_name)


def _moved(keys: Keyring, stored: str, old: CredentialPlace, new: CredentialPlace) -> str:
    # A credential is bound to its row: a copied text could not be read.
    return keys.encrypt(keys.decrypt(stored, old), new)
