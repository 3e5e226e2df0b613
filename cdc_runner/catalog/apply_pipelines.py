"""The pipelines' part of applying a configuration file."""

from __future__ import annotations

import json
import secrets

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog.application import Application
from cdc_runner.catalog.file_format import PipelineDestinationEntry, PipelineEntry
from cdc_runner.catalog.models import Pipeline, PipelineDestination, Source, TableSync, Tag
from cdc_runner.catalog.pipelines import mask_key_place, set_status, stored_shape
from cdc_runner.catalog.plan import Change, action_of, differences
from cdc_runner.catalog.repositories import list_destinations, list_pipelines, list_sources
from cdc_runner.catalog.settings import parse_pipeline_settings
from cdc_runner.catalog.shape_entry import shown_shape
from cdc_runner.catalog.table_entry import TableEntry
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import MaskKind, TableShape


def check_pipelines(run: Application) -> list[str]:
    """Return what is wrong with the pipelines of a file in view of the config database."""
    problems: list[str] = []
    stored = {pipeline.name: pipeline for pipeline in list_pipelines(run.session)}
    sources = {source.name for source in list_sources(run.session)} | set(run.file.sources)
    destinations = {one.name for one in list_destinations(run.session)} | set(run.file.destinations)
    users = {one.source.name: one for one in stored.values() if one.name not in run.file.pipelines}
    for name, entry in run.file.pipelines.items():
        path = f"pipelines.{name}"
        if entry.source not in sources:
            problems.append(f"{path}.source: no source {entry.source!r} in the file or the config database")
        if entry.source in users:
            problems.append(f"{path}.source: {_used_by(users[entry.source], name)}")
        if name in stored and stored[name].source.name != entry.source:
            problems.append(
                f"{path}.source: cannot change from {stored[name].source.name}, as positions belong to a source;"
                " remove the pipeline first"
            )
        present = _called_otherwise(run, stored.get(name), entry)
        for number, one in enumerate(entry.destinations):
            if one.destination in present:
                problems.append(
                    f"{path}.destinations[{number}].destination: {one.destination} of this pipeline was renamed:"
                    f" write its present name, {present[one.destination]}"
                )
            elif one.destination not in destinations:
                problems.append(
                    f"{path}.destinations[{number}].destination:"
                    f" no destination {one.destination!r} in the file or the config database"
                )
        for key, value in entry.settings.items():
            try:
                parse_pipeline_settings({key: value})
            except RosettaError as error:
                problems.append(f"{path}.settings.{key}: {error.message}")
    return problems


def _used_by(pipeline: Pipeline, name: str) -> str:
    if pipeline.identity == name:
        return f"pipeline {pipeline.name}, which was created as {name}, uses this source: write its present name"
    return (
        f"pipeline {pipeline.name} uses this source already;"
        " one pipeline feeds many destinations, so add the destination to that one"
    )


def _called_otherwise(run: Application, pipeline: Pipeline | None, entry: PipelineEntry) -> dict[str, str]:
    """Return the present names of a pipeline's destinations that the file calls by the names they were made with.

    As other destinations they would be fed beside the present ones, and two would write the same tables.
    """
    if pipeline is None:
        return {}
    wanted = {one.destination for one in entry.destinations}
    unknown = wanted - {one.name for one in list_destinations(run.session)}
    feeds = [row.destination for row in pipeline.destinations]
    return {one.identity: one.name for one in feeds if one.identity in unknown and one.name not in wanted}


def apply_pipelines(run: Application) -> None:
    """Create and change the pipelines of a file."""
    stored = {pipeline.name: pipeline for pipeline in list_pipelines(run.session)}
    sources = {source.name: source for source in list_sources(run.session)}
    for name, entry in run.file.pipelines.items():
        settings = parse_pipeline_settings(entry.settings)
        pipeline = stored.get(name)
        old: dict[str, str | None] = {}
        if pipeline is None:
            pipeline = Pipeline(name=name, source_id=sources[entry.source].id, settings=settings, status="PAUSE")
            run.session.add(pipeline)
            run.session.flush()
        else:
            old = {
                "source": pipeline.source.name,
                "status": pipeline.status,
                "settings": _shown_settings(pipeline.settings),
            }
        status = _wanted_status(entry, pipeline)
        new: dict[str, str | None] = {"source": entry.source, "status": status, "settings": _shown_settings(settings)}
        fields = differences(old, new)
        run.plan.changes.append(Change("pipeline", name, action_of(not old, fields), fields))
        if pipeline.settings != settings:
            pipeline.settings = settings
        run.session.flush()
        _apply_destinations(run, pipeline, entry)
        _ensure_mask_key(run, sources[entry.source], entry)
        if status != pipeline.status:
            set_status(run.session, pipeline.id, entry.status or "PAUSE")


