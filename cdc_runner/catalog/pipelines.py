"""The specification of a pipeline as the engine reads it, and the one function that changes its status."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import SecretStr
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, selectinload

from cdc_runner.catalog import notifications
from cdc_runner.catalog.credentials import CredentialPlace, Keyring
from cdc_runner.catalog.leases import current_holder
from cdc_runner.catalog.models import Destination, Pipeline, PipelineDestination, PipelineMetadata, Source
from cdc_runner.catalog.models import TableSync as DeclaredSync
from cdc_runner.catalog.settings import pipeline_settings
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.spec import (
    DestinationSpec,
    Mask,
    PipelineSpec,
    PostgresAddress,
    SnowflakeAddress,
    SourceSpec,
    TableShape,
    TableSync,
)

DesiredStatus = Literal["START", "PAUSE", "REFRESH"]

SOURCE_PASSWORD_COLUMN = "password"


def source_place(source_id: int) -> CredentialPlace:
    """Return where a source's password is stored."""
    return CredentialPlace("sources", SOURCE_PASSWORD_COLUMN, source_id)


def mask_key_place(source_id: int) -> CredentialPlace:
    """Return where the key of a source's hash masks is stored."""
    return CredentialPlace("sources", "mask_key", source_id)


def destination_place(destination_id: int, secret: str) -> CredentialPlace:
    """Return where a destination's secret is stored."""
    return CredentialPlace("destinations", f"secrets.{secret}", destination_id)


def source_address(source: Source, keyring: Keyring) -> PostgresAddress:
    """Return how to reach a source.

    Raises:
        RosettaError: CREDENTIAL_UNREADABLE.
    """
    return PostgresAddress(
        host=source.host,
        port=source.port,
        database=source.database_name,
        username=source.username,
        password=keyring.decrypt(source.password, source_place(source.id)),
        sslmode=source.sslmode,
        sslrootcert=source.sslrootcert,
        sslcert=source.sslcert,
        sslkey=source.sslkey,
    )


def destination_address(destination: Destination, keyring: Keyring) -> PostgresAddress:
    """Return how to reach a PostgreSQL destination.

    Raises:
        RosettaError: CREDENTIAL_UNREADABLE, or CONFIG_INVALID for another type.
    """
    if destination.type != "postgres":
        raise RosettaError(
            ErrorKind.CONFIG_INVALID,
            f"destination {destination.name} is of type {destination.type}, which this version cannot write to yet",
        )
    config = destination.config
    stored = destination.secrets.get("password")
    password = keyring.decrypt(stored, destination_place(destination.id, "password")) if stored else SecretStr("")
    return PostgresAddress(
        host=config["host"],
        port=config["port"],
        database=config["database"],
        username=config["username"],
        password=password,
        sslmode=config.get("sslmode", "prefer"),
        sslrootcert=config.get("sslrootcert"),
        sslcert=config.get("sslcert"),
        sslkey=config.get("sslkey"),
    )


def snowflake_address(destination: Destination, keyring: Keyring) -> SnowflakeAddress:
    """Return how to reach a Snowflake destination.

    Raises:
        RosettaError: CREDENTIAL_UNREADABLE, or CONFIG_INVALID for another type.
    """
    if destination.type != "snowflake":
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"destination {destination.name} is not a Snowflake account")
    secrets = {
        name: keyring.decrypt(stored, destination_place(destination.id, name))
        for name, stored in destination.secrets.items()
    }
    if "private_key" not in secrets:
        raise RosettaError(ErrorKind.CREDENTIAL_UNREADABLE, f"destination {destination.name} has no private_key stored")
    known = {field.name for field in dataclasses.fields(SnowflakeAddress)}
    options: dict[str, Any] = {name: value for name, value in destination.config.items() if name in known}
    return SnowflakeAddress(**(options | secrets))


def _place(destination: Destination, keyring: Keyring) -> PostgresAddress | SnowflakeAddress:
    if destination.type == "snowflake":
        return snowflake_address(destination, keyring)
    return destination_address(destination, keyring)


def source_spec(source: Source, keyring: Keyring) -> SourceSpec:
    """Return a source as the engine reads it."""
    return SourceSpec(
        id=source.id,
        name=source.name,
        address=source_address(source, keyring),
        publication=source.publication_name,
        slot=source.slot_name,
        tables=tuple(source.table_patterns),
        capture_engine=source.capture_engine,
    )


def destination_spec(row: PipelineDestination, keyring: Keyring) -> DestinationSpec:
    """Return a destination of a pipeline as the engine reads it."""
    destination, source = row.destination, row.pipeline.source
    mask_key = keyring.decrypt(source.mask_key, mask_key_place(source.id)) if source.mask_key else None
    declared = (sync for sync in row.table_syncs if sync.origin == "DECLARED")
    return DestinationSpec(
        id=row.id,
        destination_id=destination.id,
        name=destination.name,
        type=destination.type,
        place=_place(destination, keyring),
        schema=destination.config.get("schema"),
        syncs=tuple(
            TableSync(
                id=sync.id,
                table=sync.table_name,
                target=sync.table_name_target,
                shape=stored_shape(sync),
                mask_key=mask_key,
            )
            for sync in declared
        ),
        identity=destination.identity,
    )


def stored_shape(sync: DeclaredSync) -> TableShape:
    """Return how a declared table sync shapes its rows."""
    return TableShape.from_json(sync.shape or {}, sync.filter_sql, sync.custom_sql)


