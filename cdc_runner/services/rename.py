"""Gives sources, destinations and pipelines other names. What is kept under their identities stays where it is.

One transaction of the config database: whoever looks sees the old name or the new one. A running pipeline goes on with
the old one in its log until its runner has started it anew, which the change of its generation asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from sqlalchemy.orm import Session

from cdc_runner.catalog.entry_fields import check_name
from cdc_runner.catalog.models import Destination, Pipeline, Source
from cdc_runner.catalog.notifications import record_event, rename_open_events
from cdc_runner.catalog.repositories import (
    get_destination,
    get_pipeline,
    get_source,
    list_destinations,
    list_pipelines,
    list_sources,
    lock_configuration,
)
from cdc_runner.errors import ErrorKind, RosettaError

Renamed = Literal["pipeline", "source", "destination"]

PIPELINE_EVENTS = ("pipeline_error", "runner", "tables", "publication")
"""Kinds of lasting events whose key is the name of a pipeline."""

STREAM_EVENTS = ("destination", "dead_letters", "dead_letter_queue", "destination_parked")
"""Kinds of those whose key begins with `pipeline/destination`."""

SOURCE_EVENTS = ("wal", "wal_ladder")
"""Kinds of those whose key is the name of a source."""

DESTINATION_EVENTS = ("credits",)
"""Kinds of those whose key begins with the name of a destination."""


def rename_pipeline(session: Session, name: str, new_name: str) -> dict[str, Any]:
    """Give a pipeline another name, whether it runs or not; nothing is loaded again.

    Returns:
        `kind`, `name`, `before`; `identity`, under which its destinations keep its positions.

    Raises:
        RosettaError: NOT_FOUND; CONFIG_INVALID for a name that none may have; CONFLICT when it is taken.
    """
    lock_configuration(session)
    pipeline = get_pipeline(session, name)
    _rename(session, "pipeline", pipeline, new_name, (one.name for one in list_pipelines(session)))
    rename_open_events(session, (*PIPELINE_EVENTS, *STREAM_EVENTS), name, new_name)
    return {**_told(session, "pipeline", name, new_name), "identity": pipeline.identity}


def rename_source(session: Session, name: str, new_name: str) -> dict[str, Any]:
    """Give a source another name; its slot and publication keep theirs.

    Returns:
        `kind`, `name`, `before`; `slot` and `publication`; `pipelines` that start anew with the name.

    Raises:
        RosettaError: NOT_FOUND; CONFIG_INVALID for a name that none may have; CONFLICT when it is taken.
    """
    lock_configuration(session)
    source = get_source(session, name)
    _rename(session, "source", source, new_name, (one.name for one in list_sources(session)))
    rename_open_events(session, SOURCE_EVENTS, name, new_name)
    return {
        **_told(session, "source", name, new_name),
        "slot": source.slot_name,
        "publication": source.publication_name,
        "pipelines": [one.name for one in source.pipelines],
    }


def rename_destination(session: Session, name: str, new_name: str) -> dict[str, Any]:
    """Give a destination another name; the pipelines that feed it go on where they are.

    Returns:
        `kind`, `name`, `before`; `identity`, a part of the names of channels at Snowflake; `pipelines` that start anew.

    Raises:
        RosettaError: NOT_FOUND; CONFIG_INVALID for a name that none may have; CONFLICT when it is taken.
    """
    lock_configuration(session)
    destination = get_destination(session, name)
    _rename(session, "destination", destination, new_name, (one.name for one in list_destinations(session)))
    rename_open_events(session, DESTINATION_EVENTS, name, new_name)
    pipelines = sorted(row.pipeline.name for row in destination.pipeline_destinations)
    for pipeline in pipelines:
        rename_open_events(session, STREAM_EVENTS, f"{pipeline}/{name}", f"{pipeline}/{new_name}")
    return {
        **_told(session, "destination", name, new_name),
        "identity": destination.identity,
        "pipelines": pipelines,
    }


def _rename(
    session: Session, kind: Renamed, row: Pipeline | Source | Destination, new_name: str, taken: Iterable[str]
) -> None:
    check_name(new_name)
    if row.name == new_name:
        raise RosettaError(ErrorKind.CONFLICT, f"{kind} {new_name} has this name already")
    if new_name in taken:
        raise RosettaError(ErrorKind.CONFLICT, f"a {kind} {new_name} exists already")
    row.name = new_name
    session.flush()


def _told(session: Session, kind: Renamed, name: str, new_name: str) -> dict[str, Any]:
    text = f"{kind} {name} is called {new_name} now"
    record_event(session, f"renamed:{kind}/{new_name}", "INFO", "renamed", text, lasting=False)
    return {"kind": kind, "name": new_name, "before": name}
