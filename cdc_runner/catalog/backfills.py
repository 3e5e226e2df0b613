"""The queue of backfills as rows of the config database: the contract between who asks and the pipeline that works.

who asks       `enqueue`, `cancel`, `listed`, `find`
the pipeline   `open_tasks` (highest priority first), `begin` (EXECUTING), `write_chunks`, `finish_chunk`, `finish`
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import BackfillChunk, Destination, Pipeline, PipelineDestination, QueueBackfill
from cdc_runner.position import format_lsn
from cdc_runner.schema import TableId

OPEN = ("PENDING", "EXECUTING")
JOINS = "joins the pipeline"
"""Who asks for the resync of a table that joins beside the stream."""
MODES = ("BACKFILL", "RESYNC", "RELOAD", "REBUILD")
"""Write what differs; also delete what the source does not have; empty and copy again; build aside and exchange."""


@dataclass(frozen=True, slots=True)
class Task:
    """A backfill to be done.

    Attributes:
        id: of its row.
        pipeline_destination_id: where the target is.
        source: the source's table.
        target: the target table.
        mode: one of `MODES`.
        filter_sql: condition on the source's rows, as `row_filter.sql` writes it; None for all rows.
        priority: higher comes first.
        status: PENDING or EXECUTING.
        snapshot_lsn: the last snapshot that was read under, or what a mode keeps there.
        since_xid: rows that were changed by this transaction or later ones are read once more at the end; None before
            the first snapshot.
        passes: how often that was done.
        rows: read so far.
    """

    id: int
    pipeline_destination_id: int
    source: TableId
    target: TableId
    mode: str
    filter_sql: str | None
    priority: int
    status: str
    snapshot_lsn: int | None
    since_xid: int | None
    passes: int
    rows: int = 0


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A chunk of a backfill: a range of pages of a relation, as `destinations.base.LoadChunk`."""

    id: int
    number: int
    relation: TableId
    filenode: int | None
    from_page: int
    to_page: int | None
    done: bool
    rows: int


# -- who asks --------------------------------------------------------------------------------------------------------


def enqueue(
    session: Session,
    pipeline_id: int,
    source_id: int,
    pipeline_destination_id: int,
    source: TableId,
    target: TableId,
    *,
    mode: str,
    filter_sql: str | None,
    priority: int,
    requested_by: str | None,
) -> int | None:
    """Queue a backfill and return its id; None when one of this target is open already."""
    found: int | None = session.scalar(
        insert(QueueBackfill)
        .values(
            pipeline_id=pipeline_id,
            source_id=source_id,
            pipeline_destination_id=pipeline_destination_id,
            schema_name=source.schema,
            table_name=source.name,
            target_schema=target.schema,
            target_table=target.name,
            mode=mode,
            filter_sql=filter_sql,
            priority=priority,
            requested_by=requested_by,
        )
        .on_conflict_do_nothing()
        .returning(QueueBackfill.id)
    )
    return found


def cancel(session: Session, pipeline_id: int, ids: Collection[int]) -> list[int]:
    """Cancel open backfills; the pipeline stops work on them within seconds. Return those that were open."""
    return list(
        session.scalars(
            update(QueueBackfill)
            .where(
                QueueBackfill.pipeline_id == pipeline_id,
                QueueBackfill.id.in_(list(ids)),
                QueueBackfill.status.in_(OPEN),
            )
            .values(status="CANCELLED", finished_at=func.clock_timestamp(), note=None)
            .returning(QueueBackfill.id)
        )
    )


def listed(
    session: Session, *, pipeline_id: int | None = None, open_only: bool = False, limit: int = 200
) -> list[dict[str, Any]]:
    """Return backfills for people, the open ones first, then the newest."""
    query = (
        select(QueueBackfill, Pipeline.name, Destination.name)
        .join(Pipeline, Pipeline.id == QueueBackfill.pipeline_id)
        .outerjoin(PipelineDestination, PipelineDestination.id == QueueBackfill.pipeline_destination_id)
        .outerjoin(Destination, Destination.id == PipelineDestination.destination_id)
    )
    if pipeline_id is not None:
        query = query.where(QueueBackfill.pipeline_id == pipeline_id)
    if open_only:
        query = query.where(QueueBackfill.status.in_(OPEN))
    order = (QueueBackfill.status.in_(OPEN).desc(), QueueBackfill.id.desc())
    return [_shown(*row) for row in session.execute(query.order_by(*order).limit(limit))]


def find(session: Session, backfill_id: int) -> dict[str, Any] | None:
    """Return one backfill for people."""
    query = (
        select(QueueBackfill, Pipeline.name, Destination.name)
        .join(Pipeline, Pipeline.id == QueueBackfill.pipeline_id)
        .outerjoin(PipelineDestination, PipelineDestination.id == QueueBackfill.pipeline_destination_id)
        .outerjoin(Destination, Destination.id == PipelineDestination.destination_id)
        .where(QueueBackfill.id == backfill_id)
    )
    row = session.execute(query).one_or_none()
    return None if row is None else _shown(*row)


