"""History of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import QueueBackfill, Reconciliation, ReconciliationTable
from cdc_runner.position import format_lsn
from cdc_runner.schema import TableId

Purpose = Literal["VERIFY", "REPAIR"]


def record(
    session: Session,
    pipeline_id: int,
    purpose: Purpose,
    *,
    outcome: str,
    lsn: int | None,
    seconds: float,
    tables: Sequence[Mapping[str, Any]],
) -> int:
    """Store a comparison with its tables (columns of `reconciliation_tables` by name) and return its id."""
    run = Reconciliation(pipeline_id=pipeline_id, purpose=purpose, outcome=outcome, lsn=lsn, seconds=seconds)
    session.add(run)
    session.flush()
    session.add_all(ReconciliationTable(reconciliation_id=run.id, **table) for table in tables)
    return run.id


def now(session: Session) -> datetime:
    """Return the config database's time."""
    found: datetime = session.scalars(select(func.clock_timestamp())).one()
    return found


def loaded_since(session: Session, pipeline_id: int, since: datetime) -> set[tuple[int | None, TableId]]:
    """Return the source tables of which a backfill was at work since a time, with the destination; None for all."""
    rows = session.execute(
        select(QueueBackfill.pipeline_destination_id, QueueBackfill.schema_name, QueueBackfill.table_name).where(
            QueueBackfill.pipeline_id == pipeline_id,
            or_(QueueBackfill.status == "EXECUTING", QueueBackfill.finished_at >= since),
        )
    )
    return {(destination, TableId(schema, name)) for destination, schema, name in rows}


def last_results(session: Session, pipeline_id: int, count: int = 20) -> list[dict[str, Any]]:
    """Return the newest comparisons of a pipeline, newest first."""
    runs = session.scalars(
        select(Reconciliation)
        .where(Reconciliation.pipeline_id == pipeline_id)
        .order_by(Reconciliation.finished_at.desc(), Reconciliation.id.desc())
        .limit(count)
    ).all()
    return [
        {
            "id": run.id,
            "purpose": run.purpose,
            "outcome": run.outcome,
            "position": None if run.lsn is None else format_lsn(run.lsn),
            "seconds": run.seconds,
            "finished_at": run.finished_at.isoformat(),
        }
        for run in runs
    ]
