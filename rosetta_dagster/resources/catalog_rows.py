"""What the assets are made of, as the config database has it, and a fingerprint that tells when it has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

_CATALOG_PIPELINES = """
    SELECT p.name, s.name AS source, s.database_name AS source_database, s.capture_engine
    FROM pipelines p JOIN sources s ON s.id = p.source_id ORDER BY p.name
"""

_CATALOG_TABLES = """
    SELECT p.name AS pipeline, d.name AS destination, d.type AS destination_type,
           coalesce(d.config ->> 'database', '') AS destination_database,
           s.source_schema, s.source_table, s.target_schema, s.target_table,
           coalesce(declared.filter_sql, s.filter_sql) AS filter_sql,
           coalesce(declared.custom_sql, s.custom_sql) AS custom_sql,
           coalesce(declared.shape, s.shape) AS shape,
           CASE WHEN coalesce(declared.custom_sql, s.custom_sql) IS NOT NULL THEN
               (SELECT jsonb_agg(jsonb_build_array(k.schema_name, k.table_name, k.schema_table)
                                 ORDER BY k.schema_name, k.table_name)
                FROM table_metadata_list k WHERE k.source_id = p.source_id AND NOT k.is_dropped) END AS known,
           ARRAY(SELECT DISTINCT t.tag
                 FROM pipelines_destination_table_sync_tag st JOIN tbltag_list t ON t.id = st.tag_id
                 WHERE st.pipelines_destination_table_sync_id IN (s.id, s.declared_id) ORDER BY 1) AS tags,
           m.schema_table
    FROM pipelines_destination_table_sync s
    JOIN pipeline_destinations pd ON pd.id = s.pipeline_destination_id
    JOIN pipelines p ON p.id = pd.pipeline_id
    JOIN destinations d ON d.id = pd.destination_id
    LEFT JOIN pipelines_destination_table_sync declared ON declared.id = s.declared_id
    LEFT JOIN table_metadata_list m
        ON m.source_id = p.source_id AND m.schema_name = s.source_schema AND m.table_name = s.source_table
    WHERE s.origin = 'RESOLVED' AND s.load_state <> 'EXCLUDED'
    ORDER BY p.name, d.name, s.target_schema, s.target_table, s.source_schema, s.source_table
"""

_FINGERPRINT = text(
    f"""
    SELECT md5(concat(
        (SELECT string_agg(md5(one::text), '') FROM ({_CATALOG_PIPELINES}) one),
        '/',
        (SELECT string_agg(md5(one::text), '') FROM ({_CATALOG_TABLES}) one)))
    """
)


@dataclass(frozen=True, slots=True)
class CatalogRows:
    """The pipelines and the tables that they copy, as the catalog has them, with their fingerprint."""

    pipelines: list[dict[str, Any]]
    tables: list[dict[str, Any]]
    fingerprint: str


def read_catalog_rows(session: Session) -> CatalogRows:
    """Return everything that the assets are made of."""
    return CatalogRows(
        [dict(row) for row in session.execute(text(_CATALOG_PIPELINES)).mappings()],
        [dict(row) for row in session.execute(text(_CATALOG_TABLES)).mappings()],
        read_catalog_fingerprint(session),
    )


def read_catalog_fingerprint(session: Session) -> str:
    """Return a hash of everything that the assets are made of; computed by the server, without moving the rows."""
    return str(session.execute(_FINGERPRINT).scalar_one())
