"""The ladder that bounds the WAL which a source keeps for us: warn, alert, pause backfills, drop the slot.

The last step is taken only where the operator allows it, in two ticks: first the pipeline is paused, then, when nobody
reads the slot any more, a recovery plan is recorded and the slot dropped. Which step is right is a pure function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import Pipeline, SlotRecoveryPlan, WalMonitor
from cdc_runner.catalog.notifications import record_event, resolve_event
from cdc_runner.catalog.pipelines import set_status
from cdc_runner.catalog.settings import get_setting
from cdc_runner.catalog.wal_ladder import STEPS
from cdc_runner.errors import RosettaError
from rosetta_dagster.monitoring.slot import SlotReading
from rosetta_dagster.monitoring.wal import WatchResult

_MEGABYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """WAL kept for a slot, in MB, from which each step is taken, and whether the last one may be."""

    warn: int
    alert: int
    pause_backfills: int
    drop: int
    drop_allowed: bool


def read_limits(session: Session) -> Limits:
    """Return the limits of the settings, each at least the one before."""
    warn, alert, pause, drop = (
        int(get_setting(session, f"wal_{name}_megabytes"))
        for name in ("warning", "error", "pause_backfills", "drop_slot")
    )
    pause = max(pause, alert)
    return Limits(warn, alert, pause, max(drop, pause), bool(get_setting(session, "wal_drop_slot_allowed")))


def step_for(reading: SlotReading, before: str, limits: Limits) -> str:
    """Return the step that a reading calls for.

    A slot that Rosetta dropped stays so until there is one again. One that the server is about to invalidate pauses
    backfills whatever its size.
    """
    if not reading.exists:
        return "SLOT_DROPPED" if before == "SLOT_DROPPED" else "NONE"
    kept = (reading.retained_bytes or 0) // _MEGABYTE
    if kept >= limits.drop and limits.drop_allowed:
        return "DROP_SLOT"
    if kept >= limits.pause_backfills or reading.wal_status == "unreserved":
        return "PAUSE_BACKFILLS"
    if kept >= limits.alert:
        return "ALERT"
    return "WARN" if kept >= limits.warn else "NONE"


@dataclass(frozen=True, slots=True)
class SlotToDrop:
    """A source whose slot is to be dropped now, its pipeline being paused and the slot idle."""

    result: WatchResult
    reason: str


def climb(session: Session, results: Sequence[WatchResult], limits: Limits) -> list[SlotToDrop]:
    """Store the step of each source, tell each step, pause pipelines that must make room; return the slots to drop."""
    to_drop: list[SlotToDrop] = []
    for result in results:
        if isinstance(result.reading, RosettaError):
            continue
        row = session.scalars(select(WalMonitor).where(WalMonitor.source_id == result.watched.source_id)).one_or_none()
        if row is None:
            continue
        step = step_for(result.reading, row.ladder_step, limits)
        if step != row.ladder_step:
            _change(session, row, result, step)
        if step == "DROP_SLOT":
            reason = _reason(result.reading, limits)
            if _pause(session, result.watched.source_id, reason) or result.reading.active:
                # Its process needs a moment to let go of the slot.
                continue
            to_drop.append(SlotToDrop(result, reason))
    return to_drop


def _reason(reading: SlotReading, limits: Limits) -> str:
    kept = (reading.retained_bytes or 0) // _MEGABYTE
    return f"the source keeps {kept} MB of WAL for the slot, more than wal_drop_slot_megabytes ({limits.drop} MB)"


def _change(session: Session, row: WalMonitor, result: WatchResult, step: str) -> None:
    source, before = result.watched.source, row.ladder_step
    row.ladder_step, row.ladder_since = step, func.now()
    key = f"wal_ladder:{source}"
    if STEPS.index(step) >= STEPS.index("PAUSE_BACKFILLS"):
        told = {
            "PAUSE_BACKFILLS": "backfills of this source wait until less WAL is kept",
            "DROP_SLOT": "the pipeline is paused and the slot will be dropped to save the source",
            "SLOT_DROPPED": "the slot was dropped to save the source: refresh the pipeline",
        }[step]
        record_event(session, key, "ERROR", "wal_ladder", told, title=f"WAL of source {source}: {step}")
    else:
        resolve_event(session, key)
    if before == "SLOT_DROPPED":
        session.execute(
            update(SlotRecoveryPlan)
            .where(SlotRecoveryPlan.source_id == row.source_id, SlotRecoveryPlan.recovered_at.is_(None))
            .values(recovered_at=func.now())
        )


def _pause(session: Session, source_id: int, reason: str) -> bool:
    """Pause the pipeline of a source; tell whether it was to run until now."""
    pipeline = session.scalars(select(Pipeline).where(Pipeline.source_id == source_id)).one_or_none()
    if pipeline is None or pipeline.status == "PAUSE":
        return False
    set_status(session, pipeline.id, "PAUSE", reason=f"paused by Rosetta: {reason}")
    return True
