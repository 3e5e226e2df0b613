"""Which columns Debezium carries exactly, and how its JSON values become PostgreSQL's own text.

With the converter of `text_converter` every value leaves Debezium as the text that `column::text` gives under TimeZone
UTC, DateStyle ISO, IntervalStyle postgres, bytea_output hex and lc_monetary C, so a conversion in SQL is the identity.
`CAST(text AS type)` at a target under the same settings gives the identical value.
"""

from __future__ import annotations

import secrets

from cdc_runner.capture.debezium import text_converter
from cdc_runner.schema import Column, TableSchema, quote_literal

CONVERTER_NAME = "rosetta"

SESSION_OPTIONS = "-c IntervalStyle=postgres -c bytea_output=hex -c lc_monetary=C"
"""Server settings that shape the text of values and that a role or a database may have changed.

The JDBC driver sets DateStyle, extra_float_digits and TimeZone itself.
"""

_ALTERED = {
    "timetz": "Debezium moves timetz to UTC and forgets its offset",
}
"""Base types whose text is lost before any converter sees it, with the reason."""

_RESOLVED_BY_NAME = frozenset(
    "boolean bool hstore integer int int4 smallint int2 smallserial serial serial2 serial4 bigint bigserial int8 oid "
    "real float4 numeric decimal date timestamp timestamptz time timetz float8 bytea box circle interval line lseg "
    "money path point polygon".split()
)
"""Names by which Debezium chooses a parser, whatever schema a type of that name is in."""

_NEVER_TOASTED = frozenset(
    "bool int2 int4 int8 oid float4 float8 date time timetz timestamp timestamptz interval money uuid char name "
    "macaddr macaddr8 pg_lsn xid xid8 cid tid point lseg box line circle regclass regcollation regconfig regdictionary "
    "regnamespace regoper regoperator regproc regprocedure regrole regtype".split()
)
"""Types of pg_catalog with a fixed length: they are always in the row itself."""


def new_marker() -> str:
    """Return a text that stands for an unchanged large value; random, so that no user value can equal it."""
    return f"~rosetta-unchanged-{secrets.token_hex(16)}~"


def properties(marker: str) -> dict[str, str]:
    """Return the engine properties that the conversion relies on.

    Args:
        marker: what Debezium puts in place of an unchanged large value; use `new_marker()` once per process.
    """
    return {
        "converters": CONVERTER_NAME,
        f"{CONVERTER_NAME}.type": text_converter.CLASS_NAME,
        f"{CONVERTER_NAME}.unchanged": marker,
        "driver.options": SESSION_OPTIONS,
        "include.unknown.datatypes": "true",
        "event.converting.failure.handling.mode": "fail",
        "unavailable.value.placeholder": marker,
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
        # Else a NULL in a column with a default arrives as the default.
        "key.converter.replace.null.with.default": "false",
        "value.converter.replace.null.with.default": "false",
    }


def setup_statements() -> list[str]:
    """Return the statements that a DuckDB connection runs once before it uses the expressions: none are needed."""
    return []


def unsupported(column: Column) -> str | None:
    """Return why Debezium cannot carry a column exactly, None when it can."""
    base = column.element if column.type_kind == "d" and column.element else column.type_name
    if reason := _ALTERED.get(base):
        return reason
    foreign = column.type_schema != "pg_catalog" and column.type_kind in {"b", "c", "r", "m"}
    if foreign and column.type_category != "A" and base in _RESOLVED_BY_NAME - {"hstore"}:
        return f"Debezium takes {column.type_schema}.{base} for the built-in type of that name"
    if column.type_kind == "p":
        return f"{base} is a pseudo-type"
    return None


def unsupported_columns(schema: TableSchema) -> dict[str, str]:
    """Return the columns of a table that Debezium cannot carry exactly, with the reason for each."""
    reasons = {column.name: unsupported(column) for column in schema.columns}
    return {name: reason for name, reason in reasons.items() if reason}


def expression(column: Column, value: str) -> str:
    """Return the SQL expression that makes PostgreSQL's text of a column's JSON value.

    Args:
        column: a column that `unsupported` does not refuse.
        value: SQL expression of type VARCHAR: the JSON string unquoted, NULL for a JSON null.

    Raises:
        ValueError: Debezium cannot carry the column exactly.
    """
    if reason := unsupported(column):
        raise ValueError(f"column {column.name}: {reason}")
    return value


def unchanged_test(column: Column, value: str, marker: str) -> str | None:
    """Return the SQL condition that a value stands for an unchanged large value; None when the type is never large.

    The condition is false, not NULL, for SQL NULL.

    Args:
        column: the column.
        value: SQL expression of type VARCHAR, as for `expression`.
        marker: as given to `properties`.
    """
    base = column.element if column.type_kind == "d" and column.element else column.type_name
    if column.type_kind == "e" or (base in _NEVER_TOASTED and (column.type_kind == "d" or _built_in(column))):
        return None
    return f"({value} IS NOT DISTINCT FROM {quote_literal(marker)})"


def _built_in(column: Column) -> bool:
    return column.type_schema == "pg_catalog"