def _shown(row: QueueBackfill, pipeline: str, destination: str | None) -> dict[str, Any]:
    is_open = row.status in OPEN
    return {
        "id": row.id,
        "pipeline": pipeline,
        "destination": destination,
        "table": f"{row.schema_name}.{row.table_name}",
        "target": f"{row.target_schema}.{row.target_table}" if row.target_table else None,
        "mode": row.mode,
        "filter": row.filter_sql,
        "status": row.status,
        "priority": row.priority,
        "rows": row.count_record,
        "total": row.total_record,
        "percent": _percent(row),
        "rows_per_second": round(row.count_record / row.seconds) if row.seconds > 0 else None,
        "eta_seconds": _eta_seconds(row) if is_open else None,
        "changed": row.changed_record,
        "deleted": row.deleted_record,
        "dead_letters": row.refused_record,
        "chunks": row.chunks,
        "chunks_done": row.chunks_done,
        "resumed": row.resume_attempts,
        "snapshot": format_lsn(row.snapshot_lsn) if row.snapshot_lsn else None,
        "kept": row.kept_table,
        "note": row.note,
        "error": row.error_message,
        "requested_by": row.requested_by,
        "created_at": row.created_at.astimezone(UTC).isoformat(),
        "started_at": row.started_at.astimezone(UTC).isoformat() if row.started_at else None,
        "finished_at": row.finished_at.astimezone(UTC).isoformat() if row.finished_at else None,
        "seconds": round(row.seconds, 1),
    }


def _percent(row: QueueBackfill) -> float | None:
    if row.status == "COMPLETED":
        return 100.0
    # The total is an estimate of the source's planner.
    return min(99.9, round(100 * row.count_record / row.total_record, 1)) if row.total_record else None


def _eta_seconds(row: QueueBackfill) -> int | None:
    left = row.total_record - row.count_record
    if row.seconds <= 0 or row.count_record <= 0 or left <= 0:
        return None
    return round(left * row.seconds / row.count_record)


def unannounced(session: Session, limit: int = 50) -> list[tuple[int, str, TableId]]:
    """Return backfills at work, or ended within a day, that no run of Dagster follows: id, pipeline, source table."""
    rows = session.execute(
        select(QueueBackfill.id, Pipeline.name, QueueBackfill.schema_name, QueueBackfill.table_name)
        .join(Pipeline, Pipeline.id == QueueBackfill.pipeline_id)
        .where(
            QueueBackfill.announced_at.is_(None),
            # Those that wait get theirs when their turn comes: a run each for hundreds of tables would be in the way.
            QueueBackfill.started_at.is_not(None),
            or_(
                QueueBackfill.status == "EXECUTING",
                QueueBackfill.finished_at > func.now() - text("interval '1 day'"),
            ),
        )
        .order_by(QueueBackfill.id)
        .limit(limit)
    )
    return [(row[0], row[1], TableId(row[2], row[3])) for row in rows]


def announce(session: Session, ids: Collection[int]) -> None:
    """Note that runs of Dagster follow these backfills."""
    session.execute(
        update(QueueBackfill).where(QueueBackfill.id.in_(list(ids))).values(announced_at=func.clock_timestamp())
    )


def open_counts(session: Session) -> dict[str, int]:
    """Return how many backfills of all pipelines are open, by status."""
    rows = session.execute(
        select(QueueBackfill.status, func.count()).where(QueueBackfill.status.in_(OPEN)).group_by(QueueBackfill.status)
    )
    return {status: count for status, count in rows}


# -- the pipeline process --------------------------------------------------------------------------------------------


def open_tasks(session: Session, pipeline_id: int) -> list[Task]:
    """Return the open backfills of a pipeline, the next one first."""
    rows = session.scalars(
        select(QueueBackfill)
        .where(QueueBackfill.pipeline_id == pipeline_id, QueueBackfill.status.in_(OPEN))
        # Of the same priority one that was begun comes first.
        .order_by(QueueBackfill.priority.desc(), (QueueBackfill.status == "EXECUTING").desc(), QueueBackfill.id)
    )
    return [
        Task(
            row.id,
            row.pipeline_destination_id,
            TableId(row.schema_name, row.table_name),
            TableId(row.target_schema, row.target_table),
            row.mode,
            row.filter_sql,
            row.priority,
            row.status,
            row.snapshot_lsn,
            row.since_xid,
            row.passes,
            row.count_record,
        )
        for row in rows
        if row.pipeline_destination_id is not None and row.target_schema is not None and row.target_table is not None
    ]


