"""How the sources stand, as wal_monitor and schema_monitor saw them last."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class SourceState:
    """A source.

    Attributes:
        state: ACTIVE (somebody reads its slot), IDLE, WARNING or ERROR; UNKNOWN before the first look.
        retained_wal_bytes: kept for its slot.
        age_seconds: since the last look.
        problem: why it is not well.
    """

    source: str
    state: str
    retained_wal_bytes: int | None
    age_seconds: float | None
    problem: str | None


_STATES = text(
    """
    SELECT s.name AS source,
           CASE WHEN w.id IS NULL THEN 'UNKNOWN' WHEN w.status <> 'OK' THEN w.status
                WHEN w.slot_active THEN 'ACTIVE' ELSE 'IDLE' END AS state,
           w.retained_wal_bytes, extract(epoch FROM now() - w.updated_at)::float8 AS age_seconds,
           coalesce(w.error_message, w.publication_problem) AS problem
    FROM sources s LEFT JOIN wal_monitor w ON w.source_id = s.id
    ORDER BY coalesce(w.status, 'OK') = 'OK', s.name LIMIT 100
    """
)


def read_source_states(session: Session) -> tuple[SourceState, ...]:
    """Return the sources, those in trouble first."""
    return tuple(SourceState(**row) for row in session.execute(_STATES).mappings())
