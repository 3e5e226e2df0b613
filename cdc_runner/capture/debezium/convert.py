"""Which columns Debezium carries exactly, and how its JSON values become PostgreSQL's own text.

With the changes of `text_converter` every value leaves Debezium as the text that the type's output function wrote at
the source (as COPY does: `t` for true, char(n) padded), under TimeZone UTC, DateStyle ISO, IntervalStyle postgres,
extra_float_digits 3, bytea_output hex and lc_monetary C. So the conversion in SQL is the identity, and
`CAST(text AS type)` at a target under the same settings gives the identical value.
"""

from __future__ import annotations

import re
import secrets

from cdc_runner.capture.debezium import text_converter
from cdc_runner.capture.readable import unreadable
from cdc_runner.schema import Column, quote_literal

_CONVERTER = "rosetta"

SESSION_OPTIONS = "-c extra_float_digits=3 -c IntervalStyle=postgres -c bytea_output=hex -c lc_monetary=C"
"""Server settings that shape the text of values and that a role or a database may have changed.

The JDBC driver asks for DateStyle and TimeZone itself; it does not for extra_float_digits on a replication connection.
"""

_NEVER_TOASTED = re.compile(
    r"bool|int[248]|oid|float[48]|date|time(tz)?|timestamp(tz)?|interval|money|uuid|char|name|macaddr8?|pg_lsn|xid8?|cid"
    r"|tid|point|lseg|box|line|circle|reg\w+"
)
"""Types of pg_catalog with a fixed length: their values are always in the row itself."""


def new_marker() -> str:
    """Return a text that stands for an unchanged large value; random, so that no user value can equal it."""
    return f"~rosetta-unchanged-{secrets.token_hex(16)}~"


def properties(marker: str) -> dict[str, str]:
    """Return the engine properties that the conversion relies on; `text_converter.install` must have run.

    Args:
        marker: what stands for an unchanged large value; use `new_marker()` once a process.
    """
    return {
        "converters": _CONVERTER,
        f"{_CONVERTER}.type": text_converter.CLASS_NAME,
        f"{_CONVERTER}.unchanged": marker,
        "driver.options": SESSION_OPTIONS,
        "include.unknown.datatypes": "true",
        "event.converting.failure.handling.mode": "fail",
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
        # Else a NULL in a column that has a default would arrive as the default.
        "key.converter.replace.null.with.default": "false",
        "value.converter.replace.null.with.default": "false",
    }


def expression(column: Column, value: str) -> str:
    """Return the SQL expression that makes PostgreSQL's text of a column's JSON value.

    Args:
        column: a column that `unreadable` does not refuse.
        value: SQL expression of type VARCHAR: the JSON string unquoted, NULL for a JSON null.

    Raises:
        ValueError: the column cannot be carried exactly.
    """
    if reason := unreadable(column):
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
    fixed = column.type_schema == "pg_catalog" and _NEVER_TOASTED.fullmatch(column.type_name)
    if fixed or column.type_kind == "e":
        return None
    return f"({value} IS NOT DISTINCT FROM {quote_literal(marker)})"
