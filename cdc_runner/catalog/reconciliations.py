"""History of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import Reconciliation, ReconciliationTable
from cdc_runner.position import format_lsn

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
