"""Pipelines: list, show, start, pause, refresh, remove."""

from __future__ import annotations

from typing import Any

import psycopg2
from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.environment import read_environment
from cdc_runner.catalog.models import Destination, Pipeline, PipelineMetadata, Source
from cdc_runner.catalog.pipelines import (
    DesiredStatus,
    destination_address,
    load_pipeline,
    refuse_when_running,
    set_status,
    snowflake_address,
    source_address,
    stored_shape,
)
from cdc_runner.catalog.repositories import get_pipeline, list_pipelines, lock_configuration
from cdc_runner.catalog.shape_entry import shown_shape
from cdc_runner.connections import classify, connect
from cdc_runner.dead_letter.parking import ParkingLot
from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.destinations.postgres.shadow_register import drop_shadow, forget_shadows, read_shadows
from cdc_runner.destinations.postgres.state import forget_pipeline
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import quote_literal
from cdc_runner.services.removal import Removal, publication_statement, remove_from_source, slot_statement


def describe_pipelines(session: Session) -> list[dict[str, Any]]:
    """Return all pipelines, one line each."""
    states = {row.pipeline_id: row for row in session.scalars(select(PipelineMetadata))}
    return [_line(pipeline, states.get(pipeline.id)) for pipeline in list_pipelines(session)]


def describe_pipeline(session: Session, name: str) -> dict[str, Any]:
    """Return a pipeline with its destinations and tables.

    Raises:
        RosettaError: NOT_FOUND.
    """
    pipeline = get_pipeline(session, name)
    state = session.scalars(select(PipelineMetadata).where(PipelineMetadata.pipeline_id == pipeline.id)).one_or_none()
    return {
        **_line(pipeline, state),
        "identity": pipeline.identity,
        "generation": pipeline.generation,
        "settings": pipeline.settings,
        "last_refresh_at": pipeline.last_refresh_at.isoformat() if pipeline.last_refresh_at else None,
        "destinations": [
            {
                "destination": row.destination.name,
                "type": row.destination.type,
                "is_error": row.is_error,
                "last_error": row.error_message,
                "declared_tables": [
                    {
                        "table": sync.table_name,
                        "target": sync.table_name_target,
                        "shape": shown_shape(stored_shape(sync)),
                        "tags": [tag.tag for tag in sync.tags],
                    }
                    for sync in row.table_syncs
                    if sync.origin == "DECLARED"
                ],
                "tables": [
                    {
                        "source": f"{sync.source_schema}.{sync.source_table}",
                        "target": f"{sync.target_schema}.{sync.target_table}",
                        "state": sync.load_state,
                        "reason": sync.load_state_reason,
                        "loaded_rows": sync.loaded_rows,
                        "applied_rows": sync.applied_rows,
                        "error": sync.error_message if sync.is_error else None,
                    }
                    for sync in row.table_syncs
                    if sync.origin == "RESOLVED"
                ],
            }
            for row in pipeline.destinations
        ],
    }


def _line(pipeline: Pipeline, state: PipelineMetadata | None) -> dict[str, Any]:
    return {
        "name": pipeline.name,
        "source": pipeline.source.name,
        "destination_names": [row.destination.name for row in pipeline.destinations],
        "status": pipeline.status,
        "state": state.status if state else None,
        "last_error": state.last_error if state else None,
    }


def change_status(session: Session, name: str, status: DesiredStatus, keyring: Keyring | None = None) -> bool:
    """Start, pause or refresh a pipeline; a start is refused when its specification cannot be read.

    Returns:
        Whether anything changed.

    Raises:
        RosettaError: NOT_FOUND; for a start also CONFIG_INVALID and CREDENTIAL_*.
    """
    pipeline = get_pipeline(session, name)
    if status != "PAUSE":
        load_pipeline(session, pipeline.id, keyring)
    return set_status(session, pipeline.id, status)


def restart_pipeline(session: Session, name: str, keyring: Keyring | None = None) -> None:
    """Let the runner end a pipeline's process after its present batch and start another, which goes on where it was.

    Raises:
        RosettaError: NOT_FOUND; CONFLICT when the pipeline is not to run; CONFIG_INVALID and CREDENTIAL_* when it could
            not start again.
    """
    pipeline = get_pipeline(session, name)
    if pipeline.status == "PAUSE":
        raise RosettaError(ErrorKind.CONFLICT, f"pipeline {name} is set to PAUSE: start it instead")
    load_pipeline(session, pipeline.id, keyring)
    pipeline.generation += 1
    session.flush()


def remove_pipeline(session: Session, name: str, keyring: Keyring | None = None, *, keep_slot: bool = False) -> Removal:
    """Remove a pipeline with its slot and publication; target tables stay.

    The server is cleaned before the config database is changed, so that an interrupted removal can be repeated.

    Args:
        session: of the caller.
        name: of the pipeline.
        keyring: decrypts the source's password.
        keep_slot: leave slot and publication, and list them as left over.

    Raises:
        RosettaError: NOT_FOUND, or CONFLICT while it runs.
    """
    lock_configuration(session)
    pipeline = get_pipeline(session, name)
    refuse_when_running(session, pipeline)
    result = clean_source(session, pipeline.source, keyring, keep=keep_slot)
    for row in pipeline.destinations:
        forget_at_destination(pipeline, row.destination, keyring, result)
    _forget_dead_letters(pipeline, result)
    session.delete(pipeline)
    session.flush()
    result.removed.insert(0, f"pipeline {name}")
    return result


