"""Rebuilds as people ask for them: whether a target can be replaced, which old tables are kept, and their end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg2
import psycopg2.extensions
from sqlalchemy.orm import Session

from cdc_runner.capture.inspect import matches
from cdc_runner.catalog.backfills import find
from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.pipelines import load_pipeline
from cdc_runner.catalog.rebuilds import Kept, forget_kept, kept_tables
from cdc_runner.catalog.repositories import get_pipeline
from cdc_runner.connections import classify, connect
from cdc_runner.destinations.postgres import state
from cdc_runner.destinations.postgres.replaceable import obstacles
from cdc_runner.destinations.postgres.shadow_register import drop_shadow, read_shadows
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.reconcile.shape import not_rebuildable
from cdc_runner.schema import TableId
from cdc_runner.spec import DestinationSpec, PipelineSpec


def why_not_rebuildable(
    session: Session,
    pipeline: str,
    pipeline_destination_id: int,
    targets: Sequence[TableId],
    keyring: Keyring | None = None,
) -> dict[TableId, str]:
    """Return the targets of a destination that cannot be replaced by new tables, with what stands in the way.

    Raises:
        RosettaError: CREDENTIAL_*, and the destination's kinds: nothing is known then; the pipeline looks again.
    """
    row = get_pipeline(session, pipeline)
    kept = {one.target: one for one in kept_tables(session, row.id) if _at(one, pipeline_destination_id)}
    found = {
        target: f"the table before its last rebuild is still kept as {kept[target].kept}: rosetta backfill confirm"
        for target in targets
        if target in kept
    }
    spec = load_pipeline(session, row.id, keyring)
    destination = next(one for one in spec.destinations if one.id == pipeline_destination_id)
    with _session(destination) as connection, connection.cursor() as cursor:
        states = {one.sync.target: one for one in state.read_tables(cursor, spec.identity)}
        for target in targets:
            known = states.get(target)
            if target in found or known is None:
                continue
            reason = not_rebuildable(destination, known)
            reasons = [reason] if reason else obstacles(cursor, target, known.schema.column_names)
            if reasons:
                found[target] = "; ".join(reasons)
    return found


def kept_of(session: Session, pipeline: str) -> list[dict[str, Any]]:
    """Return the rebuilds of a pipeline whose old tables are kept, as `show_backfill` gives them.

    Raises:
        RosettaError: NOT_FOUND.
    """
    shown = [find(session, one.id) for one in kept_tables(session, get_pipeline(session, pipeline).id)]
    return [one for one in shown if one is not None]


def confirm_rebuilds(
    session: Session,
    pipeline: str,
    ids: Sequence[int] = (),
    tables: Sequence[str] = (),
    keyring: Keyring | None = None,
) -> list[dict[str, Any]]:
    """Drop the old tables that are kept, by number of the rebuild or by pattern; neither means all of the pipeline.

    Returns:
        The rebuilds, with what was dropped as `dropped`.

    Raises:
        RosettaError: NOT_FOUND, nothing that is meant is kept; CONFLICT, something depends on an old table; and the
            destination's kinds. What was dropped before stays dropped; asking again is no error.
    """
    row = get_pipeline(session, pipeline)
    chosen = [one for one in kept_tables(session, row.id) if _meant(one, ids, tables)]
    if not chosen:
        raise RosettaError(ErrorKind.NOT_FOUND, f"pipeline {pipeline} keeps no old table that is meant")
    spec = load_pipeline(session, row.id, keyring)
    confirmed = []
    for one in chosen:
        _drop(spec, one)
        forget_kept(session, one.id)
        confirmed.append({**(find(session, one.id) or {}), "dropped": one.kept})
    return confirmed


def _drop(spec: PipelineSpec, kept: Kept) -> None:
    destination = next(one for one in spec.destinations if one.id == kept.pipeline_destination_id)
    with _session(destination) as connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '10s'")
        for shadow in read_shadows(cursor, spec.identity, swapped=True):
            if shadow.id != kept.id:
                continue
            try:
                drop_shadow(cursor, spec.identity, shadow)
            except psycopg2.errors.DependentObjectsStillExist as error:
                text = f"something depends on {kept.kept}, which therefore is not dropped"
                raise RosettaError(ErrorKind.CONFLICT, text) from error


@contextmanager
def _session(destination: DestinationSpec) -> Iterator[psycopg2.extensions.connection]:
    """Give a session whose transaction is committed at the end."""
    connection = connect(destination.address, application_name="rosetta rebuild", side="destination")
    try:
        with connection:
            yield connection
    except psycopg2.Error as error:
        raise classify(error, "destination") from error
    finally:
        connection.close()


def _at(one: Kept, pipeline_destination_id: int) -> bool:
    return one.pipeline_destination_id == pipeline_destination_id


def _meant(one: Kept, ids: Sequence[int], tables: Sequence[str]) -> bool:
    named = not tables or matches(one.source, tables) or matches(one.target, tables)
    return (not ids or one.id in ids) and named
