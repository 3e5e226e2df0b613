"""Presets: named lists of a source's tables, with patterns, to register, publish or copy them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.catalog.entry_fields import check_name
from cdc_runner.catalog.file_format import check_tables
from cdc_runner.catalog.models import Preset, Source
from cdc_runner.catalog.repositories import get_source, list_sources, lock_configuration
from cdc_runner.errors import ErrorKind, RosettaError


def list_presets(session: Session, source: str | None = None) -> list[dict[str, Any]]:
    """Return the presets of a source, or of all, by source and name.

    Raises:
        RosettaError: NOT_FOUND.
    """
    sources = [get_source(session, source)] if source else list_sources(session)
    return [
        {"source": one.name, "preset": row.name, "tables": list(row.table_names)}
        for one in sources
        for row in _presets(session, one)
    ]


def tables_of_preset(session: Session, source: str, preset: str) -> list[str]:
    """Return the tables and patterns of a source's preset.

    Raises:
        RosettaError: NOT_FOUND, with the known names.
    """
    return list(_preset(session, get_source(session, source), preset).table_names)


def create_preset(session: Session, source: str, name: str, tables: Sequence[str]) -> None:
    """Make a preset of a source.

    Raises:
        RosettaError: NOT_FOUND; CONFIG_INVALID for a name or a table that cannot be; CONFLICT when the name is taken.
    """
    lock_configuration(session)
    check_name(name)
    wanted, row = check_tables(tables), get_source(session, source)
    if any(one.name == name for one in _presets(session, row)):
        raise RosettaError(ErrorKind.CONFLICT, f"source {source} has a preset {name} already")
    session.add(Preset(source_id=row.id, name=name, table_names=wanted))
    session.flush()


def change_preset(
    session: Session, source: str, name: str, *, tables: Sequence[str] = (), new_name: str | None = None
) -> dict[str, list[Any]]:
    """Give a preset other tables, or another name; what is empty stays.

    Returns:
        The changed fields: name -> [before, after].

    Raises:
        RosettaError: NOT_FOUND; CONFIG_INVALID; CONFLICT when the new name is taken.
    """
    lock_configuration(session)
    owner = get_source(session, source)
    row = _preset(session, owner, name)
    if not tables and not new_name:
        raise RosettaError(ErrorKind.CONFIG_INVALID, "nothing to change was given")
    changed: dict[str, list[Any]] = {}
    if new_name and new_name != row.name:
        check_name(new_name)
        if any(one.name == new_name for one in _presets(session, owner)):
            raise RosettaError(ErrorKind.CONFLICT, f"source {source} has a preset {new_name} already")
        changed["name"] = [row.name, new_name]
        row.name = new_name
    wanted = check_tables(tables) if tables else row.table_names
    if wanted != row.table_names:
        changed["tables"] = [list(row.table_names), wanted]
        row.table_names = wanted
    session.flush()
    return changed


def remove_preset(session: Session, source: str, name: str) -> list[str]:
    """Remove a preset and return its tables; what was registered or published by it stays.

    Raises:
        RosettaError: NOT_FOUND.
    """
    lock_configuration(session)
    row = _preset(session, get_source(session, source), name)
    session.delete(row)
    session.flush()
    return list(row.table_names)


def _presets(session: Session, source: Source) -> Sequence[Preset]:
    return session.scalars(select(Preset).where(Preset.source_id == source.id).order_by(Preset.name)).all()


def _preset(session: Session, source: Source, name: str) -> Preset:
    known = {row.name: row for row in _presets(session, source)}
    if name not in known:
        names = ", ".join(known) or "none"
        raise RosettaError(ErrorKind.NOT_FOUND, f"source {source.name} has no preset {name[:80]!r}; known: {names}")
    return known[name]
