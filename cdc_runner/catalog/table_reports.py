"""What a pipeline process writes back about the tables of a destination: load state, rows, objects at the target.

Each function takes any number of tables in as many statements as one table would take: a destination of some hundred
tables reports all of them at each start, beside the stream that is to begin. Rows go in as one JSON text, so that the
statements are always the same ones, compiled once.

Error texts must be clean already (no row values, no secrets): they come from RosettaErrors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import (
    BigInteger,
    Table,
    Text,
    bindparam,
    case,
    column,
    func,
    literal_column,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import TableValuedAlias

from cdc_runner.catalog.models import DataFlowRecord, Pipeline, TableSync
from cdc_runner.schema import TableId
from cdc_runner.spec import ResolvedSync

LoadState = Literal["PENDING", "LOADING", "STREAMING", "EXCLUDED", "ERROR"]

_MAX_ERROR_CHARACTERS = 2000
_NAMES = ("source_schema", "source_table", "target_schema", "target_table")
# The tables and not their classes: with those, parameters would be taken for rows.
_SYNCS = cast(Table, TableSync.__table__)
_FLOWS = cast(Table, DataFlowRecord.__table__)
_OBJECTS = ("table_destination", "table_landing", "stream", "task")


@dataclass(frozen=True, slots=True)
class TableReport:
    """Where a table stands.

    Attributes:
        sync: source and target table.
        state: PENDING, LOADING, STREAMING, EXCLUDED or ERROR.
        reason: why, for EXCLUDED and ERROR.
        error: sets the table's error; None clears it.
        snapshot_lsn: consistent point of its load, when known.
        loaded_rows: rows that the load has copied so far, when known.
    """

    sync: ResolvedSync
    state: LoadState
    reason: str | None = None
    error: str | None = None
    snapshot_lsn: int | None = None
    loaded_rows: int | None = None


def report_table_states(
    session: Session, pipeline_destination_id: int, reports: Sequence[TableReport]
) -> dict[ResolvedSync, int]:
    """Store where tables stand; return the ids of their rows. Of several reports of a table the last one counts."""
    last = {report.sync: report for report in reports}
    if not last:
        return {}
    ids = _resolved_rows(session, pipeline_destination_id, dict.fromkeys(last, 0))
    rows = [
        {
            "id": ids[sync],
            "state": one.state,
            "reason": one.reason,
            "error": None if one.error is None else one.error[:_MAX_ERROR_CHARACTERS],
            "snapshot_lsn": one.snapshot_lsn,
            "loaded_rows": one.loaded_rows,
        }
        for sync, one in last.items()
    ]
    session.execute(_STATES, {"rows": json.dumps(rows)})
    return ids


def report_objects(
    session: Session, pipeline_destination_id: int, syncs: Iterable[ResolvedSync], makes: Iterable[str]
) -> None:
    """Store what there is of targets at their destination (see `Destination.makes`)."""
    known = dict.fromkeys(syncs, 0)
    if not known:
        return
    ids = _resolved_rows(session, pipeline_destination_id, known)
    there = set(makes)
    flags = {f"is_exists_{one}": one in there for one in _OBJECTS}
    session.execute(update(TableSync).where(TableSync.id.in_(ids.values())).values(**flags))


def report_flow(
    session: Session, pipeline_id: int, pipeline_destination_id: int, rows_by_sync: Mapping[ResolvedSync, int]
) -> None:
    """Add applied rows to the tables of a destination and to the flow of this minute."""
    counted = {sync: rows for sync, rows in rows_by_sync.items() if rows > 0}
    if not counted:
        return
    ids = _resolved_rows(session, pipeline_destination_id, counted)
    rows = [
        {"id": ids[sync], "name": str(sync.target), "rows": count}
        for sync, count in sorted(counted.items(), key=lambda pair: str(pair[0].target))
    ]
    ours = {"pipeline": pipeline_id, "destination": pipeline_destination_id}
    session.execute(_FLOW, {**ours, "rows": json.dumps(rows)})


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


def loaded_rows(session: Session, pipeline_destination_id: int, target: TableId) -> int:
    """Return how many rows the last load of a target has copied."""
    found = session.scalar(
        select(TableSync.loaded_rows).where(
            TableSync.pipeline_destination_id == pipeline_destination_id,
            TableSync.origin == "RESOLVED",
            TableSync.target_schema == target.schema,
            TableSync.target_table == target.name,
        )
    )
    return found or 0


def _resolved_rows(
    session: Session, pipeline_destination_id: int, rows_by_sync: Mapping[ResolvedSync, int]
) -> dict[ResolvedSync, int]:
    """Make the rows that are not there, add applied rows, and return the ids."""
    # In one order for every writer, or two transactions could wait for each other.
    ordered = sorted(rows_by_sync, key=lambda sync: (sync.source, sync.target))
    rows = [
        {
            "declared_id": sync.sync_id,
            "source_schema": sync.source.schema,
            "source_table": sync.source.name,
            "target_schema": sync.target.schema,
            "target_table": sync.target.name,
            "table_name": str(sync.source),
            "rows": rows_by_sync[sync],
        }
        for sync in ordered
    ]
    given: dict[str, Any] = {"destination": pipeline_destination_id, "rows": json.dumps(rows)}
    ids = {(row[1], row[2], row[3], row[4]): row[0] for row in session.execute(_RESOLVED, given)}
    return {sync: ids[(sync.source.schema, sync.source.name, sync.target.schema, sync.target.name)] for sync in ordered}


def _rows(**types: Any) -> TableValuedAlias:
    """Return the JSON text `rows` as a table, with an ordinal number for its order."""
    columns = [column(name, type_) for name, type_ in types.items()]
    given = bindparam("rows", type_=Text).cast(postgresql.JSONB)
    return func.jsonb_to_recordset(given).table_valued(*columns, name="given").render_derived(with_types=True)


def _resolved_statement() -> Any:
    given = _rows(
        declared_id=BigInteger, table_name=Text, **dict.fromkeys(_NAMES, Text), rows=BigInteger
    )  # fmt: skip
    values = {
        "pipeline_destination_id": bindparam("destination", type_=BigInteger),
        "origin": literal_column("'RESOLVED'"),
        "declared_id": given.c.declared_id,
        "table_name": given.c.table_name,
        "table_name_target": given.c.target_table,
        **{name: given.c[name] for name in _NAMES},
        "applied_rows": given.c.rows,
    }
    order = [given.c[name] for name in _NAMES]
    statement = postgresql.insert(_SYNCS).from_select(list(values), select(*values.values()).order_by(*order))
    return statement.on_conflict_do_update(
        index_elements=[_SYNCS.c.pipeline_destination_id, *(_SYNCS.c[name] for name in _NAMES)],
        index_where=text("origin = 'RESOLVED'"),
        set_={
            "applied_rows": _SYNCS.c.applied_rows + statement.excluded.applied_rows,
            "declared_id": statement.excluded.declared_id,
        },
    ).returning(_SYNCS.c.id, *(_SYNCS.c[name] for name in _NAMES))


def _states_statement() -> Any:
    given = _rows(id=BigInteger, state=Text, reason=Text, error=Text, snapshot_lsn=BigInteger, loaded_rows=BigInteger)
    return (
        update(_SYNCS)
        .where(_SYNCS.c.id == given.c.id)
        .values(
            load_state=given.c.state,
            load_state_reason=given.c.reason,
            load_state_at=case((_SYNCS.c.load_state == given.c.state, _SYNCS.c.load_state_at), else_=func.now()),
            is_error=given.c.error.is_not(None),
            error_message=given.c.error,
            last_error_at=case((given.c.error.is_(None), _SYNCS.c.last_error_at), else_=func.now()),
            snapshot_lsn=func.coalesce(given.c.snapshot_lsn, _SYNCS.c.snapshot_lsn),
            loaded_rows=func.coalesce(given.c.loaded_rows, _SYNCS.c.loaded_rows),
        )
    )


def _flow_statement() -> Any:
    given = _rows(id=BigInteger, name=Text, rows=BigInteger)
    pipeline = bindparam("pipeline", type_=BigInteger)
    values = {
        "pipeline_id": Pipeline.id,
        "pipeline_destination_id": bindparam("destination", type_=BigInteger),
        "source_id": Pipeline.source_id,
        "pipeline_destination_table_sync_id": given.c.id,
        "table_name": given.c.name,
        "record_count": given.c.rows,
    }
    found = select(*values.values()).join_from(given, Pipeline, true()).where(Pipeline.id == pipeline)
    statement = postgresql.insert(_FLOWS).from_select(list(values), found)
    return statement.on_conflict_do_update(
        constraint="data_flow_minute_key",
        set_={"record_count": _FLOWS.c.record_count + statement.excluded.record_count},
    )


_RESOLVED = _resolved_statement()
_STATES = _states_statement()
_FLOW = _flow_statement()
