"""Which version of each table's schema the stream is at, and the schema of a table that changes in the stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cdc_runner.capture.alignment import StreamColumn, align, is_ahead, is_older_table
from cdc_runner.capture.base import TableVersion
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema

__all__ = ["SchemaRegistry", "StreamColumn", "StreamIdentity", "merge"]


_LOOKS = 10
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class StreamIdentity:
    """What identifies the rows of a table, as the change stream tells.

    Attributes:
        kind: its replica identity.
        key: the columns of the key or index, in the order of the table.
    """

    kind: ReplicaIdentity
    key: tuple[str, ...]


class SchemaRegistry:
    """Table versions of one stream. Used by the capture thread only.

    The stream tells names (and type names) of columns, the source's catalog everything else but possibly of a later
    moment. `resolve` joins the two: the stream decides which columns there are, the catalog what they are.
    """

    def __init__(
        self,
        known: Iterable[TableSchema],
        read: Callable[[TableId], TableSchema | None],
        *,
        read_all: Callable[[Sequence[TableId]], Mapping[TableId, TableSchema]] | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """Args:
        known: schemas at the position where the stream begins.
        read: reads a table's present schema from the source's catalog, None when the table is gone.
        read_all: reads those of many tables at once, for `look_ahead`.
        pause: waits for seconds.
        """
        self._versions = {schema.table: TableVersion(schema, 1) for schema in known}
        self._first = {table: version.schema for table, version in self._versions.items()}
        self._read = read
        self._read_all = read_all
        self._ahead: dict[TableId, TableSchema | None] = {}
        self._pause = pause

    def current(self, table: TableId) -> TableVersion | None:
        """The version of a table that the stream reached last."""
        return self._versions.get(table)

    def look_ahead(self, tables: Sequence[TableId]) -> None:
        """Read the catalog for tables that were described already and are resolved next, all at once."""
        self._ahead.clear()
        if self._read_all is not None and len(tables) > 1:
            found = self._read_all(tables)
            self._ahead = {table: found.get(table) for table in tables}

    def resolve(
        self, table: TableId, columns: Sequence[StreamColumn] | None, identity: StreamIdentity | None = None
    ) -> TableVersion:
        """Return the version that a newly described table has; a new number when it differs from the last one.

        Args:
            table: identity at the source.
            columns: as the stream describes them now; None when the stream says nothing of them (a truncate).
            identity: of its rows, where the stream tells it.
        """
        before = self._versions.get(table)
        if columns is None and before is not None:
            return before
        catalog = self._ahead.pop(table) if table in self._ahead else self._read(table)
        if columns is None:
            described = [] if catalog is None else [StreamColumn(c.name, None) for c in catalog.stream_columns]
        else:
            described = list(columns)
            if before is not None:
                catalog = self._caught_up(described, before.schema, catalog)
        schema = merge(table, described, self._before(table, described, catalog), catalog)
        guessed = False
        if identity is not None:
            schema = _identified(schema, identity, before.schema if before else None)
        elif before is not None and before.schema.oid == schema.oid:
            guessed = _identity(before.schema) != _identity(schema)
        if before is not None and before.schema == schema:
            return before
        version = TableVersion(schema, before.number + 1 if before else 1, guessed)
        self._versions[table] = version
        return version

    def _caught_up(
        self, described: Sequence[StreamColumn], before: TableSchema, catalog: TableSchema | None
    ) -> TableSchema | None:
        """Return the catalog once it shows what the stream tells of: a commit is in the WAL before others can see it.

        It is behind when it shows the columns of before, and the stream others. A column that came and went shows the
        same, so the wait is short.
        """
        for _ in range(_LOOKS):
            if catalog is None or catalog.columns != before.columns or not is_ahead(described, catalog.stream_columns):
                break
            self._pause(_LOOK_SECONDS)
            catalog = self._read(before.table)
        return catalog

    def _before(
        self, table: TableId, described: Sequence[StreamColumn], catalog: TableSchema | None
    ) -> TableSchema | None:
        """Return the schema that a description is a change of: the last version, or the first if it comes again.

        A table that was created again and loaded meanwhile is described as it was before first; what was made of that
        is no ground for what follows.
        """
        version, first = self._versions.get(table), self._first.get(table)
        if first is not None and catalog is not None and first.oid == catalog.oid:
            present = {column.number for column in catalog.columns}
            stays = all(column.number in present for column in first.stream_columns)
            if stays and not is_ahead(described, first.stream_columns):
                return first
        return None if version is None else version.schema


def merge(
    table: TableId, described: Sequence[StreamColumn], before: TableSchema | None, catalog: TableSchema | None
) -> TableSchema:
    """Return the schema of a table whose columns the stream describes.

    The catalog's columns, where it shows the same ones as the stream; else they are told apart by `align`.
    """
    if catalog is not None and not is_ahead(described, catalog.stream_columns):
        known, ahead, columns = catalog, False, list(catalog.stream_columns)
    else:
        if before and catalog and before.oid and catalog.oid and before.oid != catalog.oid:
            # One of them is another table under the same name.
            if is_older_table(described, before.stream_columns, catalog.stream_columns):
                catalog = None
            else:
                before = None
        base = catalog or before
        if base is None:
            raise ValueError(f"nothing is known of table {table}")
        known, ahead = base, True
        columns = align(described, before.stream_columns if before else (), catalog.stream_columns if catalog else ())
    names = {column.name for column in columns}
    # Generated columns are not in the stream; they stay part of the table.
    columns += [column for column in known.columns if column.generated and column.name not in names]
    if all(column.number for column in columns):
        columns.sort(key=lambda column: column.number)
    if ahead:
        # A column that is yet to come in the stream may have written the table anew already.
        known = replace(known, filenode=0)
    numbers = {column.number for column in columns}
    for schema in (known, before or known):
        if all(schema.column(name).number in numbers for name in (*schema.key, *schema.primary_key)):
            known = schema
            break
    key, primary_key = (_rename(known, columns, names) for names in (known.key, known.primary_key))
    return replace(known, table=table, columns=tuple(columns), key=key, primary_key=primary_key)


def _identity(schema: TableSchema) -> frozenset[int | str]:
    """Return the columns that identify rows, by number, so that a rename is no other identity."""
    return frozenset(schema.column(name).number or name for name in schema.key)


def _identified(schema: TableSchema, identity: StreamIdentity, before: TableSchema | None) -> TableSchema:
    """Return a schema with the key that rows have in the stream at this point; the catalog may be ahead of it."""
    if identity.kind is ReplicaIdentity.FULL:
        # Whole rows identify always, a key of the catalog only if it was there already.
        if before is not None and before.oid == schema.oid and not before.key and schema.key:
            return replace(schema, key=(), primary_key=(), replica_identity=identity.kind)
        return (
            schema
            if schema.key or schema.replica_identity is identity.kind
            else replace(schema, replica_identity=identity.kind)
        )
    if identity.kind is ReplicaIdentity.NOTHING or set(identity.key) == set(schema.key):
        return schema
    primary = identity.key if identity.kind is ReplicaIdentity.DEFAULT else schema.primary_key
    return replace(schema, key=identity.key, primary_key=primary, replica_identity=identity.kind)


def _rename(base: TableSchema, columns: Sequence[Column], key: Sequence[str]) -> tuple[str, ...]:
    """Return a key's names after its columns were renamed, found by column number."""
    by_number = {column.number: column.name for column in columns if column.number}
    return tuple(by_number.get(base.column(name).number, name) for name in key)
