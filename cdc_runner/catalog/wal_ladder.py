"""How far the ladder that protects a source has been climbed, for those who must heed it.

    NONE → WARN → ALERT → PAUSE_BACKFILLS → DROP_SLOT → SLOT_DROPPED

The sensor `wal_monitor` climbs it; a backfill asks before it starts a chunk.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import WalMonitor

STEPS = ("NONE", "WARN", "ALERT", "PAUSE_BACKFILLS", "DROP_SLOT", "SLOT_DROPPED")


def backfills_paused(session: Session, source_id: int) -> str | None:
    """Return why backfills of a source must wait now, None when they may go on."""
    row = session.execute(
        select(WalMonitor.ladder_step, WalMonitor.retained_wal_bytes).where(WalMonitor.source_id == source_id)
    ).one_or_none()
    if row is None or STEPS.index(row.ladder_step) < STEPS.index("PAUSE_BACKFILLS"):
        return None
    if row.ladder_step == "SLOT_DROPPED":
        return "the slot was dropped to save the source: refresh the pipeline"
    return f"the source keeps {(row.retained_wal_bytes or 0) // 1048576} MB of WAL for the slot"
