"""The presets of a configuration file: those of sources brought into the config database, those of pipelines looked up.

A source without a field `presets` leaves them alone. A pipeline that names one gets the tables that it has now.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.catalog.application import Application, shown
from cdc_runner.catalog.entry_fields import ConfigurationProblems
from cdc_runner.catalog.file_format import (
    ConfigurationFile,
    PipelineDestinationEntry,
    has_one_schema,
    target_problems,
)
from cdc_runner.catalog.models import Preset, Source
from cdc_runner.catalog.plan import Change, action_of, differences
from cdc_runner.catalog.repositories import list_sources
from cdc_runner.catalog.table_entry import PresetEntry, TableEntry


def apply_presets(run: Application) -> None:
    """Create and change the presets of the file's sources; list those that it does not name, or prune them."""
    for source in list_sources(run.session):
        entry = run.file.sources.get(source.name)
        if entry is None or entry.presets is None:
            continue
        stored = {row.name: row for row in run.session.scalars(select(Preset).where(Preset.source_id == source.id))}
        for name, tables in entry.presets.items():
            row = stored.get(name)
            old = {} if row is None else {"tables": shown(list(row.table_names))}
            fields = differences(old, {"tables": shown(list(tables))})
            run.plan.changes.append(Change("preset", f"{source.name}/{name}", action_of(row is None, fields), fields))
            if row is None:
                run.session.add(Preset(source_id=source.id, name=name, table_names=list(tables)))
            elif fields:
                row.table_names = list(tables)
        for name in sorted(stored.keys() - entry.presets.keys()):
            run.plan.changes.append(Change("preset", f"{source.name}/{name}", "remove" if run.prune else "left alone"))
            if run.prune:
                run.session.delete(stored[name])


def with_tables_of_presets(session: Session, file: ConfigurationFile, *, prune: bool) -> ConfigurationFile:
    """Return the file with the tables of every preset that a pipeline names in its place.

    A table that the same list names itself, under the same target, is the one that counts.

    Raises:
        ConfigurationProblems: an unknown preset, or tables that would write to one target.
    """
    problems: list[str] = []
    pipelines = {}
    for name, pipeline in file.pipelines.items():
        known = _known_presets(session, file, pipeline.source, prune=prune)
        destinations = [
            _expanded(file, one, known, f"pipelines.{name}.destinations[{number}]", problems)
            for number, one in enumerate(pipeline.destinations)
        ]
        pipelines[name] = pipeline.model_copy(update={"destinations": destinations})
    if problems:
        raise ConfigurationProblems(problems)
    return file.model_copy(update={"pipelines": pipelines})


def _known_presets(session: Session, file: ConfigurationFile, source: str, *, prune: bool) -> dict[str, list[str]]:
    """Return the presets that a source will have when the file is applied."""
    entry = file.sources.get(source)
    named = {} if entry is None or entry.presets is None else entry.presets
    if prune and entry is not None and entry.presets is not None:
        return dict(named)
    wanted = select(Preset).join(Source, Source.id == Preset.source_id).where(Source.name == source)
    return {**{row.name: list(row.table_names) for row in session.scalars(wanted)}, **named}


def _expanded(
    file: ConfigurationFile,
    entry: PipelineDestinationEntry,
    known: dict[str, list[str]],
    path: str,
    problems: list[str],
) -> PipelineDestinationEntry:
    if not any(isinstance(one, PresetEntry) for one in entry.tables or ()):
        return entry
    own = {(one.table, one.target) for one in entry.table_entries}
    found: dict[tuple[str, str | None], tuple[int, TableEntry]] = {}
    for index, one in enumerate(entry.tables or ()):
        if isinstance(one, TableEntry):
            found[one.table, one.target] = (index, one)
        elif one.preset not in known:
            names = ", ".join(sorted(known)) or "none"
            problems.append(f"{path}.tables[{index}].preset: the source has no preset {one.preset!r}; known: {names}")
        else:
            for table in known[one.preset]:
                if (table, None) in own:
                    continue
                before = found.get((table, None))
                tags = [*(before[1].tags if before else ()), *one.tags]
                found[table, None] = (before[0] if before else index, TableEntry(table=table, tags=tags))
    problems.extend(target_problems(path, found.values(), one_schema=has_one_schema(file, entry)))
    return entry.model_copy(update={"tables": [one for _, one in found.values()]})
