"""What a configuration file does not name: left alone and listed, or removed when that is asked for."""

from __future__ import annotations

from sqlalchemy import select

from cdc_runner.catalog.application import Application
from cdc_runner.catalog.models import Destination, Pipeline, PipelineDestination, Source
from cdc_runner.catalog.pipelines import refuse_when_running
from cdc_runner.catalog.plan import Action, Change, Kind
from cdc_runner.catalog.repositories import list_destinations, list_pipelines, list_sources


def prune_absent(run: Application) -> None:
    """Remove, or list, what the file does not name; slots and publications are the caller's business.

    Raises:
        RosettaError: CONFLICT, it is in use.
    """
    action: Action = "remove" if run.prune else "left alone"
    for pipeline in list_pipelines(run.session):
        entry = run.file.pipelines.get(pipeline.name)
        if entry is None:
            if run.prune:
                refuse_when_running(run.session, pipeline)
            _note(run, "pipeline", pipeline.name, action, pipeline)
            continue
        named = {one.destination for one in entry.destinations}
        for row in pipeline.destinations:
            if row.destination.name not in named:
                if run.prune:
                    refuse_when_running(run.session, pipeline)
                _note(run, "pipeline destination", f"{pipeline.name}/{row.destination.name}", action, row)
    run.session.flush()
    kept = set(run.session.scalars(select(Pipeline.source_id)))
    for source in list_sources(run.session):
        if source.name not in run.file.sources:
            # A source that a pipeline of the file uses stays, although the file does not describe it.
            _note(run, "source", source.name, action if source.id not in kept else "left alone", source)
    used = set(run.session.scalars(select(PipelineDestination.destination_id)))
    for destination in list_destinations(run.session):
        if destination.name not in run.file.destinations:
            part = action if destination.id not in used else "left alone"
            _note(run, "destination", destination.name, part, destination)


def _note(
    run: Application,
    kind: Kind,
    name: str,
    action: Action,
    row: Source | Destination | Pipeline | PipelineDestination,
) -> None:
    run.plan.changes.append(Change(kind, name, action))
    if action == "remove":
        run.session.delete(row)
