"""Runs all checks for a pipeline, or for what is configured without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psycopg2
from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.leases import current_holder
from cdc_runner.catalog.models import StreamOffset
from cdc_runner.catalog.pipelines import load_pipeline
from cdc_runner.catalog.repositories import get_pipeline, list_pipelines
from cdc_runner.doctor.dead_letter import check_dead_letter_queue
from cdc_runner.doctor.destination import check_destination, system_identity
from cdc_runner.doctor.finding import Findings, Report
from cdc_runner.doctor.shaped import target_schemas
from cdc_runner.doctor.snowflake import check_snowflake
from cdc_runner.doctor.source import check_server, guarded, open_source
from cdc_runner.doctor.source_tables import check_tables
from cdc_runner.errors import RosettaError
from cdc_runner.pipeline.source import SourceSession, SourceTables, resolve_syncs
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.spec import DestinationSpec, PipelineSpec


@dataclass(frozen=True, slots=True)
class Subject:
    """A pipeline as the config database has it: what is to be examined, read in one short transaction.

    Attributes:
        name: of the pipeline.
        spec: its specification; None when it cannot be read, for the reason in `problem`.
        streamed: whether it has streamed before, so that its slot must exist.
        held: whether a runner of ours runs it now.
    """

    name: str
    spec: PipelineSpec | None
    problem: RosettaError | None
    streamed: bool
    held: bool


def read_subjects(session: Session, name: str | None = None, keyring: Keyring | None = None) -> list[Subject]:
    """Return a pipeline, or all of them, for `examine_subject`.

    Raises:
        RosettaError: NOT_FOUND.
    """
    pipelines = list_pipelines(session) if name is None else [get_pipeline(session, name)]
    streamed = set(session.scalars(select(StreamOffset.pipeline_id).where(StreamOffset.applied_lsn > 0)))
    subjects: list[Subject] = []
    for pipeline in pipelines:
        spec: PipelineSpec | None = None
        problem: RosettaError | None = None
        try:
            spec = load_pipeline(session, pipeline.id, keyring)
        except RosettaError as error:
            problem = error
        held = current_holder(session, pipeline.id) is not None
        subjects.append(Subject(pipeline.name, spec, problem, pipeline.id in streamed, held))
    return subjects


def examine_subject(subject: Subject) -> Report:
    """Check everything that a pipeline needs, within seconds and without changing anything on its servers."""
    if subject.spec is None:
        found = Findings(f"pipeline {subject.name}")
        if subject.problem is not None:
            found.failure("configuration", subject.problem)
        return Report(subject.name, tuple(found.items))
    return examine(subject.spec, streamed=subject.streamed, held=subject.held)


def examine(spec: PipelineSpec, *, streamed: bool = False, held: bool = False) -> Report:
    """Check everything that a specification needs.

    Args:
        spec: the pipeline.
        streamed: whether it has streamed before, so that its slot must exist.
        held: whether a runner of ours runs it now.
    """
    found = Findings(f"source {spec.source.name}")
    tables = SourceTables({}, {})
    identity: str | None = None
    connection = open_source(spec.source, found)
    if connection is not None:
        try:
            check_server(connection, spec.source, found, streamed=streamed, held=held)
            identity = system_identity(connection)
            usable = {schema.table: schema for schema in check_tables(connection, spec.source, found)}
            tables = _as_the_engine_sees_them(spec, usable, found)
        except (psycopg2.Error, RosettaError) as error:
            guarded(found, "checks", error)
        finally:
            connection.close()
    items = list(found.items)
    for destination in spec.destinations:
        part = Findings(f"destination {destination.name}")
        _examine_destination(spec, destination, tables, identity, part)
        items.extend(part.items)
    queue = Findings("dead-letter queue")
    check_dead_letter_queue(queue)
    items.extend(queue.items)
    return Report(spec.name, tuple(items))


def _as_the_engine_sees_them(
    spec: PipelineSpec, checked: Mapping[TableId, TableSchema], found: Findings
) -> SourceTables:
    """Return the tables as a start would take them, and note what it would leave out beyond what was noted."""
    session = SourceSession(spec.source, "doctor")
    try:
        tables = session.tables(spec.source.tables)
    finally:
        session.close()
    for table, reason in tables.excluded.items():
        if table in checked:
            solution = "Change the table, or leave it out."
            if spec.source.capture_engine == "debezium" and "Debezium refuses" in reason:
                solution = "Set `capture_engine: pgoutput` for the source, or leave the table out."
            found.error("left_out", f"left out: {reason}", solution, f"table {table}")
    return tables


def _examine_destination(
    spec: PipelineSpec, destination: DestinationSpec, tables: SourceTables, identity: str | None, found: Findings
) -> None:
    try:
        # Without the source's tables only the connection and the server can be checked.
        syncs = resolve_syncs(destination, tables) if tables.usable else []
    except RosettaError as error:
        found.failure("tables", error)
        syncs = []
    if destination.type == "snowflake":
        check_snowflake(destination, spec.identity, syncs, tables.usable, found)
    else:
        expected = target_schemas(spec, destination, syncs, tables.usable, found)
        check_destination(destination, spec.source.address, identity, syncs, expected, found)
