"""A custom SQL statement taken apart: what it reads, joins, groups and gives; or the reason why it is refused.

What can be kept right is a SELECT that gives at most one row for each row of the synced table, or one for each group of
them. All else is refused by name.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from cdc_runner.custom_sql import tree
from cdc_runner.custom_sql.tree import Node
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.sandbox.guard import DESTINATION
from cdc_runner.sandbox.session import SandboxFailed, SandboxSession
from cdc_runner.schema import TableId

ROW_KEY = "__rosetta_k"
"""Columns of this name and a number hold a row's key, as the source writes it, beside the columns of the table."""


class CustomSqlRefused(RosettaError):
    """The statement cannot be kept right, or must not run."""

    def __init__(self, reason: str) -> None:
        super().__init__(ErrorKind.CONFIG_INVALID, f"custom SQL: {reason}")


@dataclass(frozen=True, slots=True)
class TableUse:
    """A table in FROM.

    Attributes:
        name: its name in the tree; of a table of the destination all three parts, as one name.
        alias: the name that its columns have in the statement.
        lookup: the table of the destination, in which rows are looked up; None for one of the source.
    """

    name: str
    alias: str
    lookup: TableId | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """A joined table.

    Attributes:
        table: what is joined.
        equalities: pairs of columns that the condition asks to be equal, as names with or without a table before them.
    """

    table: TableUse
    equalities: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Output:
    """A column of the result: its name and its expression."""

    name: str
    expression: Node


@dataclass(frozen=True, slots=True)
class Query:
    """A statement that can be kept right, as far as that shows without the tables.

    Attributes:
        statement: the parser's tree.
        base: the table that stands first in FROM, whose changed rows it shapes.
        joins: the joined tables, in order.
        outputs: the columns of the result.
        group: places in `outputs` of what rows are grouped by, in the order of GROUP BY; None without GROUP BY.
        by_name: those of them that GROUP BY means by their name; a column of a table of that name would come first.
    """

    statement: Node
    base: TableUse
    joins: tuple[Join, ...]
    outputs: tuple[Output, ...]
    group: tuple[int, ...] | None
    by_name: tuple[int, ...] = ()

    @property
    def tables(self) -> tuple[TableUse, ...]:
        """All tables, the base first."""
        return (self.base, *(join.table for join in self.joins))

    def keyed_statement(self, key_width: int) -> Node:
        """Return the statement that gives each row's key first: with the whole result, or with its group."""
        keys = [tree.column(self.base.alias, f"{ROW_KEY}{number}") for number in range(key_width)]
        if self.group is None:
            return tree.with_select_list(
                self.statement, [*keys, *self._named(range(len(self.outputs)))], ungrouped=False
            )
        return tree.with_select_list(self.statement, [*keys, *self._named(self.group)], ungrouped=True)

    def _named(self, places: Sequence[int]) -> list[Node]:
        # A later column may use the name of an earlier one.
        return [copy.deepcopy(self.outputs[place].expression) | {"alias": self.outputs[place].name} for place in places]


def parse_query(sql: str, sandbox: SandboxSession | None = None) -> Query:
    """Return a statement taken apart.

    Args:
        sql: as a user wrote it.
        sandbox: parses it; one is started for it where there is none.

    Raises:
        CustomSqlRefused: naming the reason.
    """
    session = sandbox or SandboxSession()
    try:
        return take_apart(session.parse(sql))
    except SandboxFailed as error:
        raise CustomSqlRefused(str(error)) from None
    finally:
        if sandbox is None:
            session.close()


def take_apart(statement: Node) -> Query:
    """Return a parsed statement taken apart.

    Raises:
        CustomSqlRefused: naming the reason.
    """
    statement = copy.deepcopy(statement)
    node = statement["node"]
    _check_clauses(node)
    for one in tree.expressions(node):
        _check_expression(one)
    base, joins = _from(node["from_table"])
    outputs = tuple(_output(one) for one in node["select_list"])
    names = [output.name.lower() for output in outputs]
    for name in names:
        if names.count(name) > 1:
            raise CustomSqlRefused(f"two columns are named {name}")
    group, by_name = _group(node, outputs)
    looked_up = [join.table.name for join in joins if join.table.lookup is not None]
    if group is not None and looked_up:
        raise CustomSqlRefused(
            f"rows joined with {looked_up[0]} cannot be grouped: changes of a table of the destination are not seen, "
            "so a total over it would be that of no time at all; join a table of the source, or group at the target"
        )
    return Query(statement, base, tuple(joins), outputs, group, by_name)


def _check_clauses(node: Node) -> None:
    if node["type"] != "SELECT_NODE":
        raise CustomSqlRefused("UNION, INTERSECT, EXCEPT and recursion are not kept right by key: use one SELECT")
    if node["cte_map"].get("map"):
        raise CustomSqlRefused("WITH is not supported: write it as one SELECT")
    for modifier in node["modifiers"]:
        word = str(modifier["type"]).removesuffix("_MODIFIER").removesuffix("_PERCENT")
        raise CustomSqlRefused(f"{word} depends on rows beyond those that changed")
    if node["qualify"]:
        raise CustomSqlRefused("QUALIFY depends on rows beyond those that changed")
    if node["sample"]:
        raise CustomSqlRefused("a sample is another one each time")
    if len(node["group_sets"]) > 1 or (node["group_expressions"] and len(node["group_sets"]) != 1):
        raise CustomSqlRefused("GROUPING SETS, ROLLUP and CUBE are not supported: use one GROUP BY")


