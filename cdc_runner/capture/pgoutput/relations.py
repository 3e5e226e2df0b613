"""What the numbers of relations in the stream stand for: table versions, and how their tuples are laid out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from cdc_runner.capture.base import TableVersion
from cdc_runner.capture.pgoutput.messages import Relation
from cdc_runner.capture.registry import SchemaRegistry, StreamColumn, StreamIdentity
from cdc_runner.capture.rows.columns import Layout
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import ReplicaIdentity, TableId

TypeNames = Callable[[Iterable[int]], dict[int, str]]
"""Reads names of types by number from the source's catalog; those that are gone are absent."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a relation stands for: a table version, and the number of the layout of its tuples."""

    version: TableVersion
    layout: int


class Relations:
    """Relations of one connection, resolved when the first row of one is used. Used by the capture thread.

    `layouts` only grows, so that decoding threads may read it.
    """

    def __init__(self, registry: SchemaRegistry, tables: Collection[TableId], type_names: TypeNames) -> None:
        """Args:
        registry: versions of tables.
        tables: the tables to stream; others in the publication are passed over.
        type_names: reads names of types.
        """
        self.layouts: list[Layout] = []
        self._registry = registry
        self._tables = frozenset(tables)
        self._type_names = type_names
        self._types: dict[int, str] = {}
        self._told: dict[int, str] = {}
        self._known: dict[int, tuple[Relation, Resolved | None]] = {}

    def told_type(self, number: int, name: str) -> None:
        """Note a type's name as the stream has it; it counts when the catalog has the type no more."""
        self._told[number] = name

    def look_ahead(self, relations: Iterable[Relation]) -> None:
        """Read the catalog for relations that are resolved next: one by one, hundreds of tables take a second."""
        new = [one.table for one in relations if id(one) not in self._known and one.table in self._tables]
        self._registry.look_ahead(new)

    def resolve(self, relation: Relation) -> Resolved | None:
        """Return what a relation stands for, None when its changes are not wanted.

        Raises:
            RosettaError: the source's catalog cannot be read.
        """
        # By identity: an equal description that comes again may stand for a change that only the catalog shows.
        known = self._known.get(id(relation))
        if known is not None:
            return known[1]
        resolved = self._look_up(relation) if relation.table in self._tables else None
        self._known[id(relation)] = (relation, resolved)
        return resolved

    def forget(self) -> None:
        """A new connection begins: numbers and descriptions come again."""
        self._known.clear()
        self._types.clear()

    def _look_up(self, relation: Relation) -> Resolved:
        unknown = {number for _, number in relation.columns} - self._types.keys()
        if unknown:
            self._types |= self._type_names(unknown)
        described = [
            StreamColumn(name, self._types.get(number, self._told.get(number))) for name, number in relation.columns
        ]
        identity = StreamIdentity(ReplicaIdentity(relation.identity), relation.key)
        version = self._registry.resolve(relation.table, described, identity)
        try:
            layout = Layout.of(version.schema, [name for name, _ in relation.columns])
        except ValueError as error:
            raise RosettaError(
                ErrorKind.CAPTURE_FAILED, f"table {relation.table}: the change stream lacks a column that the table has"
            ) from error
        self.layouts.append(layout)
        return Resolved(version, len(self.layouts) - 1)