def _ensure_mask_key(run: Application, source: Source, entry: PipelineEntry) -> None:
    """Give a source whose syncs hash values the key for it; with another key equal values would get other hashes."""
    shapes = [table.shape for one in entry.destinations for table in one.table_entries]
    if not any(mask.kind is MaskKind.HASH for shape in shapes for _, mask in shape.masks):
        return
    place = mask_key_place(source.id)
    if source.mask_key is None:
        source.mask_key = run.keyring.encrypt(secrets.token_hex(32), place)
    elif not run.keyring.is_current(source.mask_key):
        source.mask_key = run.keyring.encrypt(run.keyring.decrypt(source.mask_key, place), place)


def _shown_settings(settings: dict[str, str]) -> str:
    return json.dumps(settings, sort_keys=True)


def _wanted_status(entry: PipelineEntry, pipeline: Pipeline) -> str:
    # REFRESH is a start that copies again; a file that says START is content with it.
    if entry.status is None or (entry.status == "START" and pipeline.status == "REFRESH"):
        return pipeline.status
    return entry.status


def _apply_destinations(run: Application, pipeline: Pipeline, entry: PipelineEntry) -> None:
    destinations = {one.name: one for one in list_destinations(run.session)}
    stored = {
        row.destination.name: row
        for row in run.session.scalars(
            select(PipelineDestination).where(PipelineDestination.pipeline_id == pipeline.id)
        )
    }
    for one in entry.destinations:
        _refuse_custom_sql(pipeline.name, one, destinations[one.destination].type)
        row = stored.get(one.destination)
        created = row is None
        if row is None:
            row = PipelineDestination(pipeline_id=pipeline.id, destination_id=destinations[one.destination].id)
            run.session.add(row)
            run.session.flush()
        old = {} if created else {"tables": _shown_stored(row)}
        new: dict[str, str | None] = {"tables": _shown_wanted(one)}
        fields = differences(old, new)
        action = action_of(created, fields)
        run.plan.changes.append(Change("pipeline destination", f"{pipeline.name}/{one.destination}", action, fields))
        if fields:
            _apply_tables(run.session, row, one.table_entries)


def _refuse_custom_sql(pipeline: str, entry: PipelineDestinationEntry, kind: str) -> None:
    """Rows of custom SQL are computed in the transaction that stores them, which Snowflake's streaming has not.

    Raises:
        RosettaError: CONFIG_INVALID, naming the table.
    """
    shaped = [one.table for one in entry.table_entries if one.shape.custom_sql is not None]
    if shaped and kind != "postgres":
        raise RosettaError(
            ErrorKind.CONFIG_INVALID,
            f"pipeline {pipeline}, destination {entry.destination}, table {shaped[0]}: custom_sql is for PostgreSQL "
            "destinations: its rows are computed in the transaction that stores them",
        )


def _shown_wanted(entry: PipelineDestinationEntry) -> str:
    if entry.tables is None:
        return "every table of the source"
    entries = entry.table_entries
    return "; ".join(sorted(_shown_table(one.table, one.target, one.shape, sorted(one.tags)) for one in entries))


def _shown_stored(row: PipelineDestination) -> str:
    declared = [sync for sync in row.table_syncs if sync.origin == "DECLARED"]
    if not declared:
        return "every table of the source"
    return "; ".join(
        sorted(
            _shown_table(
                sync.table_name, sync.table_name_target, stored_shape(sync), sorted(tag.tag for tag in sync.tags)
            )
            for sync in declared
        )
    )


def _shown_table(table: str, target: str | None, shape: TableShape, tags: list[str]) -> str:
    shaped = shown_shape(shape)
    return (
        table
        + (f" as {target}" if target else "")
        + (f" ({shaped})" if shaped else "")
        + (f" [{', '.join(tags)}]" if tags else "")
    )


def _apply_tables(session: Session, row: PipelineDestination, entries: list[TableEntry]) -> None:
    wanted = {(entry.table, entry.target): entry for entry in entries}
    session.refresh(row, ["table_syncs"])
    stored = {(sync.table_name, sync.table_name_target): sync for sync in row.table_syncs if sync.origin == "DECLARED"}
    for key, sync in stored.items():
        if key not in wanted:
            session.delete(sync)
    session.flush()
    for key, entry in wanted.items():
        found = stored.get(key)
        if found is None:
            found = TableSync(pipeline_destination_id=row.id, table_name=entry.table, table_name_target=entry.target)
            session.add(found)
            session.flush()
        shape = entry.shape
        if stored_shape(found) != shape:
            found.filter_sql, found.custom_sql, found.shape = shape.filter, shape.custom_sql, shape.as_json()
        found.tags = _tags(session, entry.tags)
    session.flush()


def _tags(session: Session, names: list[str]) -> list[Tag]:
    unique = sorted(set(names))
    if unique:
        session.execute(insert(Tag).values([{"tag": name} for name in unique]).on_conflict_do_nothing())
    # Locked, so that a tag whose last other use goes meanwhile is not removed as unused.
    wanted = select(Tag).where(Tag.tag.in_(unique)).order_by(Tag.tag)
    return list(session.scalars(wanted.with_for_update(read=True, key_share=True)))
