"""Lineage: which columns of which source tables each column of a target comes from. Pure: names in, names out.

It is for people to look at. What a statement of custom SQL reads is found with sqlglot here, so that no process has to
be started for it; what runs was read by DuckDB's own parser (`custom_sql`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlglot
from sqlglot import exp

from cdc_runner.schema import TableId
from cdc_runner.spec import SyncMode, TableShape

ADDED_BY_HISTORY = (
    "_rosetta_operation", "_rosetta_lsn", "_rosetta_ordinal", "_rosetta_committed_at", "_rosetta_unchanged",
)  # fmt: skip
ADDED_BY_SOFT_DELETE = ("_rosetta_deleted", "_rosetta_deleted_at")


@dataclass(frozen=True, slots=True, order=True)
class SourceColumn:
    """A column of a source table, or of a table of the destination in which rows are looked up."""

    table: TableId
    name: str
    looked_up: bool = False

    def __str__(self) -> str:
        return f"{'destination.' if self.looked_up else ''}{self.table}.{self.name}"


@dataclass(frozen=True, slots=True)
class ColumnLineage:
    """Where a column of a target comes from.

    Attributes:
        name: at the target.
        sources: the columns that its value is computed from.
        how: `copied`, `computed`, `added by Rosetta`, or the mask: `hash`, `null`, `truncate`, `constant`.
    """

    name: str
    sources: tuple[SourceColumn, ...]
    how: str


@dataclass(frozen=True, slots=True)
class TableLineage:
    """Where a target comes from.

    Attributes:
        tables: source tables that it reads, that of its sync first.
        columns: its columns; empty when the source's columns are not known.
        filter_columns: columns that decide which rows it has.
        lookups: tables of the destination in which rows are looked up.
    """

    tables: tuple[TableId, ...]
    columns: tuple[ColumnLineage, ...]
    filter_columns: tuple[SourceColumn, ...] = ()
    lookups: tuple[TableId, ...] = ()


def table_lineage(source: TableId, shape: TableShape, known: Mapping[TableId, Sequence[str]]) -> TableLineage:
    """Return where a target comes from.

    Args:
        source: the table of its sync.
        shape: of the sync.
        known: columns of the source's tables; what is not among them is left out.
    """
    if shape.custom_sql is not None:
        return _custom(source, shape.custom_sql, known)
    renamed, masks = dict(shape.rename), dict(shape.masks)
    columns = [
        ColumnLineage(
            renamed.get(name, name),
            () if name in masks and masks[name].kind.value in ("null", "constant") else (SourceColumn(source, name),),
            masks[name].kind.value if name in masks else "copied",
        )
        for name in known.get(source, ())
        if (shape.columns is None or name in shape.columns) and name not in shape.exclude
    ]
    added = {SyncMode.HISTORY: ADDED_BY_HISTORY, SyncMode.SOFT_DELETE: ADDED_BY_SOFT_DELETE}.get(shape.mode, ())
    columns += [ColumnLineage(name, (), "added by Rosetta") for name in added if columns]
    return TableLineage((source,), tuple(columns), tuple(SourceColumn(source, name) for name in shape.filter_columns))


def _custom(source: TableId, sql: str, known: Mapping[TableId, Sequence[str]]) -> TableLineage:
    try:
        tree = sqlglot.parse_one(sql, dialect="duckdb")
    except (sqlglot.errors.SqlglotError, RecursionError):
        return TableLineage((source,), ())
    if not isinstance(tree, exp.Select):
        return TableLineage((source,), ())
    names = _Names(tree, source, known)
    columns = []
    for output in tree.expressions:
        inner = output.this if isinstance(output, exp.Alias) else output
        sources = tuple(sorted(names.columns_of(inner)))
        how = "copied" if isinstance(inner, exp.Column) and len(sources) == 1 else "computed"
        columns.append(ColumnLineage(output.alias_or_name, sources, how))
    where = tree.args.get("where")
    deciding = () if where is None else tuple(sorted(names.columns_of(where)))
    tables = tuple(dict.fromkeys([source, *names.tables.values()]))
    return TableLineage(tables, tuple(columns), deciding, tuple(dict.fromkeys(names.lookups.values())))


class _Names:
    """What the names in a statement mean."""

    def __init__(self, tree: exp.Select, source: TableId, known: Mapping[TableId, Sequence[str]]) -> None:
        self._known = known
        self._outputs = {one.alias.lower(): one.this for one in tree.expressions if isinstance(one, exp.Alias)}
        self.tables: dict[str, TableId] = {}
        self.lookups: dict[str, TableId] = {}
        for use in tree.find_all(exp.Table):
            if use.catalog:
                self.lookups[use.alias_or_name.lower()] = TableId(use.db, use.name)
                continue
            found = [table for table in known if table.name.lower() == use.name.lower()]
            table = source if use.name.lower() == source.name.lower() else next(iter(found), None)
            if table is not None:
                self.tables[use.alias_or_name.lower()] = table

    def columns_of(self, node: exp.Expression, seen: frozenset[str] = frozenset()) -> set[SourceColumn]:
        """Return the source's columns that an expression reads."""
        found: set[SourceColumn] = set()
        for column in node.find_all(exp.Column):
            own = self._resolve(column)
            alias = column.name.lower()
            if not own and not column.table and alias in self._outputs and alias not in seen:
                # A later column may use the name of an earlier one.
                own = self.columns_of(self._outputs[alias], seen | {alias})
            elif not own and not column.table and len(self.lookups) == 1 and self._known:
                own = {SourceColumn(next(iter(self.lookups.values())), column.name, looked_up=True)}
            found |= own
        return found

    def _resolve(self, column: exp.Column) -> set[SourceColumn]:
        if column.table.lower() in self.lookups:
            # What columns the destination has is not known here.
            return {SourceColumn(self.lookups[column.table.lower()], column.name, looked_up=True)}
        tables = self.tables.items()
        wanted = [table for name, table in tables if not column.table or name == column.table.lower()]
        return {
            SourceColumn(table, name)
            for table in wanted
            for name in self._known.get(table, ())
            if name.lower() == column.name.lower()
        }


def mermaid(targets: Sequence[tuple[str, str, TableId, TableLineage]]) -> str:
    """Return a Mermaid flow chart.

    Args:
        targets: name of the source, name of the destination, the target, and its lineage.
    """
    lines = ["flowchart LR"]
    numbers: dict[str, str] = {}

    def node(label: str, shape: tuple[str, str]) -> str:
        if label not in numbers:
            numbers[label] = f"n{len(numbers)}"
            # Mermaid reads entities in quoted labels.
            safe = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
            lines.append(f'    {numbers[label]}{shape[0]}"{safe}"{shape[1]}')
        return numbers[label]

    for source, destination, target, lineage in targets:
        into = node(f"{destination}: {target}", ("[", "]"))
        starts = [node(f"{source}: {table}", ("[(", ")]")) for table in lineage.tables]
        lines += [f"    {start} --> {into}" for start in starts]
        # Dotted: its changes alone do not reach the target.
        lines += [f"    {node(f'{destination}: {table}', ('[', ']'))} -.-> {into}" for table in lineage.lookups]
    return "\n".join(lines)
