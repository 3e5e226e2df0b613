"""The two ends of a fence, as rows of the config database.

    who compares                                 the pipeline process
    fence = request(session, pipeline, keys)     one = open_request(session, pipeline)
                                                 set_fence(session, one.id, lsn, snapshot)
    look(session, fence)                         answer(session, one.id, destination, …)
    release(session, fence)                      is_held(session, one.id)   False: let the snapshots go

The config database's clock decides when a fence that nobody keeps up has expired.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import PipelineDestination, ReconcileFence, ReconcileFenceDestination, ReconcileFenceKeys
from cdc_runner.schema import TableId

KEPT_SECONDS = 60.0
"""How long a fence stays after its last sign of life; snapshots keep both servers from cleaning up."""

Keys = Mapping[int, Mapping[TableId, Sequence[Sequence[str]]]]
"""Key texts by pipeline destination and target table."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a destination reported at the fence: the snapshot to import there, or why there is none."""

    snapshot: str | None
    upserted_rows: int = 0
    deleted_rows: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class FenceState:
    """A fence as the config database has it.

    Attributes:
        id: its id.
        state: `REQUESTED`, `SET`, `RELEASED` or `FAILED`.
        lsn: the position, once it is set.
        source_snapshot: what the source's sessions import.
        error: why it failed.
        answers: by pipeline destination; those that have not reached the fence are absent.
    """

    id: int
    state: str
    lsn: int | None
    source_snapshot: str | None
    error: str | None
    answers: Mapping[int, Answer] = field(default_factory=dict)


def _later() -> ColumnElement[datetime]:
    return func.clock_timestamp() + text(f"make_interval(secs => {KEPT_SECONDS})")


def request(session: Session, pipeline_id: int, keys: Keys | None = None) -> int:
    """Ask the running pipeline for a fence, with keys of rows to be fetched again there; return its id."""
    fence = ReconcileFence(pipeline_id=pipeline_id, state="REQUESTED", expires_at=_later())
    session.add(fence)
    session.flush()
    for destination, tables in (keys or {}).items():
        for table, listed in tables.items():
            session.add(
                ReconcileFenceKeys(
                    fence_id=fence.id,
                    pipeline_destination_id=destination,
                    target_schema=table.schema,
                    target_table=table.name,
                    keys=[list(key) for key in listed],
                )
            )
    return fence.id


def look(session: Session, fence_id: int) -> FenceState:
    """Return a fence and keep it alive."""
    session.execute(
        update(ReconcileFence)
        .where(ReconcileFence.id == fence_id, ReconcileFence.state.in_(("REQUESTED", "SET")))
        .values(expires_at=_later())
    )
    fence = session.get(ReconcileFence, fence_id, populate_existing=True)
    if fence is None:
        return FenceState(fence_id, "FAILED", None, None, "the pipeline was removed")
    answers = {
        row.pipeline_destination_id: Answer(row.snapshot, row.upserted_rows, row.deleted_rows, row.error_message)
        for row in session.scalars(
            select(ReconcileFenceDestination).where(ReconcileFenceDestination.fence_id == fence_id)
        )
    }
    return FenceState(fence.id, fence.state, fence.lsn, fence.source_snapshot, fence.error_message, answers)


def errors_of(session: Session, pipeline_destinations: Collection[int]) -> dict[int, str]:
    """Return the errors in which destinations stand, by pipeline destination; those that work are absent."""
    rows = session.execute(
        select(PipelineDestination.id, PipelineDestination.error_message).where(
            PipelineDestination.id.in_(pipeline_destinations), PipelineDestination.is_error
        )
    )
    return {identifier: message for identifier, message in rows if message}


def release(session: Session, fence_id: int) -> None:
    """Say that the snapshots are imported, or are not wanted any more."""
    _finish(session, fence_id, "RELEASED", None)


def _finish(session: Session, fence_id: int, state: str, error: str | None) -> None:
    session.execute(
        update(ReconcileFence)
        .where(ReconcileFence.id == fence_id, ReconcileFence.state.in_(("REQUESTED", "SET")))
        .values(state=state, error_message=error)
    )
    session.execute(delete(ReconcileFenceKeys).where(ReconcileFenceKeys.fence_id == fence_id))


# -- the pipeline's end ----------------------------------------------------------------------------------------------


def open_request(session: Session, pipeline_id: int) -> int | None:
    """Return the oldest fence that is asked for and has not expired, None when there is none."""
    return session.scalar(
        select(ReconcileFence.id)
        .where(
            ReconcileFence.pipeline_id == pipeline_id,
            ReconcileFence.state == "REQUESTED",
            ReconcileFence.expires_at > func.clock_timestamp(),
        )
        .order_by(ReconcileFence.id)
        .limit(1)
    )


def fail_left(session: Session, pipeline_id: int) -> None:
    """End the fences that an earlier process of this pipeline had set: their snapshots went with it."""
    left = select(ReconcileFence.id).where(ReconcileFence.pipeline_id == pipeline_id, ReconcileFence.state == "SET")
    for fence_id in session.scalars(left).all():
        fail(session, fence_id, "the pipeline was started anew")


def keys_of(session: Session, fence_id: int) -> dict[int, dict[TableId, list[tuple[str, ...]]]]:
    """Return the keys of rows to be fetched again at the fence."""
    keys: dict[int, dict[TableId, list[tuple[str, ...]]]] = {}
    for row in session.scalars(select(ReconcileFenceKeys).where(ReconcileFenceKeys.fence_id == fence_id)):
        tables = keys.setdefault(row.pipeline_destination_id, {})
        tables.setdefault(TableId(row.target_schema, row.target_table), []).extend(tuple(key) for key in row.keys)
    return keys


def set_fence(session: Session, fence_id: int, lsn: int, snapshot: str) -> None:
    """Record where the fence stands."""
    session.execute(
        update(ReconcileFence)
        .where(ReconcileFence.id == fence_id, ReconcileFence.state == "REQUESTED")
        .values(state="SET", lsn=lsn, source_snapshot=snapshot)
    )


def answer(session: Session, fence_id: int, pipeline_destination_id: int, found: Answer) -> None:
    """Record what a destination found at the fence."""
    session.execute(
        insert(ReconcileFenceDestination)
        .values(
            fence_id=fence_id,
            pipeline_destination_id=pipeline_destination_id,
            snapshot=found.snapshot,
            upserted_rows=found.upserted_rows,
            deleted_rows=found.deleted_rows,
            error_message=found.error,
        )
        .on_conflict_do_nothing()
    )


def fail(session: Session, fence_id: int, reason: str) -> None:
    """Record that there is no fence, and why."""
    _finish(session, fence_id, "FAILED", reason)


def is_held(session: Session, fence_id: int) -> bool:
    """Tell whether somebody still wants the snapshots of the fence."""
    held = select(ReconcileFence.id).where(
        ReconcileFence.id == fence_id,
        ReconcileFence.state.in_(("REQUESTED", "SET")),
        ReconcileFence.expires_at > func.clock_timestamp(),
    )
    return session.scalar(held) is not None
