"""Rows as lines of JSON, made by the source server in the form that landing tables take."""

from __future__ import annotations

import json

from cdc_runner.destinations.snowflake import naming
from cdc_runner.destinations.snowflake.rows import Shape
from cdc_runner.position import Position
from cdc_runner.schema import Column, quote_identifier, quote_literal
from cdc_runner.shaping.columns import ColumnPlan
from cdc_runner.spec import Mask, MaskKind

LOAD_ORDINAL = 1 << 60
"""Ordinals of loaded rows begin here, above those of events."""

_CHUNK_BITS = 36
_PLAIN = frozenset(
    {"int2", "int4", "int8", "oid", "numeric", "float4", "float8", "text", "varchar", "uuid", "json", "jsonb", "date",
     "timestamp", "time", "timetz", "bytea", "interval"}
)  # fmt: skip
"""Types whose cast to text gives what their output function gives."""

_NUMBER = '"_rosetta number"'

MISFIT = "_ROSETTA_MISFIT"

_MISFITS = {
    "date": "NOT isfinite({c}) OR {c} < DATE '0001-01-01' OR {c} > DATE '9999-12-31'",
    "timestamp": "NOT isfinite({c}) OR {c} < TIMESTAMP '0001-01-01' OR {c} >= TIMESTAMP '10000-01-01'",
    "timestamptz": "NOT isfinite({c}) OR {c} < TIMESTAMPTZ '0001-01-01 00:00+00' "
    "OR {c} >= TIMESTAMPTZ '10000-01-01 00:00+00'",
    "time": "{c} = TIME '24:00'",
    "bytea": "octet_length({c}) > 8388608",
    "numeric": "{c}::text !~ '^-?[0-9.]+$'",
    "geometry": "substr({c}::text, 9, 1) NOT IN ('0', '2')",
    "geography": "substr({c}::text, 9, 1) <> '2'",
}


def chunk_ordinal(chunk: int) -> int:
    """Return the ordinal before the first row of a chunk."""
    return LOAD_ORDINAL | (chunk + 1) << _CHUNK_BITS


def select_rows(shape: Shape, lsn: int, chunk: int, at: str, rows: str, plan: ColumnPlan | None = None) -> str:
    """Return a SELECT of one JSON object a row, numbered in the order in which they come.

    A row that cannot be carried is a line that says which column is the reason, and holds the row.

    Args:
        shape: of the table.
        lsn: of the snapshot.
        chunk: number of the chunk.
        at: time of the load, as text.
        rows: what comes after FROM to read the chunk's rows, WHERE included.
        plan: how the sync shapes the table; hashes and shortened texts are made of what comes (`pack.masked`).
    """
    prefix = str(Position(lsn)).partition("/")[0]
    number = f"to_hex({chunk_ordinal(chunk)}::bigint + t.{_NUMBER})"
    fields = [
        (naming.POSITION, f"{quote_literal(prefix + '/')} || lpad({number}, 16, '0')"),
        (naming.OPERATION, quote_literal("u" if shape.schema.key else "i")),
        (naming.COMMITTED_AT, quote_literal(at)),
        (naming.TRANSACTION, "NULL::text"),
        (naming.UNCHANGED, "NULL::text"),
    ]
    misfits: list[tuple[str, str]] = []
    for place, column in enumerate(shape.schema.stream_columns):
        mask = None if plan is None else plan.masks[place]
        origin = column if plan is None else plan.source.stream_columns[plan.places[place]]
        fields.append((shape.columns[column.name], _text(shape, column, origin, mask)))
        if mask is None and shape.carried(column).fits is not None:
            test = _MISFITS[_base(column)].replace("{c}", f"t.{quote_identifier(origin.name)}")
            misfits.append((column.name, test))
    named = ", ".join(f"{value} AS {quote_identifier(name)}" for name, value in fields)
    line = "row_to_json(r)::text"
    if misfits:
        whens = " ".join(f"WHEN {test} THEN {quote_literal(_misfit(name))} || {line} || '}}'" for name, test in misfits)
        line = f"CASE {whens} ELSE {line} END"
    numbered = f"SELECT row_number() OVER () AS {_NUMBER}, * FROM {rows}"
    return f"SELECT {line} FROM ({numbered}) AS t, LATERAL (SELECT {named}) AS r"


def _misfit(column: str) -> str:
    # The row itself follows, for the dead-letter queue.
    return f'{{"{MISFIT}":{json.dumps(column, ensure_ascii=False)},"row":'


def _base(column: Column) -> str:
    return column.element if column.type_kind == "d" and column.element else column.type_name


def _text(shape: Shape, column: Column, origin: Column, mask: Mask | None) -> str:
    if mask is not None and mask.kind is MaskKind.NULL:
        return "NULL::text"
    if mask is not None and mask.kind is MaskKind.CONSTANT:
        return f"{quote_literal(mask.text or '')}::text"
    value = f"t.{quote_identifier(origin.name)}"
    loaded = None if mask is not None else shape.carried(column).loaded
    if loaded is not None:
        return loaded(value)
    if mask is None and shape.carried(column).type.startswith("TIMESTAMP_TZ"):
        # The session's zone is UTC, and Snowflake reads offsets of hours and minutes.
        return f"{value}::text || ':00'"
    if origin.type_name in _PLAIN:
        return f"{value}::text"
    # A cast to text is not the output function for some types: character(n) loses blanks, inet gains a mask.
    return f"CASE WHEN {value} IS NOT NULL THEN format('%s', {value}) END"
