"""Creates one source, destination or pipeline, under the same rules as a configuration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from cdc_runner.catalog.apply_file import apply_configuration
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.file_format import check_configuration
from cdc_runner.catalog.plan import Plan
from cdc_runner.catalog.repositories import list_destinations, list_pipelines, list_sources, lock_configuration
from cdc_runner.catalog.secret_source import read_secrets
from cdc_runner.errors import ErrorKind, RosettaError


def create_source(session: Session, name: str, entry: Mapping[str, Any]) -> Plan:
    """Create a source from an entry as in a configuration file.

    Raises:
        RosettaError: CONFIG_INVALID, or CONFLICT when the name is taken.
    """
    lock_configuration(session)
    _refuse("source", name, [row.name for row in list_sources(session)])
    return _apply(session, {"sources": {name: dict(entry)}})


def create_destination(session: Session, name: str, entry: Mapping[str, Any]) -> Plan:
    """Create a destination from an entry as in a configuration file.

    Raises:
        RosettaError: CONFIG_INVALID, or CONFLICT when the name is taken.
    """
    lock_configuration(session)
    _refuse("destination", name, [row.name for row in list_destinations(session)])
    return _apply(session, {"destinations": {name: dict(entry)}})


def create_pipeline(
    session: Session, name: str, source: str, destinations: Sequence[str], *, start: bool = False
) -> Plan:
    """Create a pipeline of every table of a source.

    Raises:
        RosettaError: CONFIG_INVALID, or CONFLICT when the name is taken.
    """
    lock_configuration(session)
    _refuse("pipeline", name, [row.name for row in list_pipelines(session)])
    entry = {
        "source": source,
        "status": "START" if start else "PAUSE",
        "destinations": [{"destination": one} for one in destinations],
    }
    return _apply(session, {"pipelines": {name: entry}})


def _refuse(kind: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        raise RosettaError(ErrorKind.CONFLICT, f"a {kind} {name} exists already")


def _apply(session: Session, content: Mapping[str, Any]) -> Plan:
    file = check_configuration(content)
    return apply_configuration(session, file, read_secrets(file, Path.cwd()), Keyring.from_environment())
