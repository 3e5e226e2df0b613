"""Tables that rebuilds have replaced, and that are kept until a person says that the new one is right."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import QueueBackfill
from cdc_runner.schema import TableId


@dataclass(frozen=True, slots=True)
class Kept:
    """A table that was replaced.

    Attributes:
        id: of the rebuild.
        pipeline_destination_id: where it is.
        source: the source's table.
        target: the table that has taken its place.
        kept: its present name.
    """

    id: int
    pipeline_destination_id: int
    source: TableId
    target: TableId
    kept: str


def kept_tables(session: Session, pipeline_id: int) -> list[Kept]:
    """Return the tables of a pipeline that are kept, the oldest first."""
    rows = session.scalars(
        select(QueueBackfill)
        .where(QueueBackfill.pipeline_id == pipeline_id, QueueBackfill.kept_table.is_not(None))
        .order_by(QueueBackfill.id)
    )
    return [
        Kept(
            row.id,
            row.pipeline_destination_id,
            TableId(row.schema_name, row.table_name),
            TableId(row.target_schema or "", row.target_table or ""),
            row.kept_table or "",
        )
        for row in rows
        if row.pipeline_destination_id is not None
    ]


def note_kept(session: Session, rebuild_id: int, kept: str) -> None:
    """Note where the table is kept that a rebuild has replaced, however the rebuild has ended."""
    session.execute(update(QueueBackfill).where(QueueBackfill.id == rebuild_id).values(kept_table=kept))


def forget_kept(session: Session, rebuild_id: int) -> None:
    """Note that the table that a rebuild replaced is not kept any more."""
    session.execute(update(QueueBackfill).where(QueueBackfill.id == rebuild_id).values(kept_table=None))
