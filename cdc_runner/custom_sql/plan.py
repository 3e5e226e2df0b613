"""A custom SQL statement bound to the tables of a source: what is read of them, and what the target looks like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from cdc_runner.custom_sql import tree
from cdc_runner.custom_sql.query import ROW_KEY, CustomSqlRefused, Join, Query
from cdc_runner.custom_sql.types import given_type, lookup_kind, target_column
from cdc_runner.sandbox.run import SandboxTable
from cdc_runner.sandbox.session import SandboxFailed, SandboxSession
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema

_INTEGERS = ("int2", "int4", "int8")


@dataclass(frozen=True, slots=True)
class BoundTable:
    """A table of the statement.

    Attributes:
        name: its name in FROM.
        schema: at the source.
        columns: those that the statement may read.
        links: of a joined table, for each column of its key in order the table before it, by place, and its column that
            must be equal; empty for the base.
        lookup: whether it is a table of the destination.
    """

    name: str
    schema: TableSchema
    columns: tuple[Column, ...]
    links: tuple[tuple[int, str], ...] = ()
    lookup: bool = False

    def hidden(self, masked: Mapping[TableId, frozenset[str]]) -> frozenset[str]:
        """Return its masked columns; masks are of the source's tables."""
        return frozenset() if self.lookup else masked.get(self.schema.table, frozenset())


@dataclass(frozen=True, slots=True)
class CustomPlan:
    """What is needed to compute rows of the target.

    Attributes:
        query: the statement.
        tables: what it reads, the base first.
        masks: masked columns, by table, which the statement sees as text.
        key: names of the result's columns that identify a row.
        target: the schema that the target is made for.
    """

    query: Query
    tables: tuple[BoundTable, ...]
    masked: Mapping[TableId, frozenset[str]]
    key: tuple[str, ...]
    target: TableSchema

    @property
    def base(self) -> BoundTable:
        """The table whose rows are shaped."""
        return self.tables[0]

    def given(self, place: int, rows: pa.Table) -> SandboxTable:
        """Return a table for the sandbox; rows of the base have their key's texts after the columns."""
        return _given(self.tables[place], self.masked, rows, with_key=place == 0)

    def place_of(self, table: TableId) -> int:
        """Return the place of a table of the source."""
        return next(place for place, one in enumerate(self.tables) if not one.lookup and one.schema.table == table)

    def same_tables(self, schemas: Mapping[TableId, TableSchema], looked_up: Mapping[TableId, TableSchema]) -> bool:
        """Tell whether the tables still are as they were bound, as far as the statement reads them.

        Args:
            schemas: present ones of the source.
            looked_up: present ones of the destination.
        """
        for table in self.tables:
            present = (looked_up if table.lookup else schemas).get(table.schema.table)
            if present is None or present.key != table.schema.key:
                return False
            there = {column.name: (column.type_text, column.type_schema) for column in present.columns}
            if any(there.get(one.name) != (one.type_text, one.type_schema) for one in table.columns):
                return False
        return True


def find_tables(query: Query, base: TableId, offered: Iterable[TableId]) -> list[TableId]:
    """Return the tables that a statement reads, the base first; those of the destination by their names there.

    Args:
        query: the statement.
        base: the table of the sync.
        offered: the tables of the source that are captured.

    Raises:
        CustomSqlRefused: naming a table that is not there, or that two schemas have.
    """
    if query.base.name.lower() != base.name.lower():
        raise CustomSqlRefused(f"table {base.name} must stand first in FROM: its rows are shaped")
    found = [base]
    for join in query.joins:
        if join.table.lookup is not None:
            found.append(join.table.lookup)
            continue
        same = [table for table in offered if table.name.lower() == join.table.name.lower()]
        if len(same) > 1:
            raise CustomSqlRefused(f"several schemas of the source have a table {join.table.name}")
        if not same:
            raise CustomSqlRefused(
                f"table {join.table.name} is not among the captured tables of the source; only these can be joined, "
                "since changes of others would not be seen. One of the destination stands as destination.schema.table"
            )
        found.append(same[0])
    return found


