"""Changes a pipeline that exists: destinations, tables, settings. Goes through the rules of a configuration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.catalog.apply_file import apply_configuration
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.file_format import check_configuration
from cdc_runner.catalog.models import Destination, Pipeline, PipelineDestination
from cdc_runner.catalog.pipelines import refuse_when_running, stored_shape
from cdc_runner.catalog.plan import Plan
from cdc_runner.catalog.repositories import get_pipeline, lock_configuration
from cdc_runner.catalog.shape_entry import shape_fields
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.services.pipeline import forget_at_destination
from cdc_runner.services.presets import tables_of_preset
from cdc_runner.services.removal import Removal


def pipeline_entry(pipeline: Pipeline) -> dict[str, Any]:
    """Return a pipeline as it would stand in a configuration file."""
    return {
        "source": pipeline.source.name,
        "settings": dict(pipeline.settings),
        "destinations": [_destination_entry(row) for row in pipeline.destinations],
    }


def _destination_entry(row: PipelineDestination) -> dict[str, Any]:
    tables = []
    for sync in row.table_syncs:
        if sync.origin != "DECLARED":
            continue
        # Whatever is left out here would be undone by the next change of the pipeline, a mask among it.
        fields = {
            "table": sync.table_name,
            "target": sync.table_name_target,
            "tags": [tag.tag for tag in sync.tags],
            **shape_fields(stored_shape(sync)),
        }
        tables.append({name: value for name, value in fields.items() if value})
    return {"destination": row.destination.name, **({"tables": tables} if tables else {})}


def _apply(session: Session, name: str, entry: Mapping[str, Any], keyring: Keyring | None) -> Plan:
    file = check_configuration({"pipelines": {name: dict(entry)}})
    return apply_configuration(session, file, {}, keyring or Keyring.from_environment())


def destination_of(session: Session, name: str, destination: str = "") -> str:
    """Return the name of a destination that a pipeline feeds: the given one, or without one the only one there is.

    Raises:
        RosettaError: NOT_FOUND; CONFIG_INVALID when none is given and there are several, with their names.
    """
    pipeline = get_pipeline(session, name)
    if destination:
        return _row(pipeline, destination).destination.name
    names = [row.destination.name for row in pipeline.destinations]
    return _only(names, f"pipeline {name} feeds {len(names)} destinations: say which")


def destination_to_add(session: Session, name: str, destination: str = "") -> str:
    """Return the given name, or without one that of the only destination that a pipeline does not feed yet.

    Raises:
        RosettaError: NOT_FOUND; CONFIG_INVALID when none is given and there are several, with their names, or none.
    """
    fed = {row.destination.name for row in get_pipeline(session, name).destinations}
    if destination:
        return destination
    names = [one for one in session.scalars(select(Destination.name).order_by(Destination.name)) if one not in fed]
    return _only(names, f"there are {len(names)} destinations that pipeline {name} does not feed: say which")


def _only(names: Sequence[str], otherwise: str) -> str:
    if len(names) != 1:
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"{otherwise}: {', '.join(names)}" if names else otherwise)
    return names[0]


def add_destination(session: Session, name: str, destination: str, keyring: Keyring | None = None) -> Plan:
    """Let a pipeline feed one more destination, every table of the source; it is loaded while the others go on.

    Raises:
        RosettaError: NOT_FOUND; CONFLICT when it feeds it already; CONFIG_INVALID.
    """
    lock_configuration(session)
    entry = pipeline_entry(get_pipeline(session, name))
    if any(one["destination"] == destination for one in entry["destinations"]):
        raise RosettaError(ErrorKind.CONFLICT, f"pipeline {name} feeds destination {destination} already")
    entry["destinations"].append({"destination": destination})
    return _apply(session, name, entry, keyring)


def remove_destination(session: Session, name: str, destination: str, keyring: Keyring | None = None) -> Removal:
    """Let a pipeline feed a destination no more; its tables stay, its positions go. The pipeline must be paused.

    Raises:
        RosettaError: NOT_FOUND; CONFLICT while it runs, or when it is the only destination.
    """
    lock_configuration(session)
    pipeline = get_pipeline(session, name)
    row = _row(pipeline, destination)
    if len(pipeline.destinations) == 1:
        raise RosettaError(ErrorKind.CONFLICT, f"{destination} is the only destination of {name}: remove the pipeline")
    refuse_when_running(session, pipeline)
    result = Removal(removed=[f"destination {destination} of pipeline {name}"])
    forget_at_destination(pipeline, row.destination, keyring, result)
    session.delete(row)
    session.flush()
    return result


def describe_detachment(session: Session, name: str, destination: str) -> str:
    """Return what taking a destination from a pipeline would do, or why it is refused.

    Raises:
        RosettaError: NOT_FOUND.
    """
    pipeline = get_pipeline(session, name)
    _row(pipeline, destination)
    if len(pipeline.destinations) == 1:
        return f"dry run: refused, {destination} is the only destination of {name}"
    if pipeline.status != "PAUSE":
        return f"dry run: refused while pipeline {name} is set to {pipeline.status}: pause it first"
    return f"dry run: pipeline {name} would feed {destination} no more; its tables stay, its positions are forgotten"


def add_table(
    session: Session, name: str, destination: str, table: Mapping[str, Any], keyring: Keyring | None = None
) -> Plan:
    """Declare a table, or a pattern, of a pipeline's destination. With the first one only declared ones are copied.

    Args:
        session: of the caller.
        name: of the pipeline.
        destination: one of its destinations.
        table: `table`, and if wanted `target`, `tags` and the fields of its shape, as in a configuration file. One with
            the same table and target takes the place of the one before.
        keyring: of the credentials.

    Raises:
        RosettaError: NOT_FOUND or CONFIG_INVALID.
    """
    return _add_tables(session, name, destination, [table], keyring)


def add_preset(
    session: Session,
    name: str,
    destination: str,
    preset: str,
    tags: Sequence[str] = (),
    keyring: Keyring | None = None,
) -> Plan:
    """Declare the tables and patterns of a preset of the pipeline's source, each with the same tags.

    Raises:
        RosettaError: NOT_FOUND or CONFIG_INVALID.
    """
    source = get_pipeline(session, name).source.name
    tables = [{"table": table, "tags": list(tags)} for table in tables_of_preset(session, source, preset)]
    return _add_tables(session, name, destination, tables, keyring)


def _add_tables(
    session: Session, name: str, destination: str, tables: Sequence[Mapping[str, Any]], keyring: Keyring | None
) -> Plan:
    lock_configuration(session)
    pipeline = get_pipeline(session, name)
    entry = pipeline_entry(pipeline)
    _row(pipeline, destination)
    one = next(one for one in entry["destinations"] if one["destination"] == destination)
    for table in tables:
        given = {field: value for field, value in table.items() if value not in (None, "", [], {})}
        same = (given.get("table"), given.get("target"))
        kept = [old for old in one.get("tables", []) if (old["table"], old.get("target")) != same]
        one["tables"] = [*kept, given]
    return _apply(session, name, entry, keyring)


def remove_table(
    session: Session, name: str, destination: str, table: str, target: str | None = None, keyring: Keyring | None = None
) -> Plan:
    """Take a declared table from a pipeline's destination; the target table stays as it is.

    Raises:
        RosettaError: NOT_FOUND, with the declared ones; CONFLICT for the last one, as none means every table.
    """
    lock_configuration(session)
    pipeline = get_pipeline(session, name)
    entry = pipeline_entry(pipeline)
    _row(pipeline, destination)
    one = next(one for one in entry["destinations"] if one["destination"] == destination)
    declared = one.get("tables", [])
    kept = [old for old in declared if (old["table"], old.get("target")) != (table, target)]
    if len(kept) == len(declared):
        known = ", ".join(old["table"] + (f" as {old['target']}" if old.get("target") else "") for old in declared)
        raise RosettaError(
            ErrorKind.NOT_FOUND,
            f"{table} is not declared for {destination}; declared: {known or 'none, so every table'}",
        )
    if not kept:
        raise RosettaError(
            ErrorKind.CONFLICT,
            f"{table} is the last declared table of {destination}, and without one every table is copied;"
            " remove the destination instead",
        )
    one["tables"] = kept
    return _apply(session, name, entry, keyring)


def change_settings(session: Session, name: str, settings: Mapping[str, str], keyring: Keyring | None = None) -> Plan:
    """Give a pipeline settings of its own, over the global ones; an empty value goes back to the global one.

    Raises:
        RosettaError: NOT_FOUND or CONFIG_INVALID.
    """
    lock_configuration(session)
    entry = pipeline_entry(get_pipeline(session, name))
    entry["settings"] = {key: value for key, value in {**entry["settings"], **settings}.items() if value != ""}
    return _apply(session, name, entry, keyring)


def _row(pipeline: Pipeline, destination: str) -> PipelineDestination:
    for row in pipeline.destinations:
        if row.destination.name == destination:
            return row
    known = ", ".join(row.destination.name for row in pipeline.destinations)
    raise RosettaError(
        ErrorKind.NOT_FOUND, f"pipeline {pipeline.name} has no destination {destination!r}; it has: {known}"
    )
