"""Net changes of one table into its target, within the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import psycopg2.extensions
import pyarrow as pa
import structlog

from cdc_runner.destinations.base import RowFetcher
from cdc_runner.destinations.postgres import statements, types
from cdc_runner.destinations.postgres.encode import BinaryEncoder
from cdc_runner.destinations.postgres.few_rows import FewRows, Staging, is_small
from cdc_runner.destinations.postgres.statements import TargetShape
from cdc_runner.destinations.postgres.type_names import SchemaMap
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import ResolvedSync

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class KnownTarget:
    """A target table in this session: its shape for one source schema, and the number of its staging tables."""

    schema: TableSchema
    source: TableSchema | None
    shape: TargetShape
    number: int


class TableWriter:
    """Stages rows and writes them. Knows which staging tables the session has.

    What was written is in the target after `flush` only: few rows are held back until so much has come together.
    """

    def __init__(self, encoder: BinaryEncoder, fetch: RowFetcher, map_schema: SchemaMap) -> None:
        """Args:
        encoder: writes rows as binary COPY.
        fetch: reads rows from the source that the target turns out not to have.
        map_schema: source schema to target schema.
        """
        self._encoder = encoder
        self._fetch = fetch
        self._map_schema = map_schema
        self._targets: dict[TableId, KnownTarget] = {}
        self._frozen: dict[TableId, frozenset[str]] = {}
        self._stagings: set[str] = set()
        self._filled: set[str] = set()
        self._few = FewRows()
        self._count = 0

    def begin(self) -> None:
        """A transaction begins: the staging tables are empty."""
        self._filled.clear()
        self._few.begin()

    def flush(self, cursor: psycopg2.extensions.cursor) -> None:
        """Write what is held back."""
        self._few.flush(cursor)

    def forget_session(self) -> None:
        """The session is gone, and its staging tables with it."""
        self._targets.clear()
        self._stagings.clear()
        self._few.forget_session()

    def forget_targets(self) -> None:
        """Targets may have other columns now."""
        self._targets.clear()

    def forget_target(self, table: TableId) -> None:
        """A target may have other columns now."""
        self._targets.pop(table, None)

    def knows(self, table: TableId, schema: TableSchema, source: TableSchema | None = None) -> bool:
        """Tell whether rows of this schema, shaped from that of the source, were written to the target before."""
        target = self._targets.get(table)
        return target is not None and target.schema == schema and target.source == source

    def freeze(self, table: TableId, columns: Iterable[str]) -> None:
        """Write only these columns of a target from now on."""
        self._frozen[table] = frozenset(columns)
        self._targets.pop(table, None)

    def target(self, sync: ResolvedSync, change: NetChange) -> KnownTarget:
        """Return a target's shape for rows of a change."""
        schema, source = change.version.schema, None if change.origin is None else change.origin.schema
        target = self._targets.get(sync.target)
        if target is not None and target.schema == schema and target.source == source:
            return target
        self._count += 1
        column_types = [types.target_type(column, self._map_schema) for column in schema.stream_columns]
        shape = TargetShape.of(sync.target, schema, column_types, self._frozen.get(sync.target))
        target = KnownTarget(schema, source, shape, self._count)
        self._targets[sync.target] = target
        return target

    def stage(self, cursor: psycopg2.extensions.cursor, sync: ResolvedSync, change: NetChange) -> Staging:
        """Make the rows readable to the statements that write them."""
        if is_small(change):
            target = self.target(sync, change)
            return self._few.stage(cursor, change, target.shape, target.number)
        return self._copied(cursor, sync, change)

    def _copied(self, cursor: psycopg2.extensions.cursor, sync: ResolvedSync, change: NetChange) -> Staging:
        """Copy the rows into the session's staging table for this target."""
        target = self.target(sync, change)
        name = f"pg_temp.rosetta_{target.number}_{change.kind.value}"
        if change.rows.num_rows == 0:
            return Staging(name)
        self.flush(cursor)
        if name not in self._stagings:
            cursor.execute(statements.create_staging(change.kind, target.shape, name))
            self._stagings.add(name)
        elif name in self._filled:
            # It empties itself at commit only; an earlier segment of this transaction has used it.
            cursor.execute(f"TRUNCATE {name}")
        self._filled.add(name)
        columns = statements.staging_columns(change.kind, target.shape)
        with self._encoder.encoded(change.rows, columns) as file:
            cursor.copy_expert(f"COPY {name} FROM STDIN (FORMAT binary)", file, size=1 << 18)
        return Staging(name)

    def _write(self, cursor: psycopg2.extensions.cursor, staging: Staging, statement: str) -> int:
        """Run a statement over staged rows; return its count, or -1 of few rows, which are held back."""
        if staging.arguments is not None:
            self._few.send(cursor, staging, statement)
            return -1
        self.flush(cursor)
        cursor.execute(statement)
        return int(cursor.rowcount)

    def take_away(
        self, cursor: psycopg2.extensions.cursor, sync: ResolvedSync, change: NetChange, staging: Staging
    ) -> None:
        """Empty the target if it was truncated, and delete the rows that are staged as gone."""
        shape = self.target(sync, change).shape
        if change.truncate and change.emptied_at is not None:
            self.flush(cursor)
            cursor.execute(statements.mark_deleted(shape.table, change.emptied_at))
        elif change.truncate:
            self.truncate(cursor, shape.table)
        if not change.deletes or change.rows.num_rows == 0:
            return
        if change.kind is NetKind.MERGE:
            self._write(cursor, staging, statements.delete_keys(shape, staging.rows))
            if has_null_key(change, shape):
                self._write(cursor, staging, statements.delete_null_keys(shape, staging.rows, gone=True))
        elif change.kind is NetKind.MULTISET:
            self._write(cursor, staging, statements.delete_multiset(shape, staging.rows))

    def put(
        self,
        cursor: psycopg2.extensions.cursor,
        sync: ResolvedSync,
        change: NetChange,
        staging: Staging,
        *,
        careful: bool,
    ) -> None:
        """Write the staged rows that the target is to hold.

        Args:
            cursor: of the apply transaction.
            sync: source and target.
            change: what was staged.
            staging: where its rows are.
            careful: delete the rows before they are written, so that unique values may change places.
        """
        if change.rows.num_rows == 0:
            return
        shape = self.target(sync, change).shape
        if change.kind is NetKind.MOVE:
            if careful:
                self._write(cursor, staging, statements.delete_moved_onto(shape, staging.rows))
            if self._write(cursor, staging, statements.move(shape, staging.rows)) < change.rows.num_rows:
                self._fetch_moved(cursor, sync, change)
        elif change.kind is NetKind.MULTISET:
            self._write(cursor, staging, statements.insert_multiset(shape, staging.rows))
        elif change.updates and not careful and self._updated(cursor, shape, change, staging):
            return
        else:
            if change.partial:
                staging = self._with_missing(cursor, sync, change, staging, careful=careful)
            if careful:
                if change.partial:
                    self._write(cursor, staging, statements.complete_partial(shape, staging.rows))
                self._write(cursor, staging, statements.delete_upserted(shape, staging.rows))
            elif change.partial:
                self._write(cursor, staging, statements.update_partial(shape, staging.rows))
            if has_null_key(change, shape):
                self._write(cursor, staging, statements.delete_null_keys(shape, staging.rows, gone=False))
            self._write(cursor, staging, statements.upsert(shape, staging.rows, partial=change.partial))

    def _updated(
        self, cursor: psycopg2.extensions.cursor, shape: TargetShape, change: NetChange, staging: Staging
    ) -> bool:
        """Update rows that should be there, and tell whether all were; if not, the upsert that follows writes them."""
        if staging.arguments is not None or len(shape.written) <= len(shape.key):
            return False
        count = self._write(cursor, staging, statements.update_whole(shape, staging.rows))
        cursor.execute(statements.AFTER_UPDATE)
        return bool(count == change.rows.num_rows)

    def _with_missing(
        self,
        cursor: psycopg2.extensions.cursor,
        sync: ResolvedSync,
        change: NetChange,
        staging: Staging,
        *,
        careful: bool,
    ) -> Staging:
        """Complete the rows that the target does not hold; return where the rows are then."""
        shape = self.target(sync, change).shape
        if staging.arguments is not None:
            missing = statements.missing_partial(shape, staging.rows)
            if not careful and not change.marks_deletes and not self._few.ask(cursor, staging, missing):
                return staging
            # They have to be changed, for which they must be in a table.
            staging = self._copied(cursor, sync, change)
        self.fetch_missing(cursor, shape, change, staging.rows)
        return staging

    def fetch_missing(
        self, cursor: psycopg2.extensions.cursor, shape: TargetShape, change: NetChange, staging: str
    ) -> None:
        """Complete rows that the target does not hold although the stream only says what changed of them.

        That is so when a row moved between chunks of an initial load that was interrupted, and when a row has come to
        meet the sync's filter. The source's present row is taken: later changes of it are still to come. A row that is
        gone by now is left out: its delete is to come.
        """
        if change.marks_deletes:
            cursor.execute(statements.leave_out_marks(shape, staging))
        cursor.execute(statements.missing_partial(shape, staging))
        keys = [tuple(row) for row in cursor.fetchall()]
        if not keys:
            return
        log.info("apply.rows_fetched", table=str(shape.table), rows=len(keys))
        found = self._present(change, keys)
        # The keys as they are staged: a cast to text may take the padding off.
        present = [_with_key(found[key], shape, key) for key in keys if key in found]
        if present:
            cursor.execute(statements.complete_fetched(shape, staging), _columns(present))
        gone = [key for key in keys if key not in found]
        if gone:
            cursor.execute(statements.leave_out(shape, staging), _columns(gone))

    def _fetch_moved(self, cursor: psycopg2.extensions.cursor, sync: ResolvedSync, change: NetChange) -> None:
        """Write a row that got another key, and that the target does not hold under the old one.

        As with `_fetch_missing`, the source's present row under the new key is taken, if there is one.
        """
        schema = change.version.schema
        places = [schema.stream_names.index(name) for name in schema.key]
        keys = list(zip(*(change.rows.column(f"c{place}").to_pylist() for place in places), strict=True))
        log.info("apply.rows_fetched", table=str(sync.target), rows=len(keys))
        found = list(self._present(change, keys).values())
        values = {
            f"c{place}": pa.array([row[place] for row in found], pa.string())
            for place in range(len(schema.stream_names))
        }
        rows = pa.table({"d": pa.repeat(False, len(found)), "x": pa.nulls(len(found), pa.string()), **values})
        whole = replace(change, kind=NetKind.MERGE, rows=rows, partial=False)
        self.put(cursor, sync, whole, self.stage(cursor, sync, whole), careful=False)

    def _present(
        self, change: NetChange, keys: Sequence[tuple[str, ...]]
    ) -> Mapping[tuple[str, ...], tuple[str | None, ...]]:
        """Read rows from the source by key, as the sync shapes them."""
        if change.origin is not None:
            return change.origin.fetch(keys)
        return self._fetch(change.version.schema, keys, change.told)

    def truncate(self, cursor: psycopg2.extensions.cursor, table: TableId) -> None:
        """Empty a table; one that foreign keys point to cannot be truncated by itself."""
        self.flush(cursor)
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM pg_constraint WHERE contype = 'f' AND confrelid = %s::regclass)",
            (table.quoted,),
        )
        row = cursor.fetchone()
        referenced = row is not None and row[0]
        cursor.execute(f"DELETE FROM {table.quoted}" if referenced else f"TRUNCATE {table.quoted}")


def _with_key(row: tuple[str | None, ...], shape: TargetShape, key: tuple[str, ...]) -> tuple[str | None, ...]:
    texts = dict(zip(shape.key, key, strict=True))
    return tuple(texts.get(place, text) for place, text in enumerate(row))


def _columns(rows: Sequence[tuple[str | None, ...]]) -> list[list[str | None]]:
    return [list(column) for column in zip(*rows, strict=True)]


def has_null_key(change: NetChange, shape: TargetShape) -> bool:
    """Tell whether a key has a NULL in it, as groups of custom SQL may; no unique index tells such keys apart."""
    return any(change.rows.column(f"c{number}").null_count for number in shape.key)
