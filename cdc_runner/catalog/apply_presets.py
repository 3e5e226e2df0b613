"""The presets of a configuration file's sources, brought into the config database.

A source without a field `presets` leaves them alone.
"""

from __future__ import annotations

from sqlalchemy import select

from cdc_runner.catalog.application import Application, shown
from cdc_runner.catalog.models import Preset
from cdc_runner.catalog.plan import Change, action_of, differences
from cdc_runner.catalog.repositories import list_sources


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
