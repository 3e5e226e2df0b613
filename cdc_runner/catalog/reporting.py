"""What a pipeline process writes back: state, positions, schemas, errors; see `table_reports` for tables.

Each function is meant for one short transaction of its own. Error texts must be clean already (no row values, no
secrets): they come from RosettaErrors.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import case, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog import notifications, schema_diff
from cdc_runner.catalog.models import (
    CaptureOffset,
    Pipeline,
    PipelineDestination,
    PipelineMetadata,
    SchemaEvolution,
    Source,
    StreamOffset,
    TableMetadata,
)
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import Column, TableId, TableSchema

State = Literal["RUNNING", "PAUSED", "ERROR"]

_MAX_ERROR_CHARACTERS = 2000


def report_state(session: Session, pipeline_id: int, status: State, error: str | None = None) -> None:
    """Store what a pipeline does at present.

    The last error stays until the next start by a person, so that it can be read after a restart by itself.

    Raises:
        RosettaError: NOT_FOUND, the pipeline was removed.
    """
    _require_pipeline(session, pipeline_id)
    values: dict[str, Any] = {"status": status}
    if error is not None:
        values |= {"last_error": error[:_MAX_ERROR_CHARACTERS], "last_error_at": func.now()}
    changes = dict(values)
    if status == "RUNNING":
        values["last_start_at"] = func.now()
        changes["last_start_at"] = case(
            (PipelineMetadata.status == "RUNNING", PipelineMetadata.last_start_at), else_=func.now()
        )
    session.execute(
        insert(PipelineMetadata)
        .values(pipeline_id=pipeline_id, **values)
        .on_conflict_do_update(index_elements=[PipelineMetadata.pipeline_id], set_=changes)
    )


_IDENTITY_KEY = "source_identity"


def source_identity(session: Session, pipeline_id: int) -> str | None:
    """Return to which server and timeline the positions of a pipeline belong; None before its first start."""
    return session.scalar(
        select(CaptureOffset.offset_value).where(
            CaptureOffset.pipeline_id == pipeline_id, CaptureOffset.offset_key == _IDENTITY_KEY
        )
    )


def report_source_identity(session: Session, pipeline_id: int, identity: str) -> None:
    """Store to which server and timeline the positions of a pipeline belong.

    Raises:
        RosettaError: NOT_FOUND, the pipeline was removed.
    """
    _require_pipeline(session, pipeline_id)
    session.execute(
        insert(CaptureOffset)
        .values(pipeline_id=pipeline_id, offset_key=_IDENTITY_KEY, offset_value=identity)
        .on_conflict_do_update(
            index_elements=[CaptureOffset.pipeline_id, CaptureOffset.offset_key],
            set_={"offset_value": identity, "updated_at": func.now()},
        )
    )


def report_position(
    session: Session,
    *,
    pipeline_id: int,
    pipeline_destination_id: int,
    captured_lsn: int,
    applied_lsn: int,
    acknowledged_lsn: int,
    lag_bytes: int | None = None,
    lag_ms: int | None = None,
    commit_time: datetime | None = None,
    batch_ms: int | None = None,
) -> None:
    """Store the positions of one destination.

    `commit_time` is that of the last applied transaction at the source, `batch_ms` the mean time of the batches since
    the report before; without one what was stored stays.
    """
    values: dict[str, Any] = {
        "captured_lsn": captured_lsn,
        "applied_lsn": applied_lsn,
        "acknowledged_lsn": acknowledged_lsn,
        # Clocks of two machines differ, and a position may pass the WAL end that was read before it.
        "lag_bytes": None if lag_bytes is None else max(0, lag_bytes),
        "lag_ms": None if lag_ms is None else max(0, lag_ms),
    }
    if commit_time is not None:
        values["commit_at"] = commit_time
    if batch_ms is not None:
        values["batch_ms"] = batch_ms
    session.execute(
        insert(StreamOffset)
        .values(pipeline_destination_id=pipeline_destination_id, pipeline_id=pipeline_id, **values)
        .on_conflict_do_update(index_elements=[StreamOffset.pipeline_destination_id], set_=values)
    )


def report_destination_error(session: Session, pipeline_destination_id: int, error: RosettaError) -> None:
    """Store the error that a destination stands in."""
    session.execute(
        update(PipelineDestination)
        .where(PipelineDestination.id == pipeline_destination_id)
        .values(
            is_error=True,
            error_kind=error.kind.value,
            error_message=error.message[:_MAX_ERROR_CHARACTERS],
            last_error_at=func.now(),
        )
    )


def clear_destination_error(session: Session, pipeline_destination_id: int) -> None:
    """Say that a destination works; the text and the time of its last error stay."""
    session.execute(
        update(PipelineDestination)
        .where(PipelineDestination.id == pipeline_destination_id, PipelineDestination.is_error)
        .values(is_error=False)
    )


def known_tables(session: Session, source_id: int) -> set[TableId]:
    """Return the tables of a source whose schema is stored."""
    rows = session.execute(
        select(TableMetadata.schema_name, TableMetadata.table_name).where(TableMetadata.source_id == source_id)
    )
    return {TableId(schema, name) for schema, name in rows}


def record_schema_change(
    session: Session,
    source_id: int,
    table: TableId,
    changes_type: str | None,
    old_schema: TableSchema | None,
    new_schema: TableSchema | None,
    lsn: int | None = None,
) -> int:
    """Store a change of a table's schema and return its version, counted from 1 for each table.

    The stream and the sensor `schema_monitor` both see most changes; a version that is stored already is not stored
    again, it only gets its position. Who reads the source's present schema may see several changes as one, before the
    stream brings them: what that version has passed already is not stored, and the version is returned.

    Args:
        session: of the caller.
        source_id: the source.
        table: the table, by its new name when it was renamed.
        changes_type: what changed; None to have it found out: `NEW COLUMN, CHANGES TYPE` and the like.
        old_schema: before; None for a new table.
        new_schema: after; None for a dropped table.
        lsn: position in the change stream, when known.
    """
    old = None if old_schema is None else _as_stored(old_schema)
    new = None if new_schema is None else _as_stored(new_schema)
    passed = None if old is None or new is None else _passed_by(session, source_id, table, old, new)
    if passed is not None:
        return passed
    metadata_id = _store_present(session, source_id, table, new, changed=old is not None)
    latest = session.scalars(
        select(SchemaEvolution)
        .where(SchemaEvolution.table_metadata_list_id == metadata_id)
        .order_by(SchemaEvolution.version_schema.desc())
        .limit(1)
    ).one_or_none()
    if latest is not None and latest.schema_table_new == new:
        latest.lsn = latest.lsn or lsn
        return latest.version_schema
    if old is None and latest is not None:
        old = latest.schema_table_new
    found = schema_diff.differences(old, new)
    kinds = changes_type or schema_diff.change_names(found)
    version = (latest.version_schema if latest else 0) + 1
    row = SchemaEvolution(
        table_metadata_list_id=metadata_id, version_schema=version, changes_type=kinds, schema_table_old=old,
        schema_table_new=new, lsn=lsn,
    )  # fmt: skip
    session.add(row)
    session.flush()
    if old is not None or version > 1:
        _tell_schema_change(session, source_id, table, found, version)
    return version


def _passed_by(
    session: Session, source_id: int, table: TableId, old: dict[str, Any], new: dict[str, Any]
) -> int | None:
    """Return the latest version when it is beyond a step from one schema to another, else None.

    The table's row is locked, as by `_store_present`.
    """
    metadata_id = session.scalar(
        select(TableMetadata.id)
        .filter_by(source_id=source_id, schema_name=table.schema, table_name=table.name)
        .with_for_update()
    )
    stored = session.scalars(
        select(SchemaEvolution)
        .where(SchemaEvolution.table_metadata_list_id == metadata_id)
        .order_by(SchemaEvolution.version_schema)
    ).all()
    if not stored or stored[-1].schema_table_new in (None, old, new):
        return None
    known = [one.schema_table_new for one in stored if one.schema_table_new is not None]
    return stored[-1].version_schema if schema_diff.is_passed(old, new, known) else None


def _store_present(
    session: Session, source_id: int, table: TableId, schema: dict[str, Any] | None, *, changed: bool
) -> int:
    """Store a table's present schema, None for a dropped one, and return the id of its row.

    The row is locked until the transaction ends, so that the next version is counted by one writer at a time.
    """
    values: dict[str, Any] = {"is_changes_schema": changed, "is_dropped": schema is None}
    if schema is not None:
        values["schema_table"] = schema
    return session.scalars(
        insert(TableMetadata)
        .values(source_id=source_id, schema_name=table.schema, table_name=table.name, **values)
        .on_conflict_do_update(constraint="table_metadata_list_table_key", set_=values)
        .returning(TableMetadata.id)
    ).one()


def _tell_schema_change(
    session: Session, source_id: int, table: TableId, found: list[schema_diff.Difference], version: int
) -> None:
    source = session.scalar(select(Source.name).where(Source.id == source_id)) or "?"
    shown = "; ".join(map(str, found[:20])) + (f"; and {len(found) - 20} more" if len(found) > 20 else "")
    notifications.record_event(
        session, f"schema_change:{source}/{table}/{version}", "WARNING", "schema_change",
        f"Version {version}: {shown}", title=f"Schema of {table} in {source} has changed", lasting=False,
    )  # fmt: skip


def _as_stored(schema: TableSchema) -> dict[str, Any]:
    """Return a schema as it will be read back, so that the two can be compared."""
    stored: dict[str, Any] = json.loads(json.dumps(schema_to_json(schema)))
    return stored


_STORED_OF_COLUMN = tuple(field.name for field in dataclasses.fields(Column) if field.name != "missing_value")
"""Plain values all: `asdict` would copy each, which a look at a thousand tables a minute notices."""


def schema_to_json(schema: TableSchema) -> dict[str, Any]:
    """Return a schema as JSON values, without the value that a default gave to older rows."""
    columns = [{name: getattr(column, name) for name in _STORED_OF_COLUMN} for column in schema.columns]
    return {
        "schema": schema.table.schema,
        "table": schema.table.name,
        "columns": columns,
        "key": list(schema.key),
        "primary_key": list(schema.primary_key),
        "replica_identity": schema.replica_identity.value,
        "partitioned": schema.partitioned,
    }


def _require_pipeline(session: Session, pipeline_id: int) -> None:
    found = session.scalar(select(Pipeline.id).where(Pipeline.id == pipeline_id))
    if found is None:
        raise RosettaError(ErrorKind.NOT_FOUND, f"pipeline {pipeline_id} was removed")


def applied_lsn(session: Session, pipeline_destination_id: int) -> int | None:
    """Return the last reported position of a destination, None when it never had one."""
    lsn = session.scalar(
        select(StreamOffset.applied_lsn).where(StreamOffset.pipeline_destination_id == pipeline_destination_id)
    )
    return lsn or None
