"""What a backfill reads of a source table: the columns that its target knows, through the shape of its sync."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg2
import psycopg2.extensions

from cdc_runner.connections import classify
from cdc_runner.destinations.base import LoadChunk, TableState
from cdc_runner.destinations.chunks import TableRewrittenError, page_range
from cdc_runner.destinations.postgres import types
from cdc_runner.destinations.postgres.statements import TargetShape
from cdc_runner.destinations.postgres.type_names import SchemaMap
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.row_filter.sql import parse_filter
from cdc_runner.schema import Column, TableId, TableSchema, quote_identifier
from cdc_runner.shaping.columns import ColumnPlan, column_plan
from cdc_runner.shaping.mask import CopyMasker
from cdc_runner.spec import MaskKind, ResolvedSync


@dataclass(frozen=True, slots=True)
class RowSource:
    """How rows of one source table are read for one target.

    Attributes:
        sync: source, target and shape.
        known: what the destination remembers of the target.
        present: the table at the source now.
        shape: the target as the statements need it; only columns that can be read are written.
        plan: how the rows are shaped; None for a plain copy.
        conditions: SQL conditions over the names that the target was made for.
    """

    sync: ResolvedSync
    known: TableState
    present: TableSchema
    shape: TargetShape
    plan: ColumnPlan | None
    conditions: tuple[str, ...]

    @classmethod
    def of(
        cls,
        sync: ResolvedSync,
        known: TableState,
        present: TableSchema,
        map_schema: SchemaMap,
        filter_sql: str | None = None,
    ) -> RowSource:
        """Return how rows are read.

        Raises:
            RosettaError: CONFIG_INVALID for a filter that does not fit the table, SCHEMA_CHANGE_HELD when the source's
                columns are others than the target was made for.
        """
        captured = known.captured_schema
        plan = column_plan(sync, captured)
        conditions = [] if plan is None or plan.filter is None else [plan.filter]
        if filter_sql is not None:
            # It is checked once more: whoever can write a row of the queue is not to run statements at the source.
            parsed = parse_filter(filter_sql)
            unknown = sorted(set(parsed.columns) - set(captured.stream_names))
            if unknown:
                raise RosettaError(
                    ErrorKind.CONFIG_INVALID,
                    f"table {sync.source}: the filter names {unknown[0]}, which is no column of the table",
                )
            conditions.append(parsed.sql)
        partners = {column.name: _partner(present, column) for column in captured.stream_columns}
        names = known.schema.stream_names
        read = captured.stream_names if plan is None else [captured.stream_names[place] for place in plan.places]
        written = [name for name, own in zip(names, read, strict=False) if partners[own] is not None]
        written += names[len(read) :]
        gone = [name for name in known.schema.key if name not in written]
        if gone:
            text = f"table {sync.source}: column {gone[0]} of its key is gone"
            raise RosettaError(ErrorKind.SCHEMA_CHANGE_HELD, text)
        column_types = [types.target_type(column, map_schema) for column in known.schema.stream_columns]
        shape = TargetShape.of(sync.target, known.schema, column_types, written)
        return cls(sync, known, present, shape, plan, tuple(conditions))

    def copy_out(self, chunk: LoadChunk) -> str:
        """Return the statement that reads a chunk's rows, in the order of the written columns."""
        places = self.shape.written
        return self._copy(self._parts(places), f"ONLY {chunk.relation.quoted}{page_range(chunk)}")

    def copy_late(self, chunk: LoadChunk, since_xid: int) -> str:
        """Return the statement that reads a chunk's rows that were changed by a transaction or later ones.

        A row whose number seems later than it is, since the numbers have gone round, is only read in vain.
        """
        late = page_range(chunk, f"age(xmin) <= age('{since_xid % 2**32}'::xid)")
        return self._copy(self._parts(self.shape.written), f"ONLY {chunk.relation.quoted}{late}")

    def copy_keys(self, chunk: LoadChunk) -> str:
        """Return the statement that reads the keys of a chunk's rows, in the order of the target's key."""
        return self._copy(self._parts(self.shape.key), f"ONLY {chunk.relation.quoted}{page_range(chunk)}")

    def count_statement(self) -> str:
        """Return a query for all rows, to be explained."""
        only = "" if self.present.partitioned else "ONLY "
        return f"SELECT 1 FROM {self._renamed(f'{only}{self.sync.source.quoted}')}{self._where()}"

    def masker(self) -> CopyMasker | None:
        """Return what masks the rows of `copy_out` on their way."""
        return self._masker(self.shape.written)

    def key_masker(self) -> CopyMasker | None:
        """Return what masks the keys of `copy_keys` on their way."""
        return self._masker(self.shape.key)

    def _copy(self, parts: Sequence[str], relation: str) -> str:
        return f"COPY (SELECT {', '.join(parts)} FROM {self._renamed(relation)}{self._where()}) TO STDOUT"

    def _parts(self, places: Sequence[int]) -> list[str]:
        if self.plan is None:
            return [quote_identifier(self.shape.columns[place]) for place in places]
        everything = self.plan.select_parts()
        return [everything[place] for place in places]

    def _masker(self, places: Sequence[int]) -> CopyMasker | None:
        if self.plan is None:
            return None
        needed = [
            self.plan.maskers[place] if place < len(self.plan.places) and _is_masked(self.plan, place) else None
            for place in places
        ]
        return CopyMasker(needed) if any(one is not None for one in needed) else None

    def _renamed(self, relation: str) -> str:
        """Return the source's rows under the names that the target was made for."""
        columns = []
        for column in self.known.captured_schema.stream_columns:
            partner = _partner(self.present, column)
            own = "NULL::text" if partner is None else quote_identifier(partner.name)
            columns.append(f"{own} AS {quote_identifier(column.name)}")
        return f"(SELECT {', '.join(columns)} FROM {relation}) v"

    def _where(self) -> str:
        return f" WHERE {' AND '.join(f'({one})' for one in self.conditions)}" if self.conditions else ""