def _forget_dead_letters(pipeline: Pipeline, result: Removal) -> None:
    """Remove what a pipeline has in Redis, or list it."""
    store = LetterStore(read_environment().redis_url)
    if not store.configured:
        return
    try:
        for row in pipeline.destinations:
            queue = DeadLetterQueue(store, pipeline.identity, pipeline.source_id, row.destination_id)
            count = queue.forget()
            if count:
                result.removed.append(f"{count} dead letters for destination {row.destination.name}")
            if row.destination.type == "postgres":
                ParkingLot(store, pipeline.source_id, row.destination_id, most_bytes=0).clear()
    except RosettaError as error:
        result.left_over.append(f"keys dlq:{pipeline.source_id}:* in Redis, if there are any ({error.message})")
    finally:
        store.close()


def forget_at_destination(
    pipeline: Pipeline, destination: Destination, keyring: Keyring | None, result: Removal
) -> None:
    """Remove a pipeline's positions from a destination, as a new pipeline of the same name would go on from them."""
    # It stands on the encoder of rows, which the control plane's code server does without.
    from cdc_runner.destinations.postgres.journal import drop_journals

    result.kept.append(f"target tables in destination {destination.name}")
    if destination.type == "snowflake":
        _forget_at_snowflake(pipeline, destination, keyring, result)
        return
    identity = pipeline.identity
    try:
        address = destination_address(destination, keyring or Keyring.from_environment())
        connection = connect(address, application_name="rosetta remove", side="destination")
        try:
            with connection, connection.cursor() as cursor:
                drop_journals(connection, identity)
                for one in read_shadows(cursor, identity):
                    if one.swapped:
                        result.kept.append(f"table {one.kept}, which a rebuild replaced, in {destination.name}")
                    else:
                        drop_shadow(cursor, identity, one)
                forget_shadows(cursor, identity)
            forget_pipeline(connection, identity)
        finally:
            connection.close()
        result.removed.append(f"positions of pipeline {pipeline.name} in destination {destination.name}")
    except (psycopg2.Error, RosettaError) as error:
        result.left_over.append(
            f"positions in destination {destination.name}, if it was ever reached"
            f" ({classify(error, 'destination').message}): "
            + " ".join(
                f"DELETE FROM _rosetta.{table} WHERE pipeline = {quote_literal(identity)};"
                for table in ("load_chunk", "table_state", "stream_position")
            )
        )


def _forget_at_snowflake(
    pipeline: Pipeline, destination: Destination, keyring: Keyring | None, result: Removal
) -> None:
    from cdc_runner.destinations.snowflake.administration import forget_pipeline as forget_snowflake

    where = f"in destination {destination.name}"
    try:
        address = snowflake_address(destination, keyring or Keyring.from_environment())
        dropped = forget_snowflake(address, pipeline.identity, destination.identity)
        result.removed += [f"{one} {where}" for one in dropped]
        result.removed.append(f"positions of pipeline {pipeline.name} {where}")
    except RosettaError as error:
        result.left_over.append(
            f"landing tables, streams and tasks of pipeline {pipeline.name} {where} ({error.message}): DROP TASK, "
            "DROP STREAM and DROP TABLE of those whose names begin with ROSETTA_MERGE_, ROSETTA_STREAM_ and LANDING_; "
            "DELETE FROM ROSETTA_TABLE and ROSETTA_PIPELINE where PIPELINE is "
            + quote_literal(f"{pipeline.identity}/{destination.identity}")
        )


def clean_source(session: Session, source: Source, keyring: Keyring | None, *, keep: bool = False) -> Removal:
    """Drop the slot and the publication of a source on its server, or list them."""
    where = f"{source.host}:{source.port}/{source.database_name}"

    def left_over(reason: str) -> Removal:
        slot, publication = source.slot_name, source.publication_name
        return Removal(
            left_over=[
                f"slot {slot} on {where}, if it exists ({reason}): {slot_statement(slot)}",
                f"publication {publication} on {where}, if it exists: {publication_statement(publication)}",
            ]
        )

    if keep:
        return left_over("kept as asked; it holds back WAL until it is dropped or read")
    try:
        address = source_address(source, keyring or Keyring.from_environment())
    except RosettaError as error:
        return left_over(error.message)
    return remove_from_source(
        address, source.slot_name, source.publication_name, publication_shared_with=_other_user(session, source)
    )


def _other_user(session: Session, source: Source) -> str | None:
    return session.scalars(
        select(Source.name).where(
            Source.id != source.id,
            Source.host == source.host,
            Source.port == source.port,
            Source.database_name == source.database_name,
            Source.publication_name == source.publication_name,
        )
    ).first()
