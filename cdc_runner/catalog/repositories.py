"""Look-ups of sources, destinations and pipelines by their natural keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from cdc_runner.catalog.models import Destination, Pipeline, PipelineDestination, Source
from cdc_runner.errors import ErrorKind, RosettaError

_Row = TypeVar("_Row", Source, Destination, Pipeline)

_APPLY_LOCK = 0x524F53455441


def lock_configuration(session: Session) -> None:
    """Let one transaction at a time change the configuration; the lock ends with the transaction."""
    session.execute(select(func.pg_advisory_xact_lock(_APPLY_LOCK)))


def next_id(session: Session, table: str) -> int:
    """Return a new id of a table: a credential is bound to its row's id, so the id is needed first."""
    return int(session.execute(select(func.nextval(func.pg_get_serial_sequence(table, "id")))).scalar_one())


def list_sources(session: Session) -> Sequence[Source]:
    """Return all sources with their pipelines, by name."""
    return session.scalars(select(Source).order_by(Source.name).options(selectinload(Source.pipelines))).all()


def list_destinations(session: Session) -> Sequence[Destination]:
    """Return all destinations, by name."""
    return session.scalars(
        select(Destination)
        .order_by(Destination.name)
        .options(selectinload(Destination.pipeline_destinations).selectinload(PipelineDestination.pipeline))
    ).all()


def list_pipelines(session: Session) -> Sequence[Pipeline]:
    """Return all pipelines with source, destinations and table syncs, by name."""
    destinations = selectinload(Pipeline.destinations)
    return session.scalars(
        select(Pipeline)
        .order_by(Pipeline.name)
        .options(
            selectinload(Pipeline.source),
            destinations.selectinload(PipelineDestination.destination),
            destinations.selectinload(PipelineDestination.table_syncs),
        )
    ).all()


def get_source(session: Session, name: str) -> Source:
    """Return a source by name.

    Raises:
        RosettaError: NOT_FOUND, with the known names.
    """
    return _one(list_sources(session), "source", name)


def get_destination(session: Session, name: str) -> Destination:
    """Return a destination by name.

    Raises:
        RosettaError: NOT_FOUND, with the known names.
    """
    return _one(list_destinations(session), "destination", name)


def get_pipeline(session: Session, name: str) -> Pipeline:
    """Return a pipeline by name.

    Raises:
        RosettaError: NOT_FOUND, with the known names.
    """
    return _one(list_pipelines(session), "pipeline", name)


def _one(rows: Sequence[_Row], kind: str, name: str) -> _Row:
    for row in rows:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in rows[:20]) or "none"
    renamed = next((row.name for row in rows if getattr(row, "identity", None) == name), None)
    hint = f"; the one that was created as {name} is called {renamed} now" if renamed else ""
    raise RosettaError(ErrorKind.NOT_FOUND, f"no {kind} {name[:80]!r}; known: {known}{hint}", {"kind": kind})