def _is_masked(plan: ColumnPlan, place: int) -> bool:
    mask = plan.masks[place]
    return mask is not None and mask.kind in (MaskKind.HASH, MaskKind.TRUNCATE)


def _partner(present: TableSchema, column: Column) -> Column | None:
    """Return the source's present column for one that the target knows, None when it was dropped.

    Raises:
        RosettaError: SCHEMA_CHANGE_HELD, it has another type.
    """
    for one in present.stream_columns:
        if (one.number == column.number) if column.number else (one.name == column.name):
            if one.type_text != column.type_text:
                raise RosettaError(
                    ErrorKind.SCHEMA_CHANGE_HELD,
                    f"table {present.table}: column {one.name} is {one.type_text} now; the stream brings that with the "
                    "next change of the table",
                )
            return one
    return None


def estimated_rows(source: psycopg2.extensions.connection, rows: RowSource) -> int:
    """Return how many rows the source's planner expects a backfill to read."""
    try:
        with source.cursor() as cursor:
            cursor.execute(f"EXPLAIN (FORMAT JSON) {rows.count_statement()}")
            row = cursor.fetchone()
    except psycopg2.Error as error:
        named = classify(error, "source")
        raise (refused_filter(named, rows.sync.source) if rows.conditions else named) from error
    return 0 if row is None else max(0, int(row[0][0]["Plan"]["Plan Rows"]))


def refused_filter(named: RosettaError, table: TableId) -> RosettaError:
    """Return the error of a read; a condition that the server cannot compute does not get better with time."""
    sqlstate = str(named.detail.get("sqlstate"))
    if sqlstate[:2] in ("22", "42") and sqlstate not in ("42501", "42P01"):
        text = f"table {table}: the filter cannot be computed: {named.message}"
        return RosettaError(ErrorKind.CONFIG_INVALID, text, named.detail)
    return named


def check_not_rewritten(reader: psycopg2.extensions.connection, chunks: Sequence[LoadChunk]) -> None:
    """Make sure that relations have the files that they had when they were cut into chunks.

    One that was truncated or written anew after the snapshot looks empty to it.

    Raises:
        TableRewrittenError: naming the first that has not.
    """
    files = {chunk.relation: chunk.filenode for chunk in chunks}
    with reader.cursor() as cursor:
        for relation, filenode in files.items():
            cursor.execute("SELECT pg_relation_filenode(to_regclass(%s))", (relation.quoted,))
            row = cursor.fetchone()
            if row is None or row[0] != filenode:
                raise TableRewrittenError(relation)
