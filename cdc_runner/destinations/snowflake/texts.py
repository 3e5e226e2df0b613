"""PostgreSQL's text of a value that is stored at Snowflake, as SQL of Snowflake; only where it is the same for sure.

Formats are spelled out, since an account's own settings say how dates are written. `TO_VARCHAR` of a NUMBER writes all
digits of its scale, as PostgreSQL does. A FLOAT is written with fewer digits than it has, and a VARIANT has lost the
spaces and the order that made the text.
"""

from __future__ import annotations

from collections.abc import Callable

_SECONDS = "YYYY-MM-DD HH24:MI:SS.FF6"

WHY_NOT = {
    "FLOAT": "Snowflake writes floating point numbers in another way than PostgreSQL",
    "VARIANT": "Snowflake keeps values of JSON, not their text",
    "ARRAY": "Snowflake keeps values of arrays, not their text",
    "GEOGRAPHY": "Snowflake writes shapes in another way than PostgreSQL",
    "GEOMETRY": "Snowflake writes shapes in another way than PostgreSQL",
}
"""Why a type's values cannot be compared as text."""


def stored_text(type_: str) -> Callable[[str], str] | None:
    """Return what makes the text of a column's expression; None for a type whose text would differ.

    Args:
        type_: of the target's column, as `Carried.type`.
    """
    base = type_.partition("(")[0]
    return _TEXTS.get(base)


def why_not(type_: str) -> str:
    """Return why values of a type cannot be compared."""
    return WHY_NOT.get(type_.partition("(")[0], f"values of type {type_} have no common text")


def _trimmed(text: str) -> str:
    """A fraction of seconds without the zeros at its end, as PostgreSQL writes it."""
    return f"CASE WHEN POSITION('.', {text}) > 0 THEN RTRIM(RTRIM({text}, '0'), '.') ELSE {text} END"


def _moment(column: str) -> str:
    return _trimmed(f"TO_VARCHAR(CAST({column} AS TIMESTAMP_NTZ(6)), '{_SECONDS}')")


def _instant(column: str) -> str:
    utc = f"CONVERT_TIMEZONE('UTC', {column})"
    return f"({_moment(utc)}) || '+00'"


_TEXTS: dict[str, Callable[[str], str]] = {
    "VARCHAR": lambda column: column,
    "NUMBER": lambda column: f"TO_VARCHAR({column})",
    "BOOLEAN": lambda column: f"CASE WHEN {column} THEN 't' WHEN NOT {column} THEN 'f' END",
    "DATE": lambda column: f"TO_VARCHAR(CAST({column} AS DATE), 'YYYY-MM-DD')",
    "TIMESTAMP_NTZ": _moment,
    "TIMESTAMP_TZ": _instant,
    "TIME": lambda column: _trimmed(f"TO_VARCHAR({column}, 'HH24:MI:SS.FF6')"),
    "BINARY": lambda column: f"'\\\\x' || LOWER(HEX_ENCODE({column}))",
}
