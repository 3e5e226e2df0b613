"""The contract of a destination."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import psycopg2.extensions
import pyarrow as pa

from cdc_runner.capture.publication import SnapshotSlot
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.columns import ColumnPlan
from cdc_runner.shaping.custom_source import CustomSource
from cdc_runner.shaping.evolution import SchemaChange
from cdc_runner.shaping.net import Lookups, Membership, NetChange
from cdc_runner.spec import PostgresAddress, ResolvedSync


class RowFetcher(Protocol):
    """Reads rows from a source."""

    def __call__(
        self, schema: TableSchema, keys: Sequence[tuple[str, ...]], told: bytes = b"", /
    ) -> Mapping[tuple[str, ...], tuple[str | None, ...]]:
        """Return present rows by key: key texts to texts of `stream_columns`; rows that are gone are absent.

        Args:
            schema: of the table, with the key.
            keys: texts.
            told: numbers of the transactions that the rows must show (see `ChangeBatch.numbers`).

        Raises:
            RosettaError: the source kinds.
        """
        ...


SchemaListener = Callable[[ResolvedSync, TableSchema, TableSchema, Sequence[SchemaChange]], None]
"""Told of each change of a source table, after the target follows it."""


@dataclass(frozen=True, slots=True)
class TableState:
    """What a destination remembers of one target table.

    Attributes:
        sync: source and target.
        ready: whether the initial load is complete.
        snapshot: changes of transactions at or below this position are in the loaded rows already.
        schema: the schema that the target was last made for: the source's, or what the sync's shape makes of it.
        source_schema: the source's schema then, where a shape makes it another; None where it is `schema`.
        shape: fingerprint of the sync's shape that the rows have; empty for a plain copy.
        joining: the stream writes the target since `snapshot`, and a resync beside it has yet to bring what the source
            held before.
    """

    sync: ResolvedSync
    ready: bool
    snapshot: Position
    schema: TableSchema
    source_schema: TableSchema | None = None
    shape: str = ""
    joining: bool = False

    @property
    def captured_schema(self) -> TableSchema:
        """The schema of the source's table."""
        return self.source_schema or self.schema


@dataclass(frozen=True, slots=True)
class LoadChunk:
    """A range of pages of one source relation (the table, or a leaf of a partitioned one) that is copied at once.

    Attributes:
        number: counted from 0 in each target table.
        relation: the source relation.
        filenode: its file when the load was planned; another one later means that it was rewritten or truncated.
        from_page: first page.
        to_page: first page after the range; None for the rest of the relation, pages to come included.
        row_count: rows copied; None while it is not done.
    """

    number: int
    relation: TableId
    filenode: int | None
    from_page: int
    to_page: int | None
    row_count: int | None = None


class Computed(Protocol):
    """A target whose rows are computed, not copied."""

    def target_schema(self, schema: TableSchema) -> TableSchema:
        """Return what the target looks like for a version of the source's table."""
        ...

    def load(
        self, source: CustomSource, members: Membership, lookups: Lookups, write: Callable[[pa.Table], None]
    ) -> None:
        """Compute the whole target; rows are given to `write` as texts in the order of the target's columns."""
        ...


@dataclass(frozen=True, slots=True)
class TableLoad:
    """One target table to load.

    Attributes:
        state: its state; not ready.
        chunks: the plan; chunks with a row count are done.
        resumed: some chunks are from an earlier snapshot, so that rows may be met twice.
        plan: how the rows are shaped; None for a plain copy.
        computed: gives the rows where they are computed; such a load is one transaction, and has no chunks.
    """

    state: TableState
    chunks: Sequence[LoadChunk]
    resumed: bool
    plan: ColumnPlan | None = None
    computed: Computed | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """Result of an apply.

    Attributes:
        events: how many source events went into which table.
        position: up to where everything is durable now.
    """

    events: Mapping[ResolvedSync, int]
    position: Position


@dataclass(frozen=True, slots=True)
class ApplyMode:
    """How a batch is applied.

    Attributes:
        careful: delete rows before they are written again, so that unique values may change places.
        isolate: search for the rows that the target refuses, put them aside and write all the others.
        hold: SQLSTATEs that end the search with an error, since the target may yet be made to take such rows.
        immediate: check deferred constraints at once.
        replay: changes of waiting keys are written, which else are put aside.
    """

    careful: bool = False
    isolate: bool = False
    hold: frozenset[str] = frozenset()
    immediate: bool = False
    replay: bool = False