def bind(
    query: Query,
    schemas: Sequence[TableSchema],
    masked: Mapping[TableId, frozenset[str]],
    declared_key: Sequence[str],
    sandbox: SandboxSession,
) -> CustomPlan:
    """Return a statement bound to its tables.

    Args:
        query: the statement.
        schemas: of its tables, the base first.
        masked: masked columns by table.
        declared_key: the columns of the result that are said to identify a row; empty to find them.
        sandbox: tells the types of the result.

    Raises:
        CustomSqlRefused: naming the reason.
    """
    tables = _bound_tables(query, schemas)
    for table in tables:
        hidden = table.hidden(masked)
        needed = {*table.schema.key, *(column for one in tables for at, column in one.links if tables[at] is table)}
        for name in sorted(hidden & needed):
            raise CustomSqlRefused(f"column {name} of table {table.name} is masked, and identifies or joins rows")
    kinds = _described(query, tables, masked, sandbox)
    key = _row_key(query, tables) if query.group is None else tuple(query.outputs[place].name for place in query.group)
    if declared_key and set(declared_key) != set(key):
        raise CustomSqlRefused(f"key must be {', '.join(key)}: these columns identify the rows of the result")
    _check_group_names(query, tables)
    grouped = query.group is not None
    columns = tuple(
        target_column(name, kind, key=name in key, not_null=name in key and not grouped) for name, kind in kinds
    )
    base = tables[0].schema
    target = replace(
        base,
        columns=columns,
        key=key,
        primary_key=() if grouped else key,
        replica_identity=ReplicaIdentity.DEFAULT,
        partitioned=False,
    )
    return CustomPlan(query, tables, masked, key, target)


def _bound_tables(query: Query, schemas: Sequence[TableSchema]) -> tuple[BoundTable, ...]:
    bound: list[BoundTable] = []
    for place, (use, schema) in enumerate(zip(query.tables, schemas, strict=True)):
        if not schema.key:
            raise CustomSqlRefused(f"table {use.name} has no key by which its rows can be read")
        links = () if place == 0 else _links(query, place, schemas)
        bound.append(BoundTable(use.name, schema, (), links, use.lookup is not None))
    used = _used_columns(query, schemas)
    tables = []
    for place, table in enumerate(bound):
        linked = {column for one in bound for at, column in one.links if at == place}
        names = used[place] | linked | set(table.schema.key)
        columns = tuple(column for column in table.schema.columns if column.name in names)
        folded = [column.name.lower() for column in table.schema.columns]
        for column in columns:
            if folded.count(column.name.lower()) > 1:
                raise CustomSqlRefused(f"columns of table {table.name} differ from {column.name} only in case")
        tables.append(replace(table, columns=columns))
    return tuple(tables)


def _used_columns(query: Query, schemas: Sequence[TableSchema]) -> list[set[str]]:
    """Return for each table the columns that the statement may mean."""
    used: list[set[str]] = [set() for _ in schemas]
    for node in tree.expressions(query.statement["node"]):
        for place, name in resolve(query, schemas, tree.column_names(node)):
            used[place].add(name)
    return used


def resolve(query: Query, schemas: Sequence[TableSchema], names: tuple[str, ...]) -> list[tuple[int, str]]:
    """Return the columns that a name may mean: places of tables, and names of columns."""
    found: list[tuple[int, str]] = []
    for place, (use, schema) in enumerate(zip(query.tables, schemas, strict=True)):
        wanted = names[:1]
        if len(names) > 1 and names[0].lower() == use.alias.lower():
            wanted = names[1:2]
        found += [(place, name) for name in schema.column_names if wanted and name.lower() == wanted[0].lower()]
    return found


def _links(query: Query, place: int, schemas: Sequence[TableSchema]) -> tuple[tuple[int, str], ...]:
    """Return what each column of a joined table's key is equal to.

    So a row of the base has at most one row of it, which a change of it tells by its key.
    """
    schema, join = schemas[place], query.joins[place - 1]
    links: dict[str, tuple[int, str]] = {}
    for pair in join.equalities:
        sides = [_one_column(query, schemas, names) for names in pair]
        for own, other in (sides, sides[::-1]):
            if own is None or other is None or own[0] != place or other[0] >= place or own[1] not in schema.key:
                continue
            alike = _alike if join.table.lookup is None else _can_be_looked_up
            if not alike(schema.column(own[1]), schemas[other[0]].column(other[1])):
                raise CustomSqlRefused(
                    f"the columns that join {join.table.name} are of different types: {own[1]}, {other[1]}"
                )
            links.setdefault(own[1], other)
    missing = [name for name in schema.key if name not in links]
    if missing:
        raise CustomSqlRefused(
            f"table {join.table.name} must be joined by its key ({', '.join(schema.key)}), each column equal to one of "
            "a table before it: else a row could match several, and a change of it would not tell which rows it touches"
        )
    _check_ways(query, join, links)
    return tuple(links[name] for name in schema.key)