def begin(session: Session, task: Task, *, resumed: bool) -> bool:
    """Note that work on a backfill begins; False when it is open no more. A process new to it has `resumed` it."""
    row = session.get(QueueBackfill, task.id, with_for_update=True, populate_existing=True)
    if row is None or row.status not in OPEN:
        return False
    if row.status == "EXECUTING" and resumed:
        row.resume_attempts += 1
    row.status = "EXECUTING"
    row.started_at = row.started_at or datetime.now(UTC)
    row.note = None
    return True


def change(session: Session, task_id: int, **values: Any) -> bool:
    """Set columns of a backfill that is open; False when it is not."""
    found = session.execute(
        update(QueueBackfill)
        .where(QueueBackfill.id == task_id, QueueBackfill.status.in_(OPEN))
        .values(**values)
        .returning(QueueBackfill.id)
    )
    return found.first() is not None


def finish(session: Session, task_id: int, error: str | None = None) -> bool:
    """End a backfill: COMPLETED, or FAILED with the reason; False when it was ended before."""
    values: dict[str, Any] = {"finished_at": func.clock_timestamp(), "note": None}
    if error is None:
        values |= {"status": "COMPLETED", "total_record": QueueBackfill.count_record}
    else:
        values |= {"status": "FAILED", "is_error": True, "error_message": error}
    return change(session, task_id, **values)


def chunks_of(session: Session, task_id: int) -> list[ChunkRow]:
    """Return the chunks of a backfill in order; none before it is planned."""
    rows = session.scalars(
        select(BackfillChunk).where(BackfillChunk.backfill_id == task_id).order_by(BackfillChunk.chunk_number)
    )
    return [
        ChunkRow(
            row.id,
            row.chunk_number,
            TableId(row.source_schema, row.source_table),
            row.filenode,
            int(row.range_from or 0),
            None if row.range_to is None else int(row.range_to),
            row.state == "COMPLETED",
            row.row_count,
        )
        for row in rows
    ]


def write_chunks(session: Session, task: Task, chunks: Sequence[ChunkRow], total_rows: int) -> bool:
    """Replace the plan of a backfill; what was counted before is void. False when it is open no more."""
    counts = {"chunks": len(chunks), "chunks_done": 0, "count_record": 0, "total_record": total_rows}
    if not change(session, task.id, since_xid=None, passes=0, **counts):
        return False
    session.execute(delete(BackfillChunk).where(BackfillChunk.backfill_id == task.id))
    session.add_all(
        BackfillChunk(
            pipeline_destination_id=task.pipeline_destination_id,
            backfill_id=task.id,
            source_schema=one.relation.schema,
            source_table=one.relation.name,
            target_schema=task.target.schema,
            target_table=task.target.name,
            chunk_number=one.number,
            range_kind="ctid",
            range_from=str(one.from_page),
            range_to=None if one.to_page is None else str(one.to_page),
            snapshot_lsn=0,
            filenode=one.filenode,
        )
        for one in chunks
    )
    return True


def finish_chunk(
    session: Session, task_id: int, chunk_id: int, *, lsn: int, rows: int, changed: int, refused: int
) -> None:
    """Record that a chunk is in its target, and count its rows."""
    session.execute(
        update(BackfillChunk)
        .where(BackfillChunk.id == chunk_id)
        .values(state="COMPLETED", row_count=rows, snapshot_lsn=lsn, finished_at=func.clock_timestamp())
    )
    session.execute(
        update(QueueBackfill)
        .where(QueueBackfill.id == task_id, QueueBackfill.status.in_(OPEN))
        .values(
            count_record=QueueBackfill.count_record + rows,
            changed_record=QueueBackfill.changed_record + changed,
            refused_record=QueueBackfill.refused_record + refused,
            chunks_done=QueueBackfill.chunks_done + 1,
            snapshot_lsn=lsn,
        )
    )


def add_seconds(session: Session, task_id: int, seconds: float) -> None:
    """Add time that was spent at work on a backfill, whether it is open still or not."""
    session.execute(
        update(QueueBackfill).where(QueueBackfill.id == task_id).values(seconds=QueueBackfill.seconds + seconds)
    )


def count_late(session: Session, task_id: int, *, changed: int, refused: int) -> None:
    """Count rows that were written although their chunk was done."""
    session.execute(
        update(QueueBackfill)
        .where(QueueBackfill.id == task_id)
        .values(
            changed_record=QueueBackfill.changed_record + changed,
            refused_record=QueueBackfill.refused_record + refused,
        )
    )


def forget_chunks(session: Session, task_id: int) -> None:
    """Remove the plan of a backfill that has ended; its row keeps the counts."""
    session.execute(delete(BackfillChunk).where(BackfillChunk.backfill_id == task_id))
