"""Takes out of net changes what must wait, and keeps the marks of what waits, for one destination session."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import psycopg2.extensions
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from cdc_runner.destinations.base import RowFetcher
from cdc_runner.destinations.letters import LetterSink, Refusal, RowChange, RowOperation, identity_columns, key_hash
from cdc_runner.destinations.marks import WaitingTable
from cdc_runner.destinations.postgres import waiting
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import ResolvedSync

log = structlog.get_logger()

Cursor = psycopg2.extensions.cursor
FLUSH_ROWS = 2000


class Diversion:
    """The waiting keys of one destination as its session knows them.

    What is put aside in a transaction counts as waiting at once; after an error the marks are read again (`load`).
    """

    def __init__(self, pipeline: str, fetch: RowFetcher) -> None:
        """Args:
        pipeline: under which the marks are kept.
        fetch: reads rows from the source.
        """
        self._pipeline = pipeline
        self._fetch = fetch
        self.tables: dict[TableId, WaitingTable] = {}
        self.superseded = 0
        """Changes that a TRUNCATE or a new load made void, since the start."""
        self.stale = False
        """Set, under the lock of the position, by a backfill of this process that has written marks."""
        self._pending: list[RowChange] = []
        self._version = -1

    def load(self, cursor: Cursor) -> None:
        """Read the marks."""
        self._pending.clear()
        self.stale = False
        self._version = waiting.read_version(cursor, self._pipeline)
        self.tables = waiting.read_waiting(cursor, self._pipeline)

    def begin(self, cursor: Cursor) -> None:
        """A transaction has locked the position: notice what other sessions changed. Costs nothing when none waits."""
        self._pending.clear()
        if (self.tables or self.stale) and waiting.read_version(cursor, self._pipeline) != self._version:
            self.load(cursor)

    # -- what waits is taken out ---------------------------------------------------------------------------------------

    def route(self, cursor: Cursor, sync: ResolvedSync, change: NetChange, *, isolating: bool) -> Iterator[NetChange]:
        """Yield what is to be applied now; changes of waiting keys are put aside.

        Args:
            cursor: of the apply transaction.
            sync: source and target.
            change: what the stream brought.
            isolating: refused rows are searched for, which cannot be done with moves.
        """
        table = self.tables.get(sync.target)
        if change.truncate and table is not None:
            self._forget(cursor, sync.target)
            table = None
        if change.kind is NetKind.MOVE and (isolating or (table is not None and self._moves(change, table))):
            change = self._settle_moves(change)
        if table is None or change.rows.num_rows == 0:
            yield change
            return
        places = _waiting_places(change, table)
        if places:
            for place in places:
                self.put_aside(row_change(sync, change, place))
            kept = sorted(set(range(change.rows.num_rows)).difference(places))
            change = replace(change, rows=change.rows.take(pa.array(kept, pa.int64())))
        yield change

    def _moves(self, change: NetChange, table: WaitingTable) -> bool:
        """Tell whether a move leads from or to a key that waits."""
        schema = change.version.schema
        if schema.key != table.key_columns:
            return True
        new = [f"c{schema.stream_names.index(name)}" for name in schema.key]
        old = [f"k{place}" for place in range(len(schema.key))]
        return any(
            waiting_hash(row, columns) in table.counts for row in change.rows.to_pylist() for columns in (old, new)
        )

    def _settle_moves(self, change: NetChange) -> NetChange:
        """Return moves as deletes and whole rows, whose missing values are read from the source by the new key.

        The source's present row is taken: later changes of it are still to come. Of a row that is gone by now only the
        delete of its old key is left; what became of it is still to come.
        """
        schema = change.version.schema
        names = [f"c{number}" for number in range(len(schema.stream_columns))]
        keys = [schema.stream_names.index(name) for name in schema.key]
        rows = change.rows.to_pylist()
        wanted = [tuple(str(row[names[place]]) for place in keys) for row in rows]
        origin = change.origin
        found = self._fetch(schema, wanted, change.told) if origin is None else origin.fetch(wanted)
        log.info("apply.rows_fetched", table=str(schema.table), rows=len(found))
        settled: list[dict[str, object]] = []
        for row, key in zip(rows, wanted, strict=True):
            gone = dict.fromkeys(names)
            gone |= {names[place]: row[f"k{number}"] for number, place in enumerate(keys)}
            settled.append({"d": True, "x": None, **gone})
            values = found.get(key)
            if values is not None:
                settled.append({"d": False, "x": None, **dict(zip(names, values, strict=True))})
        return replace(change, kind=NetKind.MERGE, rows=merge_rows(settled, len(names)), partial=False, deletes=True)

    # -- what is put aside ---------------------------------------------------------------------------------------------

    def refuse(self, sync: ResolvedSync, change: NetChange, place: int, why: Refusal) -> None:
        """Put a row aside that the target has refused."""
        self.put_aside(replace(row_change(sync, change, place), refusal=why))

    def put_aside(self, change: RowChange) -> None:
        """Put a row change aside; its key waits from now on."""
        table = self.tables.get(change.sync.target)
        if table is None:
            columns = identity_columns(change.schema)
            table = WaitingTable(change.sync.source, columns, first_values=set() if change.schema.key else None)
            self.tables[change.sync.target] = table
        table.counts[change.key_hash] = table.counts.get(change.key_hash, 0) + 1
        if table.first_values is not None:
            table.first_values.add(str(change.key[0]))
        self._pending.append(change)

    @property
    def refused(self) -> set[str]:
        """SQLSTATEs of what was refused in this transaction and is not stored yet."""
        return {change.refusal.sqlstate for change in self._pending if change.refusal is not None}

    def expect_replay(self) -> None:
        """A replay begins: what is refused is told by `take_refused`."""
        self._pending.clear()

    def take_refused(self) -> dict[tuple[TableId, str], RowChange]:
        """Return what a replay was refused, by target and key; its marks are there already."""
        refused = {(change.sync.target, change.key_hash): change for change in self._pending}
        for target, key in refused:
            self.tables[target].counts[key] -= 1
        self._pending.clear()
        return refused

    def release(self, cursor: Cursor, keys: Iterable[tuple[TableId, str]]) -> None:
        """Let keys flow again whose marks the caller has removed in this transaction."""
        for target, key in keys:
            table = self.tables.get(target)
            if table is not None:
                table.counts.pop(key, None)
                if not table.counts:
                    del self.tables[target]
        self._version = waiting.raise_version(cursor, self._pipeline)

    def flush(self, cursor: Cursor, sink: LetterSink | None, position: Position, commit_time: float) -> None:
        """Store what was put aside, durably in the queue first, then its marks in the caller's transaction.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE.
        """
        if not self._pending:
            return
        if sink is None:
            raise RosettaError(ErrorKind.DEAD_LETTER_UNAVAILABLE, "there is no dead-letter queue to put rows aside")
        for start in range(0, len(self._pending), FLUSH_ROWS):
            stored = sink.append(self._pending[start : start + FLUSH_ROWS], position, commit_time)
            waiting.add_marks(cursor, self._pipeline, stored, position.lsn)
        self._pending.clear()
        self._version = waiting.raise_version(cursor, self._pipeline)

    def _forget(self, cursor: Cursor, target: TableId) -> None:
        self.superseded += waiting.forget_target(cursor, self._pipeline, target)
        self._pending = [change for change in self._pending if change.sync.target != target]
        del self.tables[target]
        self._version = waiting.raise_version(cursor, self._pipeline)


def row_change(sync: ResolvedSync, change: NetChange, place: int) -> RowChange:
    """Return one row of a net change."""
    row = change.rows.slice(place, 1).to_pylist()[0]
    schema = change.version.schema
    values = tuple(row[f"c{number}"] for number in range(len(schema.stream_columns)))
    if change.kind is NetKind.MULTISET:
        return RowChange(sync, schema, RowOperation.COUNT, values, count=row["n"])
    if row["d"]:
        return RowChange(sync, schema, RowOperation.DELETE, values)
    return RowChange(sync, schema, RowOperation.PUT, values, row["x"])


def merge_rows(rows: Sequence[Mapping[str, object]], width: int) -> pa.Table:
    """Return rows in the layout of a MERGE change."""
    fields = [("d", pa.bool_()), ("x", pa.string()), *((f"c{number}", pa.string()) for number in range(width))]
    return pa.Table.from_pylist(list(rows), schema=pa.schema(fields))


def multiset_rows(rows: Sequence[Mapping[str, object]], width: int) -> pa.Table:
    """Return rows in the layout of a MULTISET change."""
    fields = [("n", pa.int64()), *((f"c{number}", pa.string()) for number in range(width))]
    return pa.Table.from_pylist(list(rows), schema=pa.schema(fields))


def waiting_hash(row: Mapping[str, object], columns: Sequence[str]) -> str:
    """Return the hash of a row's key."""
    return key_hash([None if row[name] is None else str(row[name]) for name in columns])


def _waiting_places(change: NetChange, table: WaitingTable) -> list[int]:
    """Return the places of rows whose keys wait."""
    schema = change.version.schema
    if identity_columns(schema) != table.key_columns:
        # Keys of the two kinds cannot be compared: the whole table waits.
        return list(range(change.rows.num_rows))
    columns = _key_columns(schema)
    rows = change.rows.select(columns)
    if table.first_values is None:
        candidates = range(rows.num_rows)
    else:
        first = rows.column(columns[0])
        hits = pc.or_(
            pc.is_in(first, value_set=pa.array(list(table.first_values), pa.string())),
            # A group of custom SQL may have NULL in its key.
            pc.is_null(first),
        )
        candidates = pc.indices_nonzero(hits).to_pylist()
    picked = rows.take(pa.array(candidates, pa.int64())).to_pylist()
    return [place for place, row in zip(candidates, picked, strict=True) if waiting_hash(row, columns) in table.counts]


def _key_columns(schema: TableSchema) -> list[str]:
    names = schema.stream_names
    return [f"c{names.index(name)}" for name in identity_columns(schema)]
