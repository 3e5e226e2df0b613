"""How far initial loads are, for those that are not done."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from cdc_runner.catalog.backfills import JOINS


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """The load of one destination of a pipeline.

    Attributes:
        tables: that are to be copied.
        tables_done: that are, and stream now.
        chunks: of the table that joins beside the stream just now; 0 where none does.
        chunks_done: that are copied.
        rows_loaded: of all its tables.
    """

    pipeline: str
    destination: str
    tables: int
    tables_done: int
    chunks: int
    chunks_done: int
    rows_loaded: int

    @property
    def percent(self) -> float:
        """How much is done: tables, and the part of the one that joins beside the stream."""
        done = self.tables_done + (self.chunks_done / self.chunks if self.chunks else 0)
        return round(100 * done / self.tables, 1) if self.tables else 0.0

    @property
    def line(self) -> str:
        """It in one line."""
        return f"{self.tables_done} of {self.tables} tables, {self.percent:g} %, {self.rows_loaded} rows"


_LOADS = text(
    """
    SELECT p.name AS pipeline, d.name AS destination, t.tables, t.tables_done, t.rows_loaded,
           coalesce(c.chunks, 0) AS chunks, coalesce(c.chunks_done, 0) AS chunks_done
    FROM (SELECT pipeline_destination_id, count(*) AS tables, sum(loaded_rows)::bigint AS rows_loaded,
                 count(*) FILTER (WHERE load_state = 'STREAMING') AS tables_done
          FROM pipelines_destination_table_sync WHERE origin = 'RESOLVED' AND load_state <> 'EXCLUDED'
          GROUP BY 1 HAVING bool_or(load_state IN ('PENDING', 'LOADING'))) t
    JOIN pipeline_destinations pd ON pd.id = t.pipeline_destination_id
    JOIN pipelines p ON p.id = pd.pipeline_id AND p.status <> 'PAUSE'
    JOIN destinations d ON d.id = pd.destination_id
    LEFT JOIN LATERAL (SELECT count(*) AS chunks, count(*) FILTER (WHERE state = 'COMPLETED') AS chunks_done
                       FROM backfill_chunks c JOIN queue_backfill_data q ON q.id = c.backfill_id
                       WHERE c.pipeline_destination_id = pd.id AND q.requested_by = :joins
                         AND q.status IN ('PENDING', 'EXECUTING')) c ON true
    ORDER BY 1, 2
    """
)


def read_loads(session: Session) -> list[LoadProgress]:
    """Return the loads that are under way, by pipeline and destination."""
    return [LoadProgress(**row) for row in session.execute(_LOADS, {"joins": JOINS}).mappings()]
