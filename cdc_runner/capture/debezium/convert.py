"""What Debezium is told so that each value comes as PostgreSQL's own text.

With the changes of `text_converter` every value leaves Debezium as the text that the type's output function wrote at
the source (as COPY does: `t` for true, char(n) padded), under TimeZone UTC, DateStyle ISO, IntervalStyle postgres,
extra_float_digits 3, bytea_output hex and lc_monetary C. So the conversion in SQL is the identity, and
`CAST(text AS type)` at a target under the same settings gives the identical value.
"""

from __future__ import annotations

import secrets

from cdc_runner.capture.debezium import text_converter

_CONVERTER = "rosetta"

SESSION_OPTIONS = "-c extra_float_digits=3 -c IntervalStyle=postgres -c bytea_output=hex -c lc_monetary=C"
"""Server settings that shape the text of values and that a role or a database may have changed.

The JDBC driver asks for DateStyle and TimeZone itself; it does not for extra_float_digits on a replication connection.
"""


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
    }
