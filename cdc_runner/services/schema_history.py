"""Versions of the schemas of source tables, with what differs from one to the next."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import SchemaEvolution, TableMetadata
from cdc_runner.catalog.repositories import get_source
from cdc_runner.catalog.schema_diff import differences
from cdc_runner.position import format_lsn

LISTED = 200


def schema_history(
    session: Session, source: str, table: str | None = None, limit: int = LISTED
) -> list[dict[str, Any]]:
    """Return the versions of a source's tables, the newest first; of one `schema.table` if that is given.

    Raises:
        RosettaError: NOT_FOUND, no such source.
    """
    row = get_source(session, source)
    statement = (
        select(SchemaEvolution, TableMetadata)
        .join(TableMetadata, TableMetadata.id == SchemaEvolution.table_metadata_list_id)
        .where(TableMetadata.source_id == row.id)
        .order_by(SchemaEvolution.id.desc())
        .limit(limit)
    )
    if table is not None:
        statement = statement.where(TableMetadata.schema_name + "." + TableMetadata.table_name == table)
    return [
        {
            "table": f"{metadata.schema_name}.{metadata.table_name}",
            "version": version.version_schema,
            "change": version.changes_type,
            "differences": [str(one) for one in differences(version.schema_table_old, version.schema_table_new)],
            "columns": len((version.schema_table_new or {}).get("columns", ())),
            "position": format_lsn(version.lsn) if version.lsn else None,
            "seen_at": version.created_at.isoformat(timespec="seconds"),
        }
        for version, metadata in session.execute(statement)
    ]
