"""Drops a slot that endangers its source, with a recorded plan of how the copy becomes right again."""

from __future__ import annotations

from typing import Any

import psycopg2
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from cdc_runner.capture.publication import drop_slot, read_slot
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.models import Pipeline, SlotRecoveryPlan, Source, StreamOffset, WalMonitor
from cdc_runner.catalog.notifications import record_event
from cdc_runner.catalog.pipelines import source_address
from cdc_runner.catalog.repositories import get_source
from cdc_runner.connections import classify, connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import format_lsn


def describe_slot(session: Session, source_name: str, keyring: Keyring | None = None) -> dict[str, Any]:
    """Return what the source says of our slot, and what dropping it would mean.

    Raises:
        RosettaError: NOT_FOUND, CREDENTIAL_*, or the source's connection errors.
    """
    source = get_source(session, source_name)
    connection = connect(source_address(source, keyring or Keyring.from_environment()), application_name="rosetta slot")
    try:
        state = read_slot(connection, source.slot_name)
    except psycopg2.Error as error:
        raise classify(error, "source") from None
    finally:
        connection.close()
    return {
        "source": source.name,
        "slot": source.slot_name,
        "exists": state is not None,
        "active": state.active if state else None,
        "wal_status": state.wal_status if state else None,
        "retained_wal_bytes": state.retained_bytes if state else None,
        "confirmed_position": format_lsn(state.confirmed_lsn) if state and state.confirmed_lsn else None,
        "recovery": recovery_steps(source),
    }


def recovery_steps(source: Source) -> list[str]:
    """Return what makes the copy right again after the slot is gone."""
    names = [pipeline.name for pipeline in source.pipelines]
    again = [
        f"run `rosetta pipeline refresh {name}` (job refresh_pipeline): a new slot, and every table copied again"
        f" from its snapshot, consistently; then `rosetta pipeline start {name}`"
        for name in names
    ]
    return [
        "find out why the slot was not read: destination away, pipeline in error, or a long transaction at the source",
        *(again or ["no pipeline uses the source: nothing else to do"]),
        "until then the targets keep the state of the applied positions below; no change after it will arrive",
    ]


def drop_source_slot(engine: Engine, source_name: str, reason: str, keyring: Keyring | None = None) -> dict[str, Any]:
    """Drop the slot of a source whose pipeline is paused; the recovery plan is stored before.

    Returns:
        The plan.

    Raises:
        RosettaError: NOT_FOUND; CONFLICT while a pipeline is to run; SLOT_MISSING; SLOT_IN_USE; connection errors. The
            slot is there still, and no plan is kept.
    """
    with session_scope(engine) as session:
        source = get_source(session, source_name)
        for pipeline in source.pipelines:
            if pipeline.status != "PAUSE":
                raise RosettaError(
                    ErrorKind.CONFLICT, f"pipeline {pipeline.name} is set to {pipeline.status}: pause it first"
                )
        address = source_address(source, keyring or Keyring.from_environment())
        slot = source.slot_name
    connection = connect(address, application_name="rosetta slot")
    try:
        connection.autocommit = True
        state = read_slot(connection, slot)
        if state is None:
            raise RosettaError(ErrorKind.SLOT_MISSING, f"there is no slot {slot} at source {source_name}")
        with session_scope(engine) as session:
            plan_id = _store_plan(session, source_name, reason, state.retained_bytes, state.confirmed_lsn)
        try:
            connection.autocommit = False
            drop_slot(connection, slot)
        except (psycopg2.Error, RosettaError) as error:
            with session_scope(engine) as session:
                _forget_plan(session, plan_id)
            raise classify(error, "source") from None
    finally:
        connection.close()
    with session_scope(engine) as session:
        return _told(session, plan_id, source_name, slot, reason)


def _store_plan(session: Session, name: str, reason: str, retained: int | None, confirmed: int | None) -> int:
    source = get_source(session, name)
    positions: dict[str, Any] = {}
    for pipeline in source.pipelines:
        offsets = {row.pipeline_destination_id: row.applied_lsn for row in session.scalars(_offsets(pipeline))}
        positions |= {row.destination.name: format_lsn(offsets.get(row.id, 0)) for row in pipeline.destinations}
    plan = SlotRecoveryPlan(
        source_id=source.id,
        pipeline=", ".join(pipeline.name for pipeline in source.pipelines),
        slot_name=source.slot_name,
        reason=reason,
        retained_wal_bytes=retained,
        confirmed_flush_lsn=confirmed,
        positions=positions,
        steps=recovery_steps(source),
    )
    session.add(plan)
    session.flush()
    return plan.id


def _offsets(pipeline: Pipeline) -> Any:
    return select(StreamOffset).where(StreamOffset.pipeline_id == pipeline.id)


def _forget_plan(session: Session, plan_id: int) -> None:
    plan = session.get(SlotRecoveryPlan, plan_id)
    if plan is not None:
        session.delete(plan)


def _told(session: Session, plan_id: int, source: str, slot: str, reason: str) -> dict[str, Any]:
    plan = session.get_one(SlotRecoveryPlan, plan_id)
    row = session.scalars(select(WalMonitor).where(WalMonitor.source_id == plan.source_id)).one_or_none()
    if row is not None:
        row.ladder_step = "SLOT_DROPPED"
    record_event(
        session, f"wal_ladder:{source}", "ERROR", "wal_ladder", f"{reason}. " + ". ".join(plan.steps),
        title=f"Slot {slot} of source {source} was dropped",
    )  # fmt: skip
    return {
        "source": source,
        "slot": slot,
        "reason": reason,
        "positions": plan.positions,
        "confirmed_position": format_lsn(plan.confirmed_flush_lsn) if plan.confirmed_flush_lsn else None,
        "steps": plan.steps,
    }
