"""What the operator configures: sources, destinations, pipelines, table syncs, tags, presets, settings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from cdc_runner.catalog.models.base import Base, Created, Timestamps, big, identifier

_FALSE = text("false")


class Source(Timestamps, Base):
    """A PostgreSQL database to replicate from; `password` is encrypted, and so is `mask_key`, of its hash masks."""

    __tablename__ = "sources"

    id: Mapped[identifier]
    name: Mapped[str]
    type: Mapped[str] = mapped_column(server_default="postgres")
    host: Mapped[str]
    port: Mapped[int]
    database_name: Mapped[str]
    username: Mapped[str]
    password: Mapped[str]
    sslmode: Mapped[str] = mapped_column(server_default="prefer")
    sslrootcert: Mapped[str | None]
    sslcert: Mapped[str | None]
    sslkey: Mapped[str | None]
    publication_name: Mapped[str]
    slot_name: Mapped[str]
    table_patterns: Mapped[list[str]]
    capture_engine: Mapped[str] = mapped_column(server_default="debezium")
    mask_key: Mapped[str | None]
    server_version: Mapped[int | None]
    last_checked_at: Mapped[datetime | None]
    last_error: Mapped[str | None]

    pipelines: Mapped[list[Pipeline]] = relationship(back_populates="source")


class Destination(Timestamps, Base):
    """A database to replicate into: options in `config`, encrypted values in `secrets`; `identity` never changes."""

    __tablename__ = "destinations"

    id: Mapped[identifier]
    name: Mapped[str]
    identity: Mapped[str] = mapped_column(server_default="")
    type: Mapped[str]
    config: Mapped[dict[str, Any]]
    secrets: Mapped[dict[str, str]] = mapped_column(server_default=text("'{}'"))
    last_checked_at: Mapped[datetime | None]
    last_error: Mapped[str | None]

    pipeline_destinations: Mapped[list[PipelineDestination]] = relationship(back_populates="destination")


class Pipeline(Timestamps, Base):
    """One source to its destinations. `status` is desired; only `pipelines.set_status` writes it.

    `identity` is made of the first name by the database and never changes: other servers keep things under it.
    """

    __tablename__ = "pipelines"

    id: Mapped[identifier]
    name: Mapped[str]
    identity: Mapped[str] = mapped_column(server_default="")
    source_id: Mapped[big] = mapped_column(ForeignKey("sources.id"))
    status: Mapped[str] = mapped_column(server_default="PAUSE")
    settings: Mapped[dict[str, str]] = mapped_column(server_default=text("'{}'"))
    generation: Mapped[big] = mapped_column(server_default="1")
    last_refresh_at: Mapped[datetime | None]

    source: Mapped[Source] = relationship(back_populates="pipelines")
    destinations: Mapped[list[PipelineDestination]] = relationship(
        back_populates="pipeline", cascade="all, delete-orphan", passive_deletes=True, order_by="PipelineDestination.id"
    )


class PipelineDestination(Timestamps, Base):
    """A destination of a pipeline, and its error."""

    __tablename__ = "pipeline_destinations"

    id: Mapped[identifier]
    pipeline_id: Mapped[big] = mapped_column(ForeignKey("pipelines.id", ondelete="CASCADE"))
    destination_id: Mapped[big] = mapped_column(ForeignKey("destinations.id"))
    is_error: Mapped[bool] = mapped_column(server_default=_FALSE)
    error_kind: Mapped[str | None]
    error_message: Mapped[str | None]
    last_error_at: Mapped[datetime | None]

    pipeline: Mapped[Pipeline] = relationship(back_populates="destinations")
    destination: Mapped[Destination] = relationship(back_populates="pipeline_destinations")
    table_syncs: Mapped[list[TableSync]] = relationship(
        back_populates="pipeline_destination",
        cascade="all, delete-orphan",
        passive_deletes=True,
        order_by="TableSync.id",
    )


class TableSync(Timestamps, Base):
    """A table of a pipeline's destination: DECLARED by the operator, or RESOLVED by the engine and carrying state."""

    __tablename__ = "pipelines_destination_table_sync"

    id: Mapped[identifier]
    pipeline_destination_id: Mapped[big] = mapped_column(ForeignKey("pipeline_destinations.id", ondelete="CASCADE"))
    origin: Mapped[str] = mapped_column(server_default="DECLARED")
    declared_id: Mapped[big | None] = mapped_column(
        ForeignKey("pipelines_destination_table_sync.id", ondelete="SET NULL")
    )
    table_name: Mapped[str]
    table_name_target: Mapped[str | None]
    source_schema: Mapped[str | None]
    source_table: Mapped[str | None]
    target_schema: Mapped[str | None]
    target_table: Mapped[str | None]
    filter_sql: Mapped[str | None]
    custom_sql: Mapped[str | None]
    shape: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    is_exists_table_landing: Mapped[bool] = mapped_column(server_default=_FALSE)
    is_exists_stream: Mapped[bool] = mapped_column(server_default=_FALSE)
    is_exists_task: Mapped[bool] = mapped_column(server_default=_FALSE)
    is_exists_table_destination: Mapped[bool] = mapped_column(server_default=_FALSE)
    load_state: Mapped[str] = mapped_column(server_default="PENDING")
    load_state_reason: Mapped[str | None]
    load_state_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    snapshot_lsn: Mapped[big | None]
    loaded_rows: Mapped[big] = mapped_column(server_default="0")
    applied_rows: Mapped[big] = mapped_column(server_default="0")
    is_error: Mapped[bool] = mapped_column(server_default=_FALSE)
    error_message: Mapped[str | None]
    last_error_at: Mapped[datetime | None]

    pipeline_destination: Mapped[PipelineDestination] = relationship(back_populates="table_syncs")
    tags: Mapped[list[Tag]] = relationship(
        secondary="pipelines_destination_table_sync_tag", order_by="Tag.tag", passive_deletes=True
    )


class Tag(Created, Base):
    """A tag that table syncs can carry."""

    __tablename__ = "tbltag_list"

    id: Mapped[identifier]
    tag: Mapped[str]


class TableSyncTag(Created, Base):
    """A tag on a table sync."""

    __tablename__ = "pipelines_destination_table_sync_tag"

    id: Mapped[identifier]
    pipelines_destination_table_sync_id: Mapped[big] = mapped_column(
        ForeignKey("pipelines_destination_table_sync.id", ondelete="CASCADE")
    )
    tag_id: Mapped[big] = mapped_column(ForeignKey("tbltag_list.id", ondelete="CASCADE"))


class Preset(Timestamps, Base):
    """A named list of a source's tables."""

    __tablename__ = "presets"

    id: Mapped[identifier]
    source_id: Mapped[big] = mapped_column(ForeignKey("sources.id", ondelete="CASCADE"))
    name: Mapped[str]
    table_names: Mapped[list[str]]


class Setting(Timestamps, Base):
    """A global setting as text; `settings.REGISTRY` knows its type and bounds."""

    __tablename__ = "rosetta_setting_configuration"

    id: Mapped[identifier]
    config_key: Mapped[str]
    config_value: Mapped[str]
