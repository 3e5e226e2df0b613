"""Walking the tree that DuckDB's parser gives of a SELECT."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

Node = dict[str, Any]

AGGREGATES = frozenset({
    "approx_count_distinct", "avg", "bit_and", "bit_or", "bit_xor", "bool_and", "bool_or", "corr", "count", "count_if",
    "count_star", "covar_pop", "covar_samp", "entropy", "favg", "fsum", "geomean", "kurtosis", "mad", "max", "mean",
    "median", "min", "product", "quantile", "quantile_cont", "quantile_disc", "sem", "skewness", "stddev",
    "stddev_pop", "stddev_samp", "sum", "sum_no_overflow", "sumkahan", "var_pop", "var_samp", "variance",
})  # fmt: skip
ORDERED_AGGREGATES = frozenset({
    "any_value", "arbitrary", "arg_max", "arg_min", "argmax", "argmin", "array_agg", "first", "group_concat",
    "json_group_array", "json_group_object", "last", "list", "listagg", "max_by", "min_by", "mode", "string_agg",
})  # fmt: skip
"""Their value depends on the order in which rows come, or on which of several equal ones is taken."""
MOVING_FUNCTIONS = frozenset({"now", "get_current_timestamp", "current_date", "current_timestamp", "today"})
MOVING_NAMES = frozenset({"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "today"})
MOVING_TEXTS = frozenset({"now", "today", "tomorrow", "yesterday"})


def expressions(node: object) -> Iterator[Node]:
    """Yield every expression below a node, itself included, outer ones first."""
    if isinstance(node, list):
        for one in node:
            yield from expressions(one)
    elif isinstance(node, dict):
        if "class" in node:
            yield node
        for key, value in node.items():
            # What a constant or a cast says of its value or type is no node.
            if not (key in ("value", "cast_type") and "class" in node):
                yield from expressions(value)


def function_name(node: Mapping[str, Any]) -> str:
    """Return the name of the function that an expression calls; empty for other expressions."""
    return str(node.get("function_name", "")).lower() if node.get("class") == "FUNCTION" else ""


def is_aggregate(node: Mapping[str, Any]) -> bool:
    """Tell whether an expression computes something from several rows."""
    return any(function_name(one) in AGGREGATES for one in expressions(node))


def column_names(node: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the parts of a column's name; empty for other expressions."""
    return tuple(node["column_names"]) if node.get("class") == "COLUMN_REF" else ()


def same(one: Node, other: Node) -> bool:
    """Tell whether two expressions are written the same, names and places in the text apart."""
    return _bare(one) == _bare(other)


def _bare(node: object) -> object:
    if isinstance(node, list):
        return [_bare(one) for one in node]
    if isinstance(node, dict):
        kept = {key: _bare(value) for key, value in node.items() if key not in ("alias", "query_location")}
        if kept.get("class") == "COLUMN_REF":
            kept["column_names"] = [str(name).lower() for name in node["column_names"]]
        return kept
    return node


def column(*names: str) -> Node:
    """Return the expression of a column."""
    return {
        "class": "COLUMN_REF",
        "type": "COLUMN_REF",
        "alias": "",
        "query_location": 0,
        "column_names": list(names),
    }


def with_select_list(statement: Node, select_list: list[Node], *, ungrouped: bool) -> Node:
    """Return a statement with other columns; `ungrouped` gives a row for each row of its tables."""
    changed = copy.deepcopy(statement)
    node = changed["node"]
    node["select_list"] = select_list
    if ungrouped:
        node |= {"group_expressions": [], "group_sets": [], "aggregate_handling": "STANDARD_HANDLING", "having": None}
    return changed
