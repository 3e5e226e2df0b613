"""Runs all checks for a pipeline, or for what is configured without one."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg2
from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.capture.inspect import read_tables
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.leases import current_holder
from cdc_runner.catalog.models import StreamOffset
from cdc_runner.catalog.pipelines import load_pipeline
from cdc_runner.catalog.repositories import get_pipeline, list_pipelines
from cdc_runner.doctor.destination import check_destination, system_identity
from cdc_runner.doctor.finding import Findings, Report
from cdc_runner.doctor.source import check_server, guarded, open_source
from cdc_runner.doctor.source_tables import check_tables
from cdc_runner.errors import RosettaError
from cdc_runner.pipeline.source import SourceTables, resolve_syncs
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.spec import DestinationSpec, PipelineSpec


def examine_all(session: Session, keyring: Keyring | None = None) -> list[Report]:
    """Return a report for every pipeline."""
    return [examine_pipeline(session, pipeline.name, keyring) for pipeline in list_pipelines(session)]


def examine_pipeline(session: Session, name: str, keyring: Keyring | None = None) -> Report:
    """Check everything that a pipeline needs; changes nothing on its servers.

    Raises:
        RosettaError: NOT_FOUND. Every other failure is a finding.
    """
    pipeline = get_pipeline(session, name)
    found = Findings(f"pipeline {name}")
    try:
        spec = load_pipeline(session, pipeline.id, keyring)
    except RosettaError as error:
        found.failure("configuration", error)
        return Report(name, tuple(found.items))
    applied = select(StreamOffset.pipeline_id).where(StreamOffset.pipeline_id == spec.id, StreamOffset.applied_lsn > 0)
    streamed = session.scalars(applied).first() is not None
    held = current_holder(session, spec.id) is not None
    # The checks below take seconds and need no config database; its transaction is not kept open meanwhile.
    session.commit()
    return examine(spec, streamed=streamed, held=held)


def examine(spec: PipelineSpec, *, streamed: bool = False, held: bool = False) -> Report:
    """Check everything that a specification needs.

    Args:
        spec: the pipeline.
        streamed: whether it has streamed before, so that its slot must exist.
        held: whether a runner of ours runs it now.
    """
    found = Findings(f"source {spec.source.name}")
    usable: dict[TableId, TableSchema] = {}
    excluded: Mapping[TableId, str] = {}
    identity: str | None = None
    connection = open_source(spec.source, found)
    if connection is not None:
        try:
            check_server(connection, spec.source, found, streamed=streamed, held=held)
            identity = system_identity(connection)
            usable = {schema.table: schema for schema in check_tables(connection, spec.source, found)}
            matched = read_tables(connection, spec.source.tables)
            excluded = {schema.table: "" for schema in matched if schema.table not in usable}
        except (psycopg2.Error, RosettaError) as error:
            guarded(found, "checks", error)
        finally:
            connection.close()
    items = list(found.items)
    for destination in spec.destinations:
        part = Findings(f"destination {destination.name}")
        _examine_destination(spec, destination, SourceTables(usable, excluded), identity, part)
        items.extend(part.items)
    return Report(spec.name, tuple(items))


def _examine_destination(
    spec: PipelineSpec, destination: DestinationSpec, tables: SourceTables, identity: str | None, found: Findings
) -> None:
    try:
        # Without the source's tables only the connection and the server can be checked.
        syncs = resolve_syncs(destination, tables) if tables.usable else []
    except RosettaError as error:
        found.failure("tables", error)
        syncs = []
    check_destination(destination, spec.source.address, identity, syncs, tables.usable, found)
