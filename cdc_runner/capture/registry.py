"""Which version of each table's schema the stream is at, and the schema of a table that changes in the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from cdc_runner.capture.base import TableVersion
from cdc_runner.schema import Column, TableId, TableSchema


@dataclass(frozen=True, slots=True)
class StreamColumn:
    """A column as the change stream describes it: name and, where the engine tells, its type's name."""

    name: str
    type_name: str | None


class SchemaRegistry:
    """Table versions of one stream. Used by the capture thread only.

    The stream tells names (and type names) of columns, the source's catalog everything else but possibly of a later
    moment. `resolve` joins the two: the stream decides which columns there are, the catalog what they are.
    """

    def __init__(self, known: Iterable[TableSchema], read: Callable[[TableId], TableSchema | None]) -> None:
        """Args:
        known: schemas at the position where the stream begins.
        read: reads a table's present schema from the source's catalog, None when the table is gone.
        """
        self._versions = {schema.table: TableVersion(schema, 1) for schema in known}
        self._read = read

    def current(self, table: TableId) -> TableVersion | None:
        """The version of a table that the stream reached last."""
        return self._versions.get(table)

    def resolve(self, table: TableId, columns: Sequence[StreamColumn] | None) -> TableVersion:
        """Return the version that a newly described table has; a new number when it differs from the last one.

        Args:
            table: identity at the source.
            columns: as the stream describes them now; None when the stream says nothing of them (a truncate).
        """
        before = self._versions.get(table)
        if columns is None and before is not None:
            return before
        catalog = self._read(table)
        if columns is None:
            described = [] if catalog is None else [StreamColumn(c.name, None) for c in catalog.stream_columns]
        else:
            described = list(columns)
        schema = merge(table, described, before.schema if before else None, catalog)
        if before is not None and before.schema == schema:
            return before
        version = TableVersion(schema, before.number + 1 if before else 1)
        self._versions[table] = version
        return version


def merge(
    table: TableId, described: Sequence[StreamColumn], before: TableSchema | None, catalog: TableSchema | None
) -> TableSchema:
    """Return the schema of a table whose columns the stream describes.

    A column is taken from the catalog when the catalog has it by name, else from the last known schema by name, else by
    place (it was renamed again since), else as text.
    """
    columns: list[Column] = []
    for place, column in enumerate(described):
        columns.append(_column(column, place, before, catalog, len(described)))
    names = {column.name for column in columns}
    # Generated columns are not in the stream; they stay part of the table.
    known = catalog or before
    columns += [column for column in (known.columns if known else ()) if column.generated and column.name not in names]
    if all(column.number for column in columns):
        columns.sort(key=lambda column: column.number)
    if catalog is not None and set(catalog.column_names) != {column.name for column in columns}:
        # The catalog tells of a later moment: a column that is yet to come may have written the table anew already.
        catalog = replace(catalog, filenode=0)
    for schema in (catalog, before):
        if schema is not None and set(schema.key) <= names and set(schema.primary_key) <= names:
            return replace(schema, table=table, columns=tuple(columns))
    base = catalog or before
    if base is None:
        raise ValueError(f"nothing is known of table {table}")
    key = _rename(base, columns, base.key)
    return replace(
        base, table=table, columns=tuple(columns), key=key, primary_key=_rename(base, columns, base.primary_key)
    )


def _column(
    described: StreamColumn, place: int, before: TableSchema | None, catalog: TableSchema | None, width: int
) -> Column:
    for schema in (catalog, before):
        if schema is None:
            continue
        for column in schema.columns:
            if column.name == described.name and _same_type(described, column):
                return column
    for schema in (catalog, before):
        if schema is not None and len(schema.stream_columns) == width:
            column = schema.stream_columns[place]
            if _same_type(described, column):
                return replace(column, name=described.name)
    for schema in (catalog, before):
        for column in schema.columns if schema else ():
            if column.name == described.name:
                type_name = described.type_name or column.type_name
                return replace(column, type_text=type_name, type_name=type_name)
    return Column(described.name, described.type_name or "text", described.type_name or "text")


def _same_type(described: StreamColumn, column: Column) -> bool:
    """Tell whether the types agree by name; the stream may spell a name in another case."""
    return described.type_name is None or described.type_name.casefold() == column.type_name.casefold()


def _rename(base: TableSchema, columns: Sequence[Column], key: Sequence[str]) -> tuple[str, ...]:
    """Return a key's names after its columns were renamed, found by column number."""
    by_number = {column.number: column.name for column in columns if column.number}
    return tuple(by_number.get(base.column(name).number, name) for name in key)
