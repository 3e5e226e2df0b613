"""The contract of a destination."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.net import NetChange
from cdc_runner.spec import ResolvedSync

RowFetcher = Callable[[TableSchema, Sequence[tuple[str, ...]]], Mapping[tuple[str, ...], tuple[str | None, ...]]]
"""Reads whole rows from the source by key: key texts to texts of `stream_columns`; rows that are gone are absent."""


@dataclass(frozen=True, slots=True)
class TableState:
    """What a destination remembers of one target table.

    Attributes:
        sync: source and target.
        ready: whether the initial load is complete.
        snapshot: changes of transactions at or below this position are in the loaded rows already.
        schema: the source schema that the target was last made for.
    """

    sync: ResolvedSync
    ready: bool
    snapshot: Position
    schema: TableSchema


@dataclass(frozen=True, slots=True)
class Applied:
    """Result of an apply: how many source events went into which table."""

    events: Mapping[ResolvedSync, int]
    position: Position


class Destination(Protocol):
    """A place that takes net changes in the order of the source's commits. Used by one thread."""

    name: str

    def open(self) -> None:
        """Connect, prepare what the destination keeps for Rosetta, and fence writers that came before.

        Raises:
            RosettaError: a destination kind.
        """
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

    def apply(self, segments: Iterable[Sequence[tuple[ResolvedSync, NetChange]]], through: Position) -> Applied:
        """Apply segments in order and store the position, all in one transaction or not at all.

        Idempotent: a batch at or below the stored position is skipped. After an error nothing of it is stored, and the
        destination must be opened again.

        Raises:
            RosettaError: FENCED when a newer writer has taken over, and the destination kinds.
        """
        ...

    def close(self) -> None:
        """Give up connections; idempotent."""
        ...


def target_of(table: TableId, schema: str | None, target: str | None = None) -> TableId:
    """Return the target of a source table: its own schema name unless the destination has one schema for all."""
    return TableId(schema or table.schema, target or table.name)
