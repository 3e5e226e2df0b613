"""Brings the config database in line with a configuration file.

    file = parse_configuration(text)
    plan = apply_configuration(session, file, secrets, keyring)

The plan is made and carried out in the caller's transaction under a lock, so that two applies follow each other. What
the file does not name is left alone, unless `prune` is asked for. Applying the same file twice changes nothing.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from cdc_runner.catalog.application import Application, shown, stored_secret
from cdc_runner.catalog.apply_channels import apply_channels, check_channels
from cdc_runner.catalog.apply_pipelines import apply_pipelines, check_pipelines
from cdc_runner.catalog.apply_presets import apply_presets, with_tables_of_presets
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.entry_fields import ConfigurationProblems
from cdc_runner.catalog.file_format import (
    ConfigurationFile,
    PostgresDestinationEntry,
    SnowflakeDestinationEntry,
    SourceEntry,
    default_slot,
)
from cdc_runner.catalog.models import Destination, Source
from cdc_runner.catalog.pipelines import destination_place, source_place
from cdc_runner.catalog.plan import SECRET, Change, Kind, Plan, action_of, differences
from cdc_runner.catalog.prune import prune_absent
from cdc_runner.catalog.repositories import list_destinations, list_sources, lock_configuration, next_id
from cdc_runner.catalog.secret_source import Secrets

SOURCE_FIELDS = {
    "type": "type",
    "host": "host",
    "port": "port",
    "database": "database_name",
    "username": "username",
    "sslmode": "sslmode",
    "sslrootcert": "sslrootcert",
    "sslcert": "sslcert",
    "sslkey": "sslkey",
    "publication": "publication_name",
    "slot": "slot_name",
    "tables": "table_patterns",
    "capture_engine": "capture_engine",
}
"""Name in the file -> column."""


def apply_configuration(
    session: Session,
    file: ConfigurationFile,
    secrets: Secrets,
    keyring: Keyring,
    *,
    prune: bool = False,
    replace_credentials: bool = False,
) -> Plan:
    """Change the config database to what the file says, and return what was done.

    For a dry run roll the transaction back.

    Args:
        session: its transaction is used and not committed.
        file: parsed file.
        secrets: what its references point to.
        keyring: decrypts what is stored and encrypts what is new.
        prune: also remove what the file does not name; refused for what is in use.
        replace_credentials: store secrets again that cannot be decrypted with the keys at hand.

    Raises:
        RosettaError: a reference to something unknown, a change that is not possible, an unreadable credential;
            the transaction must be rolled back.
    """
    lock_configuration(session)
    file = with_tables_of_presets(session, file, prune=prune)
    run = Application(session, file, secrets, keyring, Plan(), replace_credentials, prune)
    problems = _check_sources(run) + _check_destinations(run) + check_channels(run) + check_pipelines(run)
    if problems:
        raise ConfigurationProblems(problems)
    _apply_sources(run)
    _apply_destinations(run)
    session.flush()
    apply_presets(run)
    apply_pipelines(run)
    session.flush()
    apply_channels(run)
    prune_absent(run)
    session.flush()
    return run.plan


def _check_sources(run: Application) -> list[str]:
    problems: list[str] = []
    stored = {source.name: source for source in list_sources(run.session)}
    slots = {
        (one.host, one.port, one.slot_name): one.name for one in stored.values() if one.name not in run.file.sources
    }
    for name, entry in run.file.sources.items():
        source = stored.get(name)
        wanted = source_values(name, entry, source)
        other = slots.setdefault((wanted["host"], wanted["port"], wanted["slot"]), name)
        if other != name:
            problems.append(f"sources.{name}.slot: source {other} uses this slot on the same server already")
        if source is None or not source.pipelines:
            continue
        problems.extend(
            f"sources.{name}.{field}: cannot change while pipeline {source.pipelines[0].name} uses the source,"
            " as its position belongs to it; remove the pipeline first"
            for field in ("slot", "publication")
            if getattr(source, SOURCE_FIELDS[field]) != wanted[field]
        )
    return problems


def source_values(name: str, entry: SourceEntry, stored: Source | None) -> dict[str, Any]:
    """Return the fields of a source with defaults filled in, without the password.

    Slot and publication that are not given stay what they are: their defaults are made of the name, which may change.
    """
    values = {field: getattr(entry, field) for field in SOURCE_FIELDS}
    values["slot"] = entry.slot or (stored.slot_name if stored else default_slot(name))
    values["publication"] = entry.publication or (stored.publication_name if stored else default_slot(name))
    return values


def _apply_sources(run: Application) -> None:
    stored = {source.name: source for source in list_sources(run.session)}
    for name, entry in run.file.sources.items():
        source = stored.get(name)
        wanted = source_values(name, entry, source)
        password = run.secrets[("sources", name, "password")]
        if source is None:
            identifier = next_id(run.session, "sources")
            source = Source(id=identifier, name=name, password=run.keyring.encrypt(password, source_place(identifier)))
            old: dict[str, str | None] = {}
            run.session.add(source)
        else:
            old = {field: shown(getattr(source, column)) for field, column in SOURCE_FIELDS.items()}
            old["password"] = stored_secret(run, source.password, source_place(source.id), password)
            if old["password"] is not None:
                source.password = run.keyring.encrypt(password, source_place(source.id))
        new = {field: shown(value) for field, value in wanted.items()}
        # Either both are None, or the old one is a mark that differs.
        new["password"] = SECRET if not old or old["password"] is not None else None
        for field, column in SOURCE_FIELDS.items():
            if old.get(field) != new[field]:
                setattr(source, column, wanted[field])
        _record(run, "source", name, old, new)


def _check_destinations(run: Application) -> list[str]:
    stored = {destination.name: destination for destination in list_destinations(run.session)}
    return [
        f"destinations.{name}.type: cannot change from {stored[name].type} to {entry.type}; give it another name"
        for name, entry in run.file.destinations.items()
        if name in stored and stored[name].type != entry.type
    ]


def destination_config(entry: PostgresDestinationEntry | SnowflakeDestinationEntry) -> tuple[dict[str, Any], list[str]]:
    """Return the stored options of a destination, without absent ones, and the names of its secrets."""
    content = entry.model_dump(by_alias=True, exclude_none=True)
    secrets = [
        name for name in type(entry).model_fields if name in ("password", "private_key", "private_key_passphrase")
    ]
    config = {name: value for name, value in content.items() if name not in (*secrets, "type")}
    return config, [name for name in secrets if getattr(entry, name) is not None]


def _apply_destinations(run: Application) -> None:
    stored = {destination.name: destination for destination in list_destinations(run.session)}
    for name, entry in run.file.destinations.items():
        config, secret_names = destination_config(entry)
        destination = stored.get(name)
        old: dict[str, str | None] = {}
        if destination is None:
            identifier = next_id(run.session, "destinations")
            destination = Destination(id=identifier, name=name, type=entry.type, config=config, secrets={})
            run.session.add(destination)
        else:
            old = {"type": destination.type, **{field: shown(value) for field, value in destination.config.items()}}
        new: dict[str, str | None] = {"type": entry.type, **{field: shown(value) for field, value in config.items()}}
        kept: dict[str, str] = {}
        for secret in secret_names:
            value = run.secrets[("destinations", name, secret)]
            place = destination_place(destination.id, secret)
            present = destination.secrets.get(secret)
            mark = None if present is None else stored_secret(run, present, place, value)
            if present is not None and mark is None:
                kept[secret] = present
                continue
            kept[secret] = run.keyring.encrypt(value, place)
            if mark is not None:
                old[secret] = mark
            new[secret] = SECRET
        for secret in destination.secrets.keys() - kept.keys():
            old[secret] = SECRET
        if destination.config != config:
            destination.config = config
        if destination.secrets != kept:
            destination.secrets = kept
        _record(run, "destination", name, old, new)


def _record(run: Application, kind: Kind, name: str, old: dict[str, str | None], new: dict[str, str | None]) -> None:
    fields = tuple(one for one in differences(old, new) if one.new is not None or one.old is not None)
    run.plan.changes.append(Change(kind, name, action_of(not old, fields), fields))
