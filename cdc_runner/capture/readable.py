"""Columns that no engine can carry: PostgreSQL writes their values as text and reads no text back."""

from __future__ import annotations

import re

from cdc_runner.schema import Column, TableSchema

_UNREADABLE = re.compile(r"pg_node_tree|pg_ndistinct|pg_dependencies|pg_mcv_list|pg_brin_\w+|gtsvector")
"""Types of pg_catalog whose input function refuses every text."""


def unreadable(column: Column) -> str | None:
    """Return why a column's values cannot be written anywhere, None when they can."""
    if column.type_schema == "pg_catalog" and _UNREADABLE.fullmatch(column.type_name.removeprefix("_")):
        return f"PostgreSQL reads no text as {column.type_name}"
    return None


def unreadable_columns(schema: TableSchema) -> dict[str, str]:
    """Return such columns of a table, with the reason for each."""
    reasons = {column.name: unreadable(column) for column in schema.columns}
    return {name: reason for name, reason in reasons.items() if reason}
