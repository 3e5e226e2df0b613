"""Schemas of source tables and their history."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, text
from sqlalchemy.orm import Mapped, mapped_column

from cdc_runner.catalog.models.base import Base, Created, Timestamps, big, identifier

_FALSE = text("false")


class TableMetadata(Timestamps, Base):
    """A table of a source and its schema as last seen."""

    __tablename__ = "table_metadata_list"

    id: Mapped[identifier]
    source_id: Mapped[big] = mapped_column(ForeignKey("sources.id", ondelete="CASCADE"))
    schema_name: Mapped[str]
    table_name: Mapped[str]
    schema_table: Mapped[dict[str, Any] | None]
    is_changes_schema: Mapped[bool] = mapped_column(server_default=_FALSE)
    is_dropped: Mapped[bool] = mapped_column(server_default=_FALSE)
    estimated_rows: Mapped[big | None]
    size_bytes: Mapped[big | None]


class SchemaEvolution(Created, Base):
    """One change of a table's schema; versions count from 1."""

    __tablename__ = "history_schema_evolution"

    id: Mapped[identifier]
    table_metadata_list_id: Mapped[big] = mapped_column(ForeignKey("table_metadata_list.id", ondelete="CASCADE"))
    version_schema: Mapped[int]
    changes_type: Mapped[str]
    schema_table_old: Mapped[dict[str, Any] | None]
    schema_table_new: Mapped[dict[str, Any] | None]
    lsn: Mapped[big | None]
