"""The builder form of a filter: groups of conditions as data, written as SQL text for `sql.parse_filter`.

{"all": [{"column": "region", "op": "=", "value": "EU"},
{"any": [{"column": "amount", "op": ">", "value": 10}, {"column": "note", "op": "is null"}]}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from cdc_runner.row_filter.sql import FilterRefused
from cdc_runner.schema import quote_identifier, quote_literal

COMPARISONS = ("=", "!=", "<>", ">", "<", ">=", "<=", "like", "not like", "ilike", "not ilike")
WITHOUT_VALUE = ("is null", "is not null", "is true", "is false")
WITH_LIST = ("in", "not in")
WITH_PAIR = ("between", "not between")
MAX_DEPTH = 20


def render_form(form: Mapping[str, Any], depth: int = 0) -> str:
    """Return the SQL text of a builder form.

    Raises:
        FilterRefused: naming what is wrong with the form; a value is never repeated.
    """
    if depth > MAX_DEPTH:
        raise FilterRefused("groups are nested too deeply")
    if not isinstance(form, Mapping):
        raise FilterRefused("a condition must be a mapping")
    for word, joined in (("all", " AND "), ("any", " OR ")):
        if word in form:
            parts = form[word]
            if set(form) != {word} or not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
                raise FilterRefused(f"a group is {word}: with a list of conditions, and nothing else")
            return "(" + joined.join(render_form(part, depth + 1) for part in parts) + ")"
    if "not" in form:
        if set(form) != {"not"}:
            raise FilterRefused("not: stands alone, with one condition")
        return f"(NOT {render_form(form['not'], depth + 1)})"
    return _condition(form)


def _condition(form: Mapping[str, Any]) -> str:
    unknown = set(form) - {"column", "op", "value"}
    if unknown or "column" not in form or "op" not in form:
        raise FilterRefused("a condition has column, op and value, or is a group all, any or not")
    column, op, value = form["column"], form["op"], form.get("value")
    if not isinstance(column, str) or not column or "\x00" in column:
        raise FilterRefused("column must be the name of a column")
    op = " ".join(op.lower().split()) if isinstance(op, str) else ""
    name = quote_identifier(column)
    if op in WITHOUT_VALUE:
        if value is not None:
            raise FilterRefused(f"{op} takes no value")
        return f"({name} {op.upper()})"
    if op in WITH_LIST:
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise FilterRefused(f"{op} takes a list of values")
        return f"({name} {op.upper()} ({', '.join(_value(one) for one in value)}))"
    if op in WITH_PAIR:
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            raise FilterRefused(f"{op} takes a list of two values")
        return f"({name} {op.upper()} {_value(value[0])} AND {_value(value[1])})"
    if op not in COMPARISONS:
        raise FilterRefused(f"op must be one of {', '.join((*COMPARISONS, *WITH_LIST, *WITH_PAIR, *WITHOUT_VALUE))}")
    if value is None:
        raise FilterRefused("a comparison with null is never true: use is null or is not null")
    return f"({name} {op.upper()} {_value(value)})"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Decimal):
        return str(value)
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise FilterRefused("write NaN and infinity as text")
        return repr(value)
    if isinstance(value, str):
        if "\x00" in value:
            raise FilterRefused("a value holds a NUL character")
        return quote_literal(value)
    raise FilterRefused("a value must be text, a number, true or false; write dates as text in quotes")
