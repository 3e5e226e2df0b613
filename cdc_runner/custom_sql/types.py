"""Types between PostgreSQL and DuckDB, for custom SQL: what a value is in the statement, and at the target."""

from __future__ import annotations

import re

from cdc_runner.custom_sql.query import CustomSqlRefused
from cdc_runner.schema import Column

_GIVEN = {
    "int2": "SMALLINT", "int4": "INTEGER", "int8": "BIGINT", "float4": "REAL", "float8": "DOUBLE", "bool": "BOOLEAN",
    "date": "DATE", "timestamp": "TIMESTAMP", "timestamptz": "TIMESTAMPTZ", "uuid": "UUID",
}  # fmt: skip
_TAKEN = {
    "BOOLEAN": ("boolean", "bool", "B"), "TINYINT": ("smallint", "int2", "N"), "SMALLINT": ("smallint", "int2", "N"),
    "INTEGER": ("integer", "int4", "N"), "BIGINT": ("bigint", "int8", "N"), "UTINYINT": ("smallint", "int2", "N"),
    "USMALLINT": ("integer", "int4", "N"), "UINTEGER": ("bigint", "int8", "N"), "UBIGINT": ("numeric", "numeric", "N"),
    "HUGEINT": ("numeric", "numeric", "N"), "UHUGEINT": ("numeric", "numeric", "N"),
    "FLOAT": ("real", "float4", "N"), "DOUBLE": ("double precision", "float8", "N"), "VARCHAR": ("text", "text", "S"),
    "DATE": ("date", "date", "D"), "TIME": ("time without time zone", "time", "D"),
    "TIMESTAMP": ("timestamp without time zone", "timestamp", "D"),
    "TIMESTAMP_S": ("timestamp without time zone", "timestamp", "D"),
    "TIMESTAMP_MS": ("timestamp without time zone", "timestamp", "D"),
    "TIMESTAMP WITH TIME ZONE": ("timestamp with time zone", "timestamptz", "D"),
    "INTERVAL": ("interval", "interval", "T"), "UUID": ("uuid", "uuid", "U"), "JSON": ("jsonb", "jsonb", "U"),
}  # fmt: skip
_LOOKUP_KINDS = {
    "int2": "bigint", "int4": "bigint", "int8": "bigint", "text": "text", "varchar": "text", "bpchar": "text",
    "uuid": "uuid", "date": "date", "numeric": "numeric",
}  # fmt: skip
"""Types whose text finds the same value on another server, whatever is installed there."""
_DECIMAL = re.compile(r"DECIMAL\((\d+),(\d+)\)")
_NO_KEY = ("FLOAT", "DOUBLE", "INTERVAL", "JSON")
"""Two texts of one value: they cannot identify rows."""


def given_type(column: Column) -> str:
    """Return the type that a column of the source has in the statement.

    Types that do not mean the same in DuckDB are VARCHAR, with PostgreSQL's text.
    """
    if column.type_name == "numeric":
        # Without precision, or with more of it than DuckDB has, a decimal would be rounded.
        digits, _, scale = column.type_text.removeprefix("numeric(").removesuffix(")").partition(",")
        fits = digits.isdigit() and scale.isdigit() and int(digits) <= 38 and int(scale) <= int(digits)
        return f"DECIMAL({digits},{scale})" if fits else "VARCHAR"
    return _GIVEN.get(column.type_name, "VARCHAR")


def lookup_kind(column: Column) -> str | None:
    """Return what a column is, as far as rows of another server can be found by it; None when they cannot.

    Two columns of one kind can be compared by their texts; it is the type that such a text is cast to.
    """
    return _LOOKUP_KINDS.get(column.type_name) if column.type_schema == "pg_catalog" else None


def target_column(name: str, kind: str, *, key: bool, not_null: bool) -> Column:
    """Return the column of a target for a column of a result.

    Raises:
        CustomSqlRefused: the type has no counterpart, or cannot be part of a key.
    """
    if key and kind in _NO_KEY:
        raise CustomSqlRefused(f"column {name} is of type {kind}, by which rows cannot be told apart: cast it")
    decimal = _DECIMAL.fullmatch(kind)
    if decimal:
        text, type_name, category = f"numeric({decimal[1]},{decimal[2]})", "numeric", "N"
    elif kind in _TAKEN:
        text, type_name, category = _TAKEN[kind]
    else:
        raise CustomSqlRefused(f"column {name} is of type {kind[:60]}, which no type of PostgreSQL stands for: cast it")
    return Column(name, text, type_name, type_category=category, not_null=not_null)
