"""Lineage of what is replicated, read from the config database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from cdc_runner.catalog.repositories import get_pipeline
from cdc_runner.lineage import TableLineage, mermaid, table_lineage
from cdc_runner.schema import TableId
from cdc_runner.spec import TableShape

_TARGETS = text(
    """
    SELECT p.name AS pipeline, so.name AS source, d.name AS destination, so.id AS source_id,
           s.source_schema, s.source_table, s.target_schema, s.target_table,
           coalesce(declared.shape, s.shape) AS shape, coalesce(declared.filter_sql, s.filter_sql) AS filter_sql,
           coalesce(declared.custom_sql, s.custom_sql) AS custom_sql
    FROM pipelines_destination_table_sync s
    JOIN pipeline_destinations pd ON pd.id = s.pipeline_destination_id
    JOIN pipelines p ON p.id = pd.pipeline_id
    JOIN sources so ON so.id = p.source_id
    JOIN destinations d ON d.id = pd.destination_id
    LEFT JOIN pipelines_destination_table_sync declared ON declared.id = s.declared_id
    WHERE s.origin = 'RESOLVED' AND s.load_state <> 'EXCLUDED'
        AND (CAST(:pipeline AS text) IS NULL OR p.name = :pipeline)
    ORDER BY p.name, d.name, s.target_schema, s.target_table
    """
)
_TABLES = text("SELECT source_id, schema_name, table_name, schema_table FROM table_metadata_list WHERE NOT is_dropped")


@dataclass(frozen=True, slots=True)
class TargetLineage:
    """A target table and where it comes from."""

    pipeline: str
    source: str
    destination: str
    target: TableId
    lineage: TableLineage

    def as_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "pipeline": self.pipeline,
            "source": self.source,
            "destination": self.destination,
            "target": str(self.target),
            "tables": [str(table) for table in self.lineage.tables],
            "lookups": [str(table) for table in self.lineage.lookups],
            "filter_columns": [str(column) for column in self.lineage.filter_columns],
            "columns": [
                {"name": column.name, "from": [str(one) for one in column.sources], "how": column.how}
                for column in self.lineage.columns
            ],
        }


def read_lineage(session: Session, pipeline: str | None = None) -> list[TargetLineage]:
    """Return the lineage of each target of a pipeline, or of all; a pipeline has targets from its first start on.

    Raises:
        RosettaError: NOT_FOUND.
    """
    if pipeline is not None:
        get_pipeline(session, pipeline)
    known: dict[int, dict[TableId, tuple[str, ...]]] = {}
    for row in session.execute(_TABLES):
        known.setdefault(row.source_id, {})[TableId(row.schema_name, row.table_name)] = column_names(row.schema_table)
    return [
        TargetLineage(
            row.pipeline,
            row.source,
            row.destination,
            TableId(row.target_schema, row.target_table),
            table_lineage(
                TableId(row.source_schema, row.source_table),
                TableShape.from_json(row.shape or {}, row.filter_sql, row.custom_sql),
                known.get(row.source_id, {}),
            ),
        )
        for row in session.execute(_TARGETS, {"pipeline": pipeline})
    ]


def column_names(stored: Any) -> tuple[str, ...]:
    """Return the names of the columns of a stored table schema; none for a form that is not known."""
    columns = stored.get("columns") if isinstance(stored, Mapping) else None
    found = columns if isinstance(columns, list) else []
    return tuple(str(one["name"]) for one in found if isinstance(one, Mapping) and "name" in one)


def lineage_chart(targets: Iterable[TargetLineage]) -> str:
    """Return a Mermaid flow chart of tables."""
    return mermaid([(one.source, one.destination, one.target, one.lineage) for one in targets])
