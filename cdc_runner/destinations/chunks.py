"""The plan of an initial load: ranges of pages of a source table, each copied at once."""

from __future__ import annotations

import psycopg2.extensions

from cdc_runner.destinations.base import LoadChunk
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId, TableSchema

_PAGE_BYTES = 8192


def plan_chunks(source: psycopg2.extensions.connection, schema: TableSchema, chunk_bytes: int) -> list[LoadChunk]:
    """Cut a source table into ranges of pages; the leaves of a partitioned table each have their own.

    Make the plan before the snapshot: a relation that is rewritten in between shows by its other file then.
    """
    with source.cursor() as cursor:
        if schema.partitioned:
            cursor.execute(
                """SELECT n.nspname, c.relname, pg_relation_filenode(c.oid), pg_relation_size(c.oid)
                   FROM pg_partition_tree(%s::regclass) p JOIN pg_class c ON c.oid = p.relid
                   JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.isleaf ORDER BY 1, 2""",
                (schema.table.quoted,),
            )
        else:
            cursor.execute(
                """SELECT n.nspname, c.relname, pg_relation_filenode(c.oid), pg_relation_size(c.oid)
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s::regclass""",
                (schema.table.quoted,),
            )
        relations = cursor.fetchall()
    # Before PostgreSQL 14 a range of pages is found by reading the whole table.
    pages = max(1, chunk_bytes // _PAGE_BYTES) if source.server_version >= 140000 else 1 << 62
    chunks: list[LoadChunk] = []
    for relation_schema, name, filenode, size in relations:
        total = size // _PAGE_BYTES
        starts = list(range(0, max(1, total), pages)) or [0]
        for place, start in enumerate(starts):
            end = starts[place + 1] if place + 1 < len(starts) else None
            chunks.append(LoadChunk(len(chunks), TableId(relation_schema, name), filenode, start, end))
    return chunks


class TableRewrittenError(RosettaError):
    """A source table was rewritten or truncated while it was copied; its load starts again."""

    def __init__(self, relation: TableId) -> None:
        super().__init__(
            ErrorKind.CAPTURE_FAILED, f"table {relation} was rewritten while it was copied: its load starts again"
        )
        self.relation = relation


def page_range(chunk: LoadChunk, condition: str | None = None) -> str:
    """Return the WHERE clause that reads a chunk's rows of its relation, those that meet a filter's condition."""
    conditions = [] if condition is None else [f"({condition})"]
    if chunk.from_page > 0 or chunk.to_page is not None:
        conditions.append(f"ctid >= '({chunk.from_page},0)'::tid")
    if chunk.to_page is not None:
        conditions.append(f"ctid < '({chunk.to_page},0)'::tid")
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""
