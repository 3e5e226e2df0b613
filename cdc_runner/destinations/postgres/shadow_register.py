"""Which tables of a pipeline are built aside, and which were replaced by such and are kept: a table in `_rosetta`."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg2.extensions

from cdc_runner.capture.inspect import KEPT_SCHEMA, NEW_SCHEMA
from cdc_runner.schema import TableId, quote_identifier

Cursor = psycopg2.extensions.cursor

OUTDATED = "the table's schema has changed, or it was loaded again"
"""Why a new table is void that is only to be begun anew."""

_CREATE = """
CREATE TABLE IF NOT EXISTS _rosetta.table_rebuild (
    pipeline text NOT NULL,
    id bigint NOT NULL,
    target_schema text NOT NULL,
    target_table text NOT NULL,
    definition text NOT NULL,
    built boolean NOT NULL DEFAULT false,
    void text,
    swapped_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, id)
);
COMMENT ON TABLE _rosetta.table_rebuild IS 'Tables that are built aside, and those that were replaced and are kept';
"""
DEFINITION = "md5(t.ready::text || t.snapshot_lsn::text || t.source_definition::text)"
"""SQL for what a target's state (`t`) is known by: a new table is for just that one."""
_READ = f"""
SELECT r.id, r.target_schema, r.target_table, r.built, r.swapped_at IS NOT NULL,
       coalesce(r.void, CASE WHEN r.definition IS DISTINCT FROM {DEFINITION} THEN %(outdated)s END), r.void IS NOT NULL
FROM _rosetta.table_rebuild r LEFT JOIN _rosetta.table_state t USING (pipeline, target_schema, target_table)
WHERE r.pipeline = %(pipeline)s
"""


@dataclass(slots=True)
class Shadow:
    """A table that is built aside, or one that was replaced.

    Attributes:
        id: of the backfill that builds it.
        target: the table whose place it takes.
        built: it holds all that the source has; later changes go into it.
        swapped: it has taken the place; the old table is kept.
        void: why it cannot any more; None while it can.
        marked: the register says that it is void; else it follows from the target's state.
    """

    id: int
    target: TableId
    built: bool = False
    swapped: bool = False
    void: str | None = None
    marked: bool = False

    @property
    def aside(self) -> TableId:
        """Where it is built."""
        return TableId(f"{NEW_SCHEMA}{self.id}", self.target.name)

    @property
    def kept(self) -> TableId:
        """Where the old table is kept."""
        return TableId(f"{KEPT_SCHEMA}{self.id}", self.target.name)


def create_register(cursor: Cursor) -> None:
    """Create the register unless it is there."""
    cursor.execute("SELECT to_regclass('_rosetta.table_rebuild') IS NULL")
    row = cursor.fetchone()
    if row is not None and row[0]:
        # IF NOT EXISTS is no protection against two pipelines that create at once.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('rosetta state'))")
        cursor.execute(_CREATE)


def read_shadows(cursor: Cursor, pipeline: str, *, swapped: bool | None = None) -> list[Shadow]:
    """Return the tables of a pipeline that are built (not swapped) or kept (swapped), by default all of them."""
    cursor.execute("SELECT to_regclass('_rosetta.table_rebuild') IS NULL")
    row = cursor.fetchone()
    if row is not None and row[0]:
        return []
    which = "" if swapped is None else f" AND (r.swapped_at IS NOT NULL) = {str(swapped).lower()}"
    cursor.execute(f"{_READ}{which} ORDER BY r.id", {"pipeline": pipeline, "outdated": OUTDATED})
    return [
        Shadow(row[0], TableId(row[1], row[2]), row[3], row[4], row[5] if not row[4] else None, row[6])
        for row in cursor.fetchall()
    ]


def drop_shadow(cursor: Cursor, pipeline: str, shadow: Shadow) -> None:
    """Drop a table that is built, or the old one that is kept, with its schema, and forget it.

    Raises:
        psycopg2.Error: something else depends on the table, or lies in the schema.
    """
    table = shadow.kept if shadow.swapped else shadow.aside
    cursor.execute(f"DROP TABLE IF EXISTS {table.quoted}")
    cursor.execute(f"DROP SCHEMA IF EXISTS {quote_identifier(table.schema)}")
    cursor.execute("DELETE FROM _rosetta.table_rebuild WHERE pipeline = %s AND id = %s", (pipeline, shadow.id))


def forget_shadows(cursor: Cursor, pipeline: str) -> None:
    """Forget all tables of a pipeline; those that are kept stay."""
    cursor.execute("SELECT to_regclass('_rosetta.table_rebuild') IS NOT NULL")
    row = cursor.fetchone()
    if row is not None and row[0]:
        cursor.execute("DELETE FROM _rosetta.table_rebuild WHERE pipeline = %s", (pipeline,))
