"""Takes out of events what must wait, and knows what waits, for one destination session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cdc_runner.destinations.letters import Refusal, RowChange, RowOperation, identity_columns, key_hash
from cdc_runner.destinations.marks import Mark, WaitingTable
from cdc_runner.destinations.snowflake.waiting import EventMark
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.spec import ResolvedSync

MISFIT = "22000"
"""SQLSTATE of a value that the target's type cannot hold; the service itself has none for it."""


@dataclass(frozen=True, slots=True)
class Aside:
    """A change that is put aside, the position of its event, and whether a later one of its key is there already."""

    change: RowChange
    position: str
    late: bool = False


@dataclass(frozen=True, slots=True)
class Split:
    """What is to be sent, what waits, and whether a truncate makes void what waited before."""

    rows: pa.Table
    aside: list[Aside]
    emptied: bool


class EventDiversion:
    """The waiting keys of one destination, as its session knows them."""

    def __init__(self) -> None:
        self.marks: list[EventMark] = []
        self.tables: dict[TableId, WaitingTable] = {}
        self.superseded = 0
        """Changes that a TRUNCATE or a new load made void, since the start."""
        self._known: set[tuple[TableId, str]] = set()

    def load(self, marks: Sequence[EventMark]) -> None:
        """Take what is stored for what waits."""
        self.marks = []
        self.tables = {}
        self._known = set()
        self.add(marks)

    def add(self, marks: Sequence[EventMark]) -> None:
        """Let keys wait whose marks are stored."""
        self.marks += marks
        for one in marks:
            self._known.add((one.mark.target, one.position))
            self._count(one.mark)

    def remove(self, entries: Iterable[str]) -> None:
        """Let keys flow whose marks were removed."""
        gone = set(entries)
        self.load([one for one in self.marks if one.mark.entry not in gone])

    def split(self, sync: ResolvedSync, schema: TableSchema, rows: pa.Table, refused: Mapping[str, str]) -> Split:
        """Return events without those that are refused or whose keys wait; these wait from now on.

        Args:
            sync: source and target.
            schema: of the events.
            rows: events in order, without `m`.
            refused: position -> reason, of those that cannot be carried.
        """
        table = self.tables.get(sync.target)
        if table is None and not refused:
            return Split(rows, [], False)
        keys = _key_columns(schema)
        everything = table is not None and table.key_columns != identity_columns(schema)
        waiting = set() if table is None else set(table.counts)
        places = range(rows.num_rows) if everything else self._candidates(rows, keys, table, refused)
        aside: list[Aside] = []
        taken: list[int] = []
        emptied = False
        for place, row in zip(places, rows.take(pa.array(places, pa.int64())).to_pylist(), strict=True):
            position = str(Position(row["lsn"], row["seq"]))
            if row["op"] == "t":
                waiting.clear()
                aside.clear()
                emptied = emptied or table is not None
                continue
            hashed = key_hash([row[name] for name in keys])
            why = refused.get(position)
            if why is None and not everything and hashed not in waiting:
                continue
            waiting.add(hashed)
            taken.append(place)
            refusal = None if why is None else Refusal(MISFIT, why)
            if (sync.target, position) not in self._known:
                aside.append(Aside(row_change(sync, schema, row, refusal), position))
        kept = sorted(set(range(rows.num_rows)).difference(taken))
        return Split(rows.take(pa.array(kept, pa.int64())) if taken else rows, aside, emptied)

    def _candidates(
        self, rows: pa.Table, keys: Sequence[str], table: WaitingTable | None, refused: Mapping[str, str]
    ) -> list[int]:
        """Return the places of events that may have to wait: by the first identifying column alone, and truncates."""
        if table is not None and table.first_values is None:
            return list(range(rows.num_rows))
        wanted: set[str | None] = set() if table is None else set(table.first_values or ())
        if refused:
            positions = [Position.parse(one) for one in refused]
            hit = pc.and_(
                pc.is_in(rows.column("lsn"), value_set=pa.array([one.lsn for one in positions], pa.int64())),
                pc.is_in(rows.column("seq"), value_set=pa.array([one.ordinal for one in positions], pa.int64())),
            )
            wanted |= set(rows.column(keys[0]).filter(hit).to_pylist())
        values = pa.array(list(wanted), pa.string())
        candidate = pc.is_in(rows.column(keys[0]), value_set=values)
        candidate = pc.or_(candidate, pc.equal(rows.column("op"), "t"))
        return list(pc.indices_nonzero(candidate).to_pylist())

    def forget(self, target: TableId) -> None:
        """Let a target's keys flow: it was emptied, or is loaded anew."""
        table = self.tables.pop(target, None)
        self._known = {one for one in self._known if one[0] != target}
        self.marks = [one for one in self.marks if one.mark.target != target]
        if table is not None:
            self.superseded += sum(table.counts.values())

    def _count(self, mark: Mark) -> None:
        table = self.tables.get(mark.target)
        if table is None:
            table = self.tables[mark.target] = WaitingTable(mark.source, mark.key_columns, first_values=set())
        table.counts[mark.key_hash] = table.counts.get(mark.key_hash, 0) + 1
        if mark.key is None:
            table.first_values = None
        elif table.first_values is not None:
            table.first_values.add(mark.key[0])
        since = mark.created_at.timestamp()
        table.oldest_at = since if table.oldest_at is None else min(table.oldest_at, since)


def row_change(
    sync: ResolvedSync, schema: TableSchema, row: Mapping[str, object], refusal: Refusal | None
) -> RowChange:
    """Return the change of one event."""
    values = tuple(None if (value := row[f"c{n}"]) is None else str(value) for n in range(len(schema.stream_columns)))
    if not schema.key:
        count = 1 if row["op"] == "i" else -1
        return RowChange(sync, schema, RowOperation.COUNT, values, None, count, refusal)
    if row["op"] == "d":
        return RowChange(sync, schema, RowOperation.DELETE, values, refusal=refusal)
    unchanged = row["x"]
    marks = None if unchanged is None else str(unchanged)
    return RowChange(sync, schema, RowOperation.PUT, values, marks, refusal=refusal)


def _key_columns(schema: TableSchema) -> list[str]:
    names = schema.stream_names
    return [f"c{names.index(name)}" for name in identity_columns(schema)]