def _check_expression(node: Node) -> None:
    kind, name = node["class"], tree.function_name(node)
    if kind == "WINDOW":
        raise CustomSqlRefused("a window function depends on rows beyond those that changed")
    if kind == "SUBQUERY":
        raise CustomSqlRefused("a subquery is not supported: use a join")
    if kind == "STAR":
        raise CustomSqlRefused("* is not supported, as it means other columns later: name the columns")
    if kind == "POSITIONAL_REFERENCE":
        raise CustomSqlRefused("#1 is not supported: name the column")
    if name in tree.ORDERED_AGGREGATES:
        raise CustomSqlRefused(f"{name} depends on the order in which rows come, which is not that of the source")
    if name == "unnest":
        raise CustomSqlRefused("unnest gives several rows for one")
    moving = name in tree.MOVING_FUNCTIONS or (name == "age" and len(node["children"]) == 1)
    names = tree.column_names(node)
    if moving or (len(names) == 1 and names[0].lower() in tree.MOVING_NAMES):
        raise CustomSqlRefused(f"{name or names[0]} gives another value later")
    if kind == "CONSTANT" and str((node.get("value") or {}).get("value")).strip().lower() in tree.MOVING_TEXTS:
        raise CustomSqlRefused("now, today, tomorrow and yesterday mean another time later")


def _from(node: Node) -> tuple[TableUse, list[Join]]:
    if node["type"] == "BASE_TABLE":
        return _table(node), []
    if node["type"] == "SUBQUERY":
        raise CustomSqlRefused("a subquery in FROM is not supported: use a join")
    if node["type"] != "JOIN":
        raise CustomSqlRefused("FROM must name the table of the sync")
    if node["join_type"] not in ("INNER", "LEFT") or node["ref_type"] != "REGULAR" or node["using_columns"]:
        raise CustomSqlRefused("of joins only JOIN ... ON and LEFT JOIN ... ON are supported")
    if node["right"]["type"] != "BASE_TABLE":
        raise CustomSqlRefused("only tables can be joined, one after the other")
    base, joins = _from(node["left"])
    table = _table(node["right"])
    if table.alias.lower() in {one.alias.lower() for one in (base, *(join.table for join in joins))}:
        raise CustomSqlRefused(f"two tables are named {table.alias}")
    if table.name.lower() in {one.name.lower() for one in (base, *(join.table for join in joins))}:
        raise CustomSqlRefused(f"table {table.name} is used twice")
    return base, [*joins, Join(table, tuple(_equalities(node["condition"])))]


def _table(node: Node) -> TableUse:
    if node["sample"] or node["column_name_alias"] or node["at_clause"]:
        raise CustomSqlRefused("a table stands with a name only")
    alias = node["alias"] or node["table_name"]
    if not node["catalog_name"]:
        return TableUse(node["table_name"], alias)
    # The guard lets no other catalog pass. In the sandbox it is a table like any other, under a name of its own.
    table = TableId(node["schema_name"], node["table_name"])
    name = f"{DESTINATION}.{table.schema}.{table.name}"
    node |= {"catalog_name": "", "schema_name": "", "table_name": name, "alias": alias}
    return TableUse(name, alias, table)


def _equalities(condition: Node | None) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    if condition is None:
        return []
    if condition["type"] == "CONJUNCTION_AND":
        return [pair for one in condition["children"] for pair in _equalities(one)]
    if condition["type"] != "COMPARE_EQUAL":
        return []
    left, right = tree.column_names(condition["left"]), tree.column_names(condition["right"])
    return [(left, right)] if left and right else []


def _output(node: Node) -> Output:
    names = tree.column_names(node)
    name = node["alias"] or (names[-1] if names else "")
    if not name:
        raise CustomSqlRefused("each column of the result needs a name: ... AS name")
    if len(name.encode()) > 63 or "\x00" in name or name.lower().startswith(ROW_KEY):
        raise CustomSqlRefused("a column of the result has a name that cannot be used")
    return Output(name, node)


def _group(node: Node, outputs: Sequence[Output]) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """Return the places of the outputs that GROUP BY means, and which of them it means by name; None without it."""
    aggregated = [tree.is_aggregate(output.expression) for output in outputs]
    by_all = node["aggregate_handling"] == "FORCE_AGGREGATES"
    if not by_all and not node["group_expressions"]:
        if any(aggregated) or node["having"]:
            raise CustomSqlRefused(
                "an aggregate needs GROUP BY: what rows are grouped by identifies those of the target"
            )
        return None, ()
    if by_all:
        found = [(place, False) for place, one in enumerate(aggregated) if not one]
    else:
        found = [_grouped_output(one, outputs, aggregated) for one in node["group_expressions"]]
    if not found:
        raise CustomSqlRefused("GROUP BY names no column")
    places = tuple(dict.fromkeys(place for place, _ in found))
    return places, tuple(place for place, named in found if named)


def _grouped_output(node: Node, outputs: Sequence[Output], aggregated: Sequence[bool]) -> tuple[int, bool]:
    """Return the place of the output that a part of GROUP BY means, and whether it means it by its name."""
    found: int | None = None
    named = False
    if node["class"] == "CONSTANT":
        number = (node.get("value") or {}).get("value")
        found = number - 1 if isinstance(number, int) and 0 < number <= len(outputs) else None
    else:
        found = next((place for place, one in enumerate(outputs) if tree.same(one.expression, node)), None)
        names = tree.column_names(node)
        if found is None and len(names) == 1:
            wanted = names[0].lower()
            found, named = next((place for place, one in enumerate(outputs) if one.name.lower() == wanted), None), True
    if found is None or aggregated[found]:
        raise CustomSqlRefused("each part of GROUP BY must be a column of the result: it identifies the rows")
    return found, named