class ReloadNeeded(RosettaError):
    """Rows that the target holds have new values that only the source knows: the table must be loaded again."""

    def __init__(self, table: TableId, why: str) -> None:
        RosettaError.__init__(
            self,
            ErrorKind.SCHEMA_CHANGE_HELD,
            f"table {table} must be loaded again: {why}",
            {"table": str(table)},
        )
        self.table = table


class Destination(Protocol):
    """A place that takes changes in the order of the source's commits. Used by one thread."""

    name: str
    takes_events: bool
    """Whether `apply` is to be given every event with its position (`NetKind.EVENTS`) in place of net changes."""
    makes: frozenset[str]
    """What there is of a prepared target, of `table_destination`, `table_landing`, `stream` and `task`."""

    # -- session and memory ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, prepare what the destination keeps for Rosetta, and fence writers that came before.

        Raises:
            RosettaError: a destination kind.
        """
        ...

    def close(self) -> None:
        """Give up connections; idempotent."""
        ...

    def position(self) -> Position | None:
        """Return the position up to which everything is durable here; None before the first load began."""
        ...

    def start_at(self, position: Position) -> None:
        """Store the position at which a new stream begins."""
        ...

    def table_states(self) -> list[TableState]:
        """Return what is remembered of each target table."""
        ...

    def remember_all(self, tables: Sequence[TableState]) -> None:
        """Store states of tables."""
        ...

    def reload_states(self) -> None:
        """Read the tables' states again, after a load changed them."""
        ...

    def load_again(self, target: TableId) -> None:
        """Note that a target table has to be loaded anew before the stream goes on."""
        ...

    def let_go(self, wanted: Collection[TableId]) -> None:
        """Note that no other targets than these are fed: one that is fed again is loaded anew, as it missed changes.

        What was made for the others is removed where it is of no use to anybody; the targets stay as they are.
        """
        ...

    def reset(self) -> None:
        """Forget the position, and have every table loaded anew."""
        ...

    # -- initial load ------------------------------------------------------------------------------------------------

    def plan_load(
        self,
        source: psycopg2.extensions.connection,
        wanted: Sequence[tuple[ResolvedSync, TableSchema]],
        computed: Mapping[TableId, Computed],
    ) -> list[TableLoad]:
        """Make the targets that are not there, and return what has to be loaded into them. The plan survives a restart.

        Args:
            source: a session of the source, to measure its tables.
            wanted: every table that the destination is to hold, with its schema at the source; a sync that is no plain
                copy has a target as `column_plan` says.
            computed: the targets, by name, whose rows are computed.

        Raises:
            RosettaError: DESTINATION_SCHEMA when a target is there already and does not fit or is not empty.
        """
        ...

    def load(
        self,
        source: PostgresAddress,
        loads: Sequence[TableLoad],
        snapshot: SnapshotSlot,
        *,
        stopping: threading.Event,
        progress: Callable[[ResolvedSync, int], None],
    ) -> None:
        """Copy what was planned under a snapshot, and mark the tables as ready.

        Args:
            source: where to read.
            loads: the plan, with the snapshot's position; remembered.
            snapshot: held open by the caller.
            stopping: set to end early, between two chunks.
            progress: told of rows copied into a table.

        Raises:
            RosettaError: the first failure; what is done stays done.
        """
        ...

    # -- changes -----------------------------------------------------------------------------------------------------

    def apply(
        self,
        segments: Iterable[Sequence[tuple[ResolvedSync, NetChange]]],
        through: Position,
        commit_time: float = 0.0,
        *,
        careful: bool = False,
    ) -> Applied:
        """Apply segments in order, exactly once whatever was interrupted before.

        A batch at or below what is durable already is skipped. After an error the destination must be opened again; it
        holds all of the batch or, seen through `position`, nothing of it.

        Args:
            segments: changes in order.
            through: position of the last transaction among them.
            commit_time: its commit time at the source, seconds since the epoch.
            careful: write rows so that unique values may change places.

        Raises:
            ReloadNeeded: only the source knows what a table holds after a schema change.
            RosettaError: FENCED when a newer writer has taken over, and the destination kinds.
        """
        ...

    def catch_up_schema(self, present: Callable[[TableId], TableSchema | None]) -> bool:
        """Follow schema changes that the stream does not tell of, after a batch was refused; tell whether any was made.

        Args:
            present: reads the present schema that the source's table has for a target.
        """
        ...


def target_of(table: TableId, schema: str | None, target: str | None = None) -> TableId:
    """Return the target of a source table: its own schema name unless the destination has one schema for all."""
    return TableId(schema or table.schema, target or table.name)