def _check_ways(query: Query, join: Join, links: Mapping[str, tuple[int, str]]) -> None:
    """Refuse what cannot be read by key alone."""
    before = {place for place, _ in links.values()}
    if join.table.lookup is not None and len(before) > 1:
        raise CustomSqlRefused(
            f"table {join.table.name} must be joined by columns of one table: its rows are read by these values"
        )
    if join.table.lookup is None and any(query.tables[place].lookup is not None for place in before):
        raise CustomSqlRefused(
            f"table {join.table.name} of the source is joined by a column of one of the destination: a change of it "
            "would not tell which rows it touches"
        )


def _one_column(query: Query, schemas: Sequence[TableSchema], names: tuple[str, ...]) -> tuple[int, str] | None:
    found = resolve(query, schemas, names)
    return found[0] if len(found) == 1 else None


def _alike(one: Column, other: Column) -> bool:
    if one.type_name in _INTEGERS and other.type_name in _INTEGERS:
        return True
    return (one.type_schema, one.type_name, given_type(one)) == (other.type_schema, other.type_name, given_type(other))


def _can_be_looked_up(key: Column, value: Column) -> bool:
    """Tell whether a value of the source, given as text to the destination, finds rows there by a key's column."""
    kinds = lookup_kind(key), lookup_kind(value)
    return kinds[0] is not None and kinds[0] == kinds[1] and (kinds[0] != "numeric" or _alike(key, value))


def _row_key(query: Query, tables: Sequence[BoundTable]) -> tuple[str, ...]:
    """Return the result's columns that are the base's key."""
    schemas = [table.schema for table in tables]
    key = []
    for name in schemas[0].key:
        found = [
            output.name
            for output in query.outputs
            if _one_column(query, schemas, tree.column_names(output.expression)) == (0, name)
        ]
        if not found:
            raise CustomSqlRefused(
                f"column {name} of table {tables[0].name} must be in the result as it is: it identifies the rows"
            )
        key.append(found[0])
    return tuple(key)


def _check_group_names(query: Query, tables: Sequence[BoundTable]) -> None:
    schemas = [table.schema for table in tables]
    for place in query.by_name:
        name = query.outputs[place].name
        if resolve(query, schemas, (name,)):
            raise CustomSqlRefused(f"GROUP BY {name} means the column of a table; write GROUP BY {place + 1}")


def _described(
    query: Query, tables: Sequence[BoundTable], masked: Mapping[TableId, frozenset[str]], sandbox: SandboxSession
) -> tuple[tuple[str, str], ...]:
    statements = [query.statement, query.keyed_statement(len(tables[0].schema.key))]
    given = []
    for place, table in enumerate(tables):
        names = [column.name for column in table.columns]
        names += [f"{ROW_KEY}{number}" for number in range(len(table.schema.key))] if place == 0 else []
        empty = pa.table({name: pa.array([], pa.string()) for name in names})
        given.append(_given(table, masked, empty, with_key=place == 0))
    try:
        return sandbox.run(statements, given, describe=True)[0].columns
    except SandboxFailed as error:
        raise CustomSqlRefused(str(error)) from None


def _given(
    table: BoundTable, masked: Mapping[TableId, frozenset[str]], rows: pa.Table, *, with_key: bool
) -> SandboxTable:
    hidden = table.hidden(masked)
    types = [(one.name, "VARCHAR" if one.name in hidden else given_type(one)) for one in table.columns]
    if with_key:
        types += [(f"{ROW_KEY}{number}", "VARCHAR") for number in range(len(table.schema.key))]
    return SandboxTable(table.name, tuple(types), rows)
