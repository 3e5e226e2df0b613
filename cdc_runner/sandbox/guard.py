"""What a statement may hold, decided on the parser's own tree. Loaded by the sandbox's child: standard library only.

DuckDB has no privileges, so what is not on these lists is refused: kinds of nodes, functions, table functions, tables.
The limits of the process are the second line: what passes here can still be expensive.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

MAX_LENGTH = 20_000

_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_TABLE_NODES = {"BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EMPTY", "EMPTY_FROM", "EXPRESSION_LIST"}
_CLASSES = {
    "BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "LAMBDA",
    "OPERATOR", "STAR", "SUBQUERY", "WINDOW", "POSITIONAL_REFERENCE",
}  # fmt: skip
_TABLE_FUNCTIONS = {"range", "generate_series", "unnest", "json_each", "json_tree"}
_FUNCTIONS = {
    "!", "!~~", "!~~*", "#", "%", "&", "&&", "*", "**", "+", "-", "->", "->>", "/", "//", "<<", "<@", ">>", "@", "@>",
    "^", "^@", "abs", "acos", "add", "age", "any_value", "approx_count_distinct", "arbitrary", "arg_max", "arg_min",
    "argmax", "argmin", "array_agg", "array_contains", "array_extract", "array_filter", "array_has", "array_length",
    "array_position", "array_slice", "array_transform", "array_value", "ascii", "asin", "atan", "atan2", "avg", "bar",
    "bit_and", "bit_count", "bit_length", "bit_or", "bit_xor", "bool_and", "bool_or", "cbrt", "ceil", "ceiling",
    "century", "chr", "coalesce", "concat", "concat_ws", "contains", "corr", "cos", "cot", "count", "count_if",
    "count_star", "covar_pop", "covar_samp", "cume_dist", "current_date", "damerau_levenshtein", "date_add",
    "date_diff", "date_part", "date_sub", "date_trunc", "datediff", "datepart", "datesub", "datetrunc", "day",
    "dayname", "dayofmonth", "dayofweek", "dayofyear", "decade", "degrees", "dense_rank", "divide", "ends_with",
    "entropy", "epoch", "epoch_ms", "epoch_ns", "epoch_us", "era", "even", "exp", "factorial", "favg", "fdiv", "first",
    "first_value", "flatten", "floor", "fmod", "from_base64", "fsum", "gamma", "gcd", "geomean",
    "get_current_timestamp", "greatest", "greatest_common_divisor", "group_concat", "hamming", "hash", "hex", "hour",
    "if", "ifnull", "ilike_escape", "instr", "isfinite", "isinf", "isnan", "isodow", "isoyear", "jaccard", "json",
    "json_array", "json_array_length", "json_contains", "json_exists", "json_extract", "json_extract_path",
    "json_extract_path_text", "json_extract_string", "json_group_array", "json_group_object", "json_keys",
    "json_object", "json_structure", "json_type", "json_valid", "json_value", "kurtosis", "lag", "last", "last_day",
    "last_value", "lcase", "lcm", "lead", "least", "left", "len", "length", "lgamma", "like_escape", "list",
    "list_aggregate", "list_any_value", "list_append", "list_apply", "list_avg", "list_concat", "list_contains",
    "list_count", "list_distinct", "list_element", "list_extract", "list_filter", "list_has", "list_has_all",
    "list_has_any", "list_indexof", "list_max", "list_min", "list_position", "list_prepend", "list_reverse",
    "list_slice", "list_sum", "list_transform", "list_unique", "list_value", "listagg", "ln", "log", "log10", "log2",
    "lower", "ltrim", "mad", "make_date", "make_time", "make_timestamp", "map", "map_contains", "map_entries",
    "map_extract", "map_keys", "map_values", "max", "max_by", "md5", "mean", "median", "microsecond", "millennium",
    "millisecond", "min", "min_by", "minute", "mod", "mode", "month", "monthname", "multiply", "nanosecond",
    "nextafter", "nfc_normalize", "not_ilike_escape", "not_like_escape", "now", "nth_value", "ntile", "nullif", "ord",
    "percent_rank", "pi", "position", "pow", "power", "prefix", "product", "quantile", "quantile_cont",
    "quantile_disc", "quarter", "radians", "rank", "regexp_extract", "regexp_extract_all", "regexp_full_match",
    "regexp_matches", "regexp_replace", "regexp_split_to_array", "replace", "reverse", "right", "round", "round_even",
    "row", "row_number", "rtrim", "second", "sem", "sha1", "sha256", "sign", "signbit", "sin", "skewness", "split",
    "split_part", "sqrt", "starts_with", "stddev", "stddev_pop", "stddev_samp", "str_split", "str_split_regex",
    "strftime", "string_agg", "string_split", "string_split_regex", "string_to_array", "strip_accents", "strlen",
    "strpos", "strptime", "struct_extract", "struct_insert", "struct_pack", "substr", "substring",
    "substring_grapheme", "subtract", "suffix", "sum", "sum_no_overflow", "sumkahan", "tan", "time_bucket", "timezone",
    "to_base64", "to_centuries", "to_days", "to_decades", "to_hex", "to_hours", "to_json", "to_microseconds",
    "to_millennia", "to_milliseconds", "to_minutes", "to_months", "to_quarters", "to_seconds", "to_timestamp",
    "to_weeks", "to_years", "translate", "trim", "trunc", "try_strptime", "typeof", "ucase", "unhex", "unicode",
    "unnest", "upper", "var_pop", "var_samp", "variance", "week", "weekday", "weekofyear", "xor", "year", "yearweek",
    "|", "||", "~", "~~", "~~*", "~~~",
}  # fmt: skip
_DEPENDS_ON_TIME = {"now", "get_current_timestamp", "current_date", "current_timestamp", "today"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
DESTINATION = "destination"
"""What stands before schema and name of a table of the destination; such a name is only parsed, never run."""


class Refused(Exception):
    """The statement holds something that is not allowed; the text names it."""


class Found:
    """What a statement uses.

    Attributes:
        tables: the tables that it reads.
        row_wise: why it is not a projection of single rows of one table; None when it is.
    """

    def __init__(self) -> None:
        self.tables: set[str] = set()
        self.row_wise: str | None = None


def check(connection: Any, sql: str, tables: Collection[str] | None) -> Found:
    """Return what a statement uses.

    Args:
        connection: a locked DuckDB connection, used for parsing only.
        sql: the statement.
        tables: names that it may read; None allows any plain name, for a statement that is not going to be run.

    Raises:
        Refused: naming the reason.
    """
    if len(sql) > MAX_LENGTH:
        raise Refused(f"the statement is longer than {MAX_LENGTH} characters")
    if "\x00" in sql:
        raise Refused("the statement holds a NUL character")
    text = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()[0]
    tree = json.loads(text)
    if tree.get("error"):
        message = str(tree.get("error_message", ""))
        if "Only SELECT" in message:
            raise Refused("only a SELECT is allowed")
        raise Refused("it cannot be read: " + message.split("\n")[0][:200])
    if len(tree["statements"]) != 1:
        raise Refused("it must be one statement")
    statement = tree["statements"][0]
    if statement.get("named_param_map"):
        raise Refused("parameters are not allowed")
    found = Found()
    allowed = None if tables is None else {name.lower(): name for name in tables}
    _walk(statement["node"], frozenset(), allowed, found)
    found.row_wise = _why_not_row_wise(statement["node"], text)
    return found


def _walk(node: Any, visible: frozenset[str], tables: dict[str, str] | None, found: Found) -> None:
    if isinstance(node, list):
        for one in node:
            _walk(one, visible, tables, found)
        return
    if not isinstance(node, dict):
        return
    if "cte_map" in node:
        names = [str(one["key"]) for one in node["cte_map"].get("map", [])]
        for name in names:
            if not _NAME.fullmatch(name):
                raise Refused("a WITH name must be a plain name")
        visible = visible | {name.lower() for name in names}
    if "class" in node:
        _expression(node)
    elif isinstance(node.get("type"), str):
        _relation(node, visible, tables, found)
        if node["type"] in ("RECURSIVE_CTE_NODE", "CTE_NODE"):
            name = str(node.get("ctename") or node.get("cte_name") or "")
            if not _NAME.fullmatch(name):
                raise Refused("a WITH name must be a plain name")
            visible = visible | {name.lower()}
    if node.get("type") == "TABLE_FUNCTION":
        # Its name was decided on; what it is given is an expression like any other.
        function = node.get("function") or {}
        if function.get("schema") or function.get("catalog") not in ("", None):
            raise Refused("a function must stand without schema")
        _walk(function.get("children", []), visible, tables, found)
        return
    for key, value in node.items():
        # What a cast or a constant says of its type or value is no node.
        if key not in ("value", "cast_type") or "class" not in node:
            _walk(value, visible, tables, found)


def _expression(node: dict[str, Any]) -> None:
    kind = node["class"]
    if kind not in _CLASSES:
        raise Refused(f"{kind.lower()} expressions are not allowed")
    if kind in ("FUNCTION", "WINDOW"):
        name = str(node.get("function_name", "")).lower()
        # The parser itself writes some functions with the schema main.
        if node.get("schema") not in ("", None, "main") or node.get("catalog") not in ("", None, "system"):
            raise Refused("a function must stand without schema")
        if name not in _FUNCTIONS:
            raise Refused(f"function {name[:60]} is not allowed")


def _relation(node: dict[str, Any], visible: frozenset[str], tables: dict[str, str] | None, found: Found) -> None:
    kind = node["type"]
    if kind.endswith("_MODIFIER") or kind in ("ORDER_DEFAULT", "ASCENDING", "DESCENDING"):
        return
    if kind not in _QUERY_NODES and kind not in _TABLE_NODES:
        raise Refused(f"{kind.lower()} is not allowed")
    if kind == "BASE_TABLE":
        name = str(node.get("table_name", ""))
        schema, catalog = str(node.get("schema_name") or ""), str(node.get("catalog_name") or "")
        looked_up = catalog.lower() == DESTINATION and schema != "" and "/" not in schema + name
        if looked_up and tables is not None:
            raise Refused("tables of a destination can be read by custom SQL of a table sync only")
        if (catalog and not looked_up) or (not catalog and schema not in ("", "main")):
            raise Refused(
                "a table must stand without database and schema; one of the destination, which custom SQL may join, "
                "stands as destination.schema.table"
            )
        if node.get("at_clause"):
            raise Refused("AT is not allowed")
        if looked_up:
            found.tables.add(f"{DESTINATION}.{schema}.{name}")
            return
        if name.lower() in visible and not node.get("schema_name"):
            return
        known = name if tables is None and "/" not in name else (tables or {}).get(name.lower())
        if known is None:
            raise Refused("it reads a table that is not among those it may read")
        found.tables.add(known)
    if kind == "TABLE_FUNCTION":
        function = node.get("function") or {}
        name = str(function.get("function_name", "")).lower()
        if name not in _TABLE_FUNCTIONS:
            raise Refused(f"table function {name[:60]} is not allowed")


def _why_not_row_wise(node: dict[str, Any], text: str) -> str | None:
    """Return why each row of the result is not computed from one row of one table alone; None when it is."""
    if node["type"] != "SELECT_NODE":
        return "UNION, INTERSECT, EXCEPT and WITH"
    if node["cte_map"].get("map"):
        return "WITH"
    if node["from_table"]["type"] == "JOIN":
        return "a join"
    if node["from_table"]["type"] != "BASE_TABLE" or node["from_table"].get("sample") or node.get("sample"):
        return "anything but one table in FROM"
    if node["modifiers"]:
        return "DISTINCT, ORDER BY and LIMIT"
    if node["group_expressions"] or node["group_sets"] or node["having"] or node["qualify"]:
        return "GROUP BY, HAVING and QUALIFY"
    if node.get("aggregate_handling") not in (None, "STANDARD_HANDLING"):
        return "GROUP BY ALL"
    for kind, why in (("SUBQUERY", "a subquery"), ("WINDOW", "a window function")):
        if f'"class":"{kind}"' in text.replace('": "', '":"'):
            return why
    names = {name.lower() for name in re.findall(r'"function_name":\s*"([^"]*)"', text)}
    if names & _DEPENDS_ON_TIME or re.search(r'"column_names":\s*\["current_(date|time|timestamp)"\]', text, re.I):
        return "a function of the present time"
    if "unnest" in names:
        return "unnest"
    return None
