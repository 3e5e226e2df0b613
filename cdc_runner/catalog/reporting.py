"""What a pipeline process writes back: state, positions, flow, tables, schemas, errors.

Each function is meant for one short transaction of its own. Error texts must be clean already (no row values, no
secrets): they come from RosettaErrors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import case, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog import notifications, schema_diff
from cdc_runner.catalog.models import (
    DataFlowRecord,
    Pipeline,
    PipelineDestination,
    PipelineMetadata,
    SchemaEvolution,
    Source,
    StreamOffset,
    TableMetadata,
    TableSync,
)
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.spec import ResolvedSync

State = Literal["RUNNING", "PAUSED", "ERROR"]
LoadState = Literal["PENDING", "LOADING", "STREAMING", "EXCLUDED", "ERROR"]

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
) -> None:
    """Store the positions of one destination; `commit_time` is that of the last applied transaction at the source."""
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
    session.execute(
        insert(StreamOffset)
        .values(pipeline_destination_id=pipeline_destination_id, pipeline_id=pipeline_id, **values)
        .on_conflict_do_update(index_elements=[StreamOffset.pipeline_destination_id], set_=values)
    )


def report_flow(
    session: Session, pipeline_id: int, pipeline_destination_id: int, rows_by_sync: Mapping[ResolvedSync, int]
) -> None:
    """Add applied rows to the tables of a destination and to the flow of this minute."""
    counted = {sync: rows for sync, rows in rows_by_sync.items() if rows > 0}
    if not counted:
        return
    ids = _resolved_rows(session, pipeline_destination_id, counted)
    source_id = session.scalars(select(Pipeline.source_id).where(Pipeline.id == pipeline_id)).one()
    statement = insert(DataFlowRecord).values(
        [
            {
                "pipeline_id": pipeline_id,
                "pipeline_destination_id": pipeline_destination_id,
                "source_id": source_id,
                "pipeline_destination_table_sync_id": ids[sync],
                "table_name": str(sync.target),
                "record_count": rows,
            }
            for sync, rows in sorted(counted.items(), key=lambda pair: str(pair[0].target))
        ]
    )
    session.execute(
        statement.on_conflict_do_update(
            constraint="data_flow_minute_key",
            set_={"record_count": DataFlowRecord.record_count + statement.excluded.record_count},
        )
    )


def report_table_state(
    session: Session,
    pipeline_destination_id: int,
    sync: ResolvedSync,
    state: LoadState,
    *,
    reason: str | None = None,
    error: str | None = None,
    snapshot_lsn: int | None = None,
    loaded_rows: int | None = None,
) -> int:
    """Store the load state of a table and return the id of its row.

    Args:
        session: of the caller.
        pipeline_destination_id: the destination of the pipeline.
        sync: source and target table.
        state: PENDING, LOADING, STREAMING, EXCLUDED or ERROR.
        reason: why, for EXCLUDED and ERROR.
        error: sets the table's error; None clears it.
        snapshot_lsn: consistent point of its load, when known.
        loaded_rows: rows that the load has copied so far, when known.
    """
    identifier = _resolved_rows(session, pipeline_destination_id, {sync: 0})[sync]
    values: dict[str, Any] = {
        "load_state": state,
        "load_state_reason": reason,
        "load_state_at": case((TableSync.load_state == state, TableSync.load_state_at), else_=func.now()),
        "is_error": error is not None,
        "error_message": None if error is None else error[:_MAX_ERROR_CHARACTERS],
    }
    if error is not None:
        values["last_error_at"] = func.now()
    if snapshot_lsn is not None:
        values["snapshot_lsn"] = snapshot_lsn
    if loaded_rows is not None:
        values["loaded_rows"] = loaded_rows
    session.execute(update(TableSync).where(TableSync.id == identifier).values(**values))
    return identifier


def report_objects(session: Session, pipeline_destination_id: int, sync: ResolvedSync, makes: Iterable[str]) -> None:
    """Store what there is of a target at its destination (see `Destination.makes`)."""
    identifier = _resolved_rows(session, pipeline_destination_id, {sync: 0})[sync]
    there = set(makes)
    flags = {f"is_exists_{one}": one in there for one in ("table_destination", "table_landing", "stream", "task")}
    session.execute(update(TableSync).where(TableSync.id == identifier).values(**flags))


def forget_tables(session: Session, pipeline_destination_id: int, keep: Iterable[ResolvedSync]) -> None:
    """Remove the rows of tables that the destination does not take any more."""
    kept = {(sync.source.schema, sync.source.name, sync.target.schema, sync.target.name) for sync in keep}
    rows = session.scalars(
        select(TableSync).where(
            TableSync.pipeline_destination_id == pipeline_destination_id, TableSync.origin == "RESOLVED"
        )
    )
    for row in rows:
        if (row.source_schema, row.source_table, row.target_schema, row.target_table) not in kept:
            session.delete(row)


def _resolved_rows(
    session: Session, pipeline_destination_id: int, rows_by_sync: Mapping[ResolvedSync, int]
) -> dict[ResolvedSync, int]:
    # In one order for every writer, or two transactions could wait for each other.
    ordered = sorted(rows_by_sync, key=lambda sync: (sync.source, sync.target))
    statement = insert(TableSync).values(
        [
            {
                "pipeline_destination_id": pipeline_destination_id,
                "origin": "RESOLVED",
                "declared_id": sync.sync_id,
                "table_name": str(sync.source),
                "table_name_target": sync.target.name,
                "source_schema": sync.source.schema,
                "source_table": sync.source.name,
                "target_schema": sync.target.schema,
                "target_table": sync.target.name,
                "applied_rows": rows_by_sync[sync],
            }
            for sync in ordered
        ]
    )
    names = (TableSync.source_schema, TableSync.source_table, TableSync.target_schema, TableSync.target_table)
    returned = session.execute(
        statement.on_conflict_do_update(
            index_elements=[TableSync.pipeline_destination_id, *names],
            index_where=text("origin = 'RESOLVED'"),
            set_={
                "applied_rows": TableSync.applied_rows + statement.excluded.applied_rows,
                "declared_id": statement.excluded.declared_id,
            },
        ).returning(TableSync.id, *names)
    )
    ids = {(row[1], row[2], row[3], row[4]): row[0] for row in returned}
    return {sync: ids[(sync.source.schema, sync.source.name, sync.target.schema, sync.target.name)] for sync in ordered}


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
    again, it only gets its position.

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
    values: dict[str, Any] = {"is_changes_schema": old is not None, "is_dropped": new is None}
    if new is not None:
        values["schema_table"] = new
    metadata_id = session.scalars(
        insert(TableMetadata)
        .values(source_id=source_id, schema_name=table.schema, table_name=table.name, **values)
        .on_conflict_do_update(constraint="table_metadata_list_table_key", set_=values)
        .returning(TableMetadata.id)
    ).one()
    # The upsert above holds the row's lock, so that the next version is counted by one writer at a time.
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


def schema_to_json(schema: TableSchema) -> dict[str, Any]:
    """Return a schema as JSON values, without the value that a default gave to older rows."""
    columns = [
        {key: value for key, value in dataclasses.asdict(column).items() if key != "missing_value"}
        for column in schema.columns
    ]
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
