"""Leases: who runs a pipeline, and signs of life of runners. The config database's clock decides.

    lease = acquire(session, pipeline_id, holder, seconds)   # None: someone else holds it
    renew(session, lease, seconds)                           # False: lost, stop at once
    holds(session, lease)                                    # False: what is reported now would be another's
    release(session, lease)

Each acquisition raises the epoch; a destination refuses writers of an older one.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import Pipeline, RunnerHeartbeat, RunnerLease

RunnerState = Literal["STARTING", "RUNNING", "DRAINING", "STOPPED", "ERROR"]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run a pipeline until `expires_at`."""

    pipeline_id: int
    holder: str
    epoch: int
    expires_at: datetime


def _after(seconds: float):  # type: ignore[no-untyped-def]  # an SQL expression whose type only SQLAlchemy can name
    # clock_timestamp, not now(): a transaction that waited for a lock would otherwise judge with an old time.
    return func.clock_timestamp() + text("make_interval(secs => :lease_seconds)").bindparams(lease_seconds=seconds)


def acquire(
    session: Session, pipeline_id: int, holder: str, seconds: float, *, host: str | None = None, pid: int | None = None
) -> Lease | None:
    """Take the lease of a pipeline when it is free, expired, or held by the same holder.

    Atomic: of many that try at once one succeeds.

    Returns:
        The lease with a new epoch; None when another holds it or the pipeline does not exist.
    """
    if session.scalar(select(Pipeline.id).where(Pipeline.id == pipeline_id).with_for_update(key_share=True)) is None:
        return None
    values = {
        "holder": holder,
        "host": host or socket.gethostname(),
        "pid": pid or os.getpid(),
        "acquired_at": func.clock_timestamp(),
        "heartbeat_at": func.clock_timestamp(),
        "expires_at": _after(seconds),
    }
    statement = insert(RunnerLease).values(pipeline_id=pipeline_id, **values)
    row = session.execute(
        statement.on_conflict_do_update(
            index_elements=[RunnerLease.pipeline_id],
            set_={**values, "epoch": RunnerLease.epoch + 1},
            where=or_(
                RunnerLease.holder.is_(None),
                RunnerLease.holder == holder,
                RunnerLease.expires_at <= func.clock_timestamp(),
            ),
        ).returning(RunnerLease.epoch, RunnerLease.expires_at)
    ).one_or_none()
    return None if row is None else Lease(pipeline_id, holder, row.epoch, row.expires_at)


def renew(session: Session, lease: Lease, seconds: float) -> bool:
    """Extend a lease; False when it was taken over, released or removed: the holder must stop writing at once.

    An expired lease that nobody took may be renewed.
    """
    renewed = session.execute(
        update(RunnerLease)
        .where(
            RunnerLease.pipeline_id == lease.pipeline_id,
            RunnerLease.holder == lease.holder,
            RunnerLease.epoch == lease.epoch,
        )
        .values(heartbeat_at=func.clock_timestamp(), expires_at=_after(seconds))
        .returning(RunnerLease.pipeline_id)
    )
    return renewed.first() is not None


def holds(session: Session, lease: Lease) -> bool:
    """Tell whether a lease is still the last one that was given; expired but not taken over counts as held."""
    held = session.scalar(
        select(RunnerLease.pipeline_id).where(
            RunnerLease.pipeline_id == lease.pipeline_id,
            RunnerLease.holder == lease.holder,
            RunnerLease.epoch == lease.epoch,
        )
    )
    return held is not None


def release(session: Session, lease: Lease) -> bool:
    """Give a lease back, so that another may take it at once; False when it was not held any more."""
    released = session.execute(
        update(RunnerLease)
        .where(
            RunnerLease.pipeline_id == lease.pipeline_id,
            RunnerLease.holder == lease.holder,
            RunnerLease.epoch == lease.epoch,
        )
        .values(holder=None, expires_at=func.clock_timestamp())
        .returning(RunnerLease.pipeline_id)
    )
    return released.first() is not None


def current_holder(session: Session, pipeline_id: int) -> RunnerLease | None:
    """Return the lease that is in force for a pipeline."""
    return session.scalars(
        select(RunnerLease).where(
            RunnerLease.pipeline_id == pipeline_id,
            RunnerLease.holder.is_not(None),
            RunnerLease.expires_at > func.clock_timestamp(),
        )
    ).one_or_none()


def report_runner(
    session: Session,
    runner_id: str,
    state: RunnerState,
    *,
    host: str | None = None,
    pid: int | None = None,
    health_port: int | None = None,
    version: str | None = None,
    last_error: str | None = None,
) -> None:
    """Store a sign of life of a runner; the error of before stays when there is no new one."""
    values = {
        "host": host or socket.gethostname(),
        "pid": pid or os.getpid(),
        "state": state,
        "health_port": health_port,
        "version": version,
        "heartbeat_at": func.clock_timestamp(),
    }
    if last_error is not None:
        values["last_error"] = last_error[:2000]
    session.execute(
        insert(RunnerHeartbeat)
        .values(runner_id=runner_id, **values)
        .on_conflict_do_update(index_elements=[RunnerHeartbeat.runner_id], set_=values)
    )


def live_runners(session: Session, seconds: float = 30.0) -> list[RunnerHeartbeat]:
    """Return the runners that gave a sign of life within `seconds` and did not say that they stopped."""
    age = func.clock_timestamp() - RunnerHeartbeat.heartbeat_at
    return list(
        session.scalars(
            select(RunnerHeartbeat)
            .where(
                RunnerHeartbeat.state.not_in(("STOPPED", "ERROR")),
                age < text("make_interval(secs => :age_seconds)").bindparams(age_seconds=seconds),
            )
            .order_by(RunnerHeartbeat.started_at)
        )
    )
