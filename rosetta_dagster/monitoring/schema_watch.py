"""Compares the tables of every source with what the config database knows, and keeps each change as a version."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.capture.inspect import read_tables
from cdc_runner.catalog.models import Source, TableMetadata
from cdc_runner.catalog.reporting import record_schema_change, schema_to_json
from cdc_runner.catalog.schema_diff import change_names, differences
from cdc_runner.errors import RosettaError
from cdc_runner.schema import TableId, TableSchema
from rosetta_dagster.monitoring.sources import SourceToAsk

VERSIONS_AT_ONCE = 50
"""In one transaction: the stream writes the same tables' versions and must not wait long."""
STORE_SECONDS = 20.0
"""A version takes a few milliseconds to store; what a tick has no time for comes with the next one."""


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """A table that differs from what was stored; `new` is None for one that is gone."""

    source_id: int
    source: str
    table: TableId
    new: TableSchema | None
    kinds: str


def read_schemas(source: SourceToAsk) -> list[TableSchema]:
    """Return the tables of a source that match its patterns.

    Raises:
        RosettaError: unreachable, refused or too slow.
    """
    connection = source.connect("schema monitor")
    try:
        return read_tables(connection, list(source.patterns))
    finally:
        connection.close()


def changes_of(
    session: Session, sources: Sequence[SourceToAsk], answers: Sequence[list[TableSchema] | RosettaError]
) -> list[SchemaChange]:
    """Return what differs from the stored schemas. A source that did not answer has not changed."""
    found: list[SchemaChange] = []
    for source, answer in zip(sources, answers, strict=True):
        if isinstance(answer, RosettaError):
            continue
        rows = session.scalars(select(TableMetadata).where(TableMetadata.source_id == source.id))
        stored = {TableId(row.schema_name, row.table_name): row for row in rows}
        for schema in answer:
            row = stored.pop(schema.table, None)
            known = row.schema_table if row is not None and not row.is_dropped else None
            kinds = change_names(differences(known, schema_to_json(schema)))
            if kinds:
                found.append(SchemaChange(source.id, source.name, schema.table, schema, kinds))
        gone = [table for table, row in stored.items() if not row.is_dropped]
        found += [SchemaChange(source.id, source.name, table, None, "DROP TABLE") for table in sorted(gone)]
    return found


def store_changes(
    sessions: Callable[[], AbstractContextManager[Session]],
    changes: Sequence[SchemaChange],
    *,
    seconds: float = STORE_SECONDS,
) -> int:
    """Keep changes as versions, with a notification each, as far as time allows; return how many were kept."""
    until, kept = time.monotonic() + seconds, 0
    for first in range(0, len(changes), VERSIONS_AT_ONCE):
        with sessions() as session:
            kept += _store(session, changes[first : first + VERSIONS_AT_ONCE])
        if time.monotonic() > until:
            break
    return kept


def _store(session: Session, chosen: Sequence[SchemaChange]) -> int:
    # A source that was removed while it was asked would leave rows of nobody.
    known = set(session.scalars(select(Source.id).where(Source.id.in_({change.source_id for change in chosen}))))
    kept = [change for change in chosen if change.source_id in known]
    for change in kept:
        record_schema_change(session, change.source_id, change.table, None, None, change.new)
    return len(kept)


def schema_line(
    sources: Sequence[SourceToAsk], answers: Sequence[list[TableSchema] | RosettaError], changes: Sequence[SchemaChange]
) -> str:
    """Return one line for the list of ticks."""
    if not sources:
        return "no sources"
    tables = sum(len(answer) for answer in answers if not isinstance(answer, RosettaError))
    line = f"{len(sources)} sources, {tables} tables"
    real = [change for change in changes if change.kinds != "INITIAL_LOAD"]
    if real:
        first = real[0]
        more = f" and {len(real) - 1} more" if len(real) > 1 else ""
        line += f"; {first.kinds} in {first.table} of {first.source}{more}"
    elif changes:
        line += f"; {len(changes)} new tables"
    else:
        line += " unchanged"
    bad = [
        f"{source.name}: {answer}"
        for source, answer in zip(sources, answers, strict=True)
        if isinstance(answer, RosettaError)
    ]
    return f"{line}; not asked {bad[0]}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else "") if bad else line