def masked_columns(pipeline: Pipeline) -> tuple[tuple[str, str, Mask], ...]:
    """Return the masks that any sync of a pipeline has, as triples of table, column and mask.

    A column that has several is listed with each.
    """
    found = {
        (sync.table_name, column, mask)
        for row in pipeline.destinations
        for sync in row.table_syncs
        if sync.origin == "DECLARED"
        for column, mask in stored_shape(sync).masks
    }
    return tuple(sorted(found, key=lambda one: (one[0], one[1], one[2].kind.value, str(one[2]))))


def _with_masks(spec: DestinationSpec, masks: tuple[tuple[str, str, Mask], ...]) -> DestinationSpec:
    """Return a destination whose custom SQL sees masked values only, whatever table it reads."""
    syncs = tuple(
        sync
        if sync.shape.custom_sql is None
        else dataclasses.replace(sync, shape=dataclasses.replace(sync.shape, table_masks=masks))
        for sync in spec.syncs
    )
    return dataclasses.replace(spec, syncs=syncs)


def load_pipeline(session: Session, pipeline_id: int, keyring: Keyring | None = None) -> PipelineSpec:
    """Return the specification of a pipeline, credentials decrypted.

    Raises:
        RosettaError: NOT_FOUND; CREDENTIAL_*; CONFIG_INVALID for a pipeline without destinations, or with one of a type
            that this version cannot write to.
    """
    options = selectinload(Pipeline.destinations)
    statement = (
        select(Pipeline)
        .where(Pipeline.id == pipeline_id)
        .options(
            selectinload(Pipeline.source),
            options.selectinload(PipelineDestination.destination),
            options.selectinload(PipelineDestination.table_syncs),
        )
    )
    pipeline = session.scalars(statement).one_or_none()
    if pipeline is None:
        raise RosettaError(ErrorKind.NOT_FOUND, f"no pipeline with id {pipeline_id}")
    if not pipeline.destinations:
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"pipeline {pipeline.name} has no destination")
    keys = keyring or Keyring.from_environment()
    masks = masked_columns(pipeline)
    return PipelineSpec(
        id=pipeline.id,
        name=pipeline.name,
        identity=pipeline.identity,
        generation=pipeline.generation,
        source=source_spec(pipeline.source, keys),
        destinations=tuple(_with_masks(destination_spec(row, keys), masks) for row in pipeline.destinations),
        settings=pipeline_settings(session, pipeline.settings),
    )


def desired_status(session: Session, pipeline_id: int) -> str:
    """Return what a pipeline is to do.

    Raises:
        RosettaError: NOT_FOUND.
    """
    status = session.scalar(select(Pipeline.status).where(Pipeline.id == pipeline_id))
    if status is None:
        raise RosettaError(ErrorKind.NOT_FOUND, f"no pipeline with id {pipeline_id}")
    return status


def set_status(session: Session, pipeline_id: int, status: DesiredStatus, *, reason: str | None = None) -> bool:
    """Set what a pipeline is to do, in `pipelines` and `pipeline_metadata`, in the caller's transaction.

    This is the one place that changes a status. Starting a pipeline that stands in ERROR raises its generation, so that
    the supervisor tries again although the desired status is the same. A reason is stored as the pipeline's last error.

    Returns:
        Whether anything changed.

    Raises:
        RosettaError: NOT_FOUND, or CONFIG_INVALID for a word that is not a status.
    """
    if status not in ("START", "PAUSE", "REFRESH"):
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"status {str(status)[:40]!r} is not START, PAUSE or REFRESH")
    pipeline = session.get(Pipeline, pipeline_id, with_for_update=True, populate_existing=True)
    if pipeline is None:
        raise RosettaError(ErrorKind.NOT_FOUND, f"no pipeline with id {pipeline_id}")
    session.execute(insert(PipelineMetadata).values(pipeline_id=pipeline_id, status="PAUSED").on_conflict_do_nothing())
    metadata = session.scalars(
        select(PipelineMetadata).where(PipelineMetadata.pipeline_id == pipeline_id).with_for_update()
    ).one()
    retry = status != "PAUSE" and metadata.status == "ERROR"
    if pipeline.status == status and not retry and status != "REFRESH":
        return False
    if pipeline.status == status and retry:
        pipeline.generation += 1
    pipeline.status = status
    if status == "REFRESH":
        pipeline.last_refresh_at = func.now()
    if status == "PAUSE" or retry:
        metadata.status = "PAUSED"
    if retry:
        metadata.last_error = None
    if reason is not None:
        metadata.last_error, metadata.last_error_at = reason, func.now()
    session.flush()
    told = f"pipeline {pipeline.name} is set to {status}" + (": it is tried again" if retry else "")
    notifications.record_event(
        session,
        f"pipeline_status:{pipeline.name}/{status}",
        "INFO" if reason is None else "WARNING",
        "pipeline_status",
        f"{told}: {reason}" if reason else told,
        lasting=False,
    )
    return True


def refuse_when_running(session: Session, pipeline: Pipeline) -> None:
    """Refuse to remove a pipeline that runs or is to run.

    Raises:
        RosettaError: CONFLICT, saying what to do first.
    """
    if pipeline.status != "PAUSE":
        raise RosettaError(
            ErrorKind.CONFLICT,
            f"pipeline {pipeline.name} is set to {pipeline.status}; run `rosetta pipeline pause {pipeline.name}` first",
        )
    lease = current_holder(session, pipeline.id)
    if lease is not None:
        raise RosettaError(
            ErrorKind.CONFLICT,
            f"pipeline {pipeline.name} is still held by a runner on {lease.host}: wait until it has stopped",
        )
