"""PostgreSQL types at Snowflake: what a target column is, how landing text becomes its value, what it cannot hold.

Landing tables keep PostgreSQL's own text of every value, so nothing is lost before the merge. A value that a target's
type cannot hold is noticed before it is sent (`Carried.fits`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from cdc_runner.schema import Column

MAX_TEXT_BYTES = 16 * 1024 * 1024
MAX_BINARY_BYTES = 8 * 1024 * 1024


def _same(text: str) -> str:
    return text


@dataclass(frozen=True, slots=True)
class Carried:
    """How a column is carried.

    Attributes:
        type: Snowflake's type of the target column.
        value: SQL of Snowflake that makes the value of a landing column's expression.
        exactness: for people: what is the same and what is not.
        fits: SQL of DuckDB that tells whether a text can be carried; None when all can.
        misfit: why a text that does not fit cannot be carried.
        landed: SQL of DuckDB that makes the landing text of PostgreSQL's; None where it is the same.
        loaded: SQL of PostgreSQL that makes the landing text of a value, for loads; None where it is the value's text.
    """

    type: str
    value: Callable[[str], str]
    exactness: str
    fits: Callable[[str], str] | None = None
    misfit: str = ""
    landed: Callable[[str], str] | None = None
    loaded: Callable[[str], str] | None = None


@dataclass(frozen=True, slots=True)
class TypeRules:
    """What is open to choice.

    Attributes:
        arrays: `variant`, `array` or `text`.
        spatial: `text`, or `native` for GEOGRAPHY and GEOMETRY.
    """

    arrays: str = "variant"
    spatial: str = "text"


def _cast(type_: str) -> Callable[[str], str]:
    return lambda text: f"CAST({text} AS {type_})"


def _matches(pattern: str) -> Callable[[str], str]:
    return lambda text: f"regexp_full_match({text}, '{pattern}')"


_NUMBER = r"-?[0-9]+(\.[0-9]+)?"
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r"(0[0-9]|1[0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(\.[0-9]+)?"
_OUT_OF_RANGE = "infinity, years BC and years after 9999 do not exist there"

DEFAULT_RULES = TypeRules()

TEXT = Carried("VARCHAR", _same, "PostgreSQL's text, character by character")

_FIXED: dict[str, Carried] = {
    "bool": Carried("BOOLEAN", _cast("BOOLEAN"), "exact"),
    "int2": Carried("NUMBER(5,0)", _cast("NUMBER(5,0)"), "exact"),
    "int4": Carried("NUMBER(10,0)", _cast("NUMBER(10,0)"), "exact"),
    "int8": Carried("NUMBER(19,0)", _cast("NUMBER(19,0)"), "exact"),
    "oid": Carried("NUMBER(10,0)", _cast("NUMBER(10,0)"), "exact"),
    "float4": Carried("FLOAT", _cast("FLOAT"), "the number that the text says, in double precision"),
    "float8": Carried("FLOAT", _cast("FLOAT"), "exact; NaN and infinities too"),
    "date": Carried("DATE", _cast("DATE"), "exact", _matches(_DATE), _OUT_OF_RANGE),
    "timestamp": Carried(
        "TIMESTAMP_NTZ(6)", _cast("TIMESTAMP_NTZ(6)"), "exact", _matches(f"{_DATE} {_TIME}"), _OUT_OF_RANGE
    ),
    "timestamptz": Carried(
        "TIMESTAMP_TZ(6)",
        _cast("TIMESTAMP_TZ(6)"),
        "the same instant, with offset +00:00",
        _matches(rf"{_DATE} {_TIME}[+-][0-9]{{2}}(:[0-9]{{2}})?"),
        _OUT_OF_RANGE,
    ),
    "time": Carried("TIME(6)", _cast("TIME(6)"), "exact", _matches(_TIME), "24:00 does not exist there"),
    "uuid": Carried("VARCHAR(36)", _same, "exact"),
    "bytea": Carried(
        "BINARY",
        lambda text: f"TO_BINARY(SUBSTR({text}, 3), 'HEX')",
        "exact",
        lambda text: f"strlen({text}) <= {2 * MAX_BINARY_BYTES + 2}",
        "it is longer than 8 MB",
    ),
    "json": Carried(
        "VARIANT",
        lambda text: f"PARSE_JSON({text})",
        "the same value; white space, the order of members and digits beyond 38 are not kept",
    ),
    "jsonb": Carried("VARIANT", lambda text: f"PARSE_JSON({text})", "the same value; digits beyond 38 are not kept"),
}

FIXED_WIDTH = frozenset(
    {"bool", "int2", "int4", "int8", "oid", "float4", "float8", "date", "timestamp", "timestamptz", "time", "timetz",
     "uuid", "interval", "money", "macaddr", "macaddr8", "point", "lseg", "box", "line", "circle", "pg_lsn", "xid8"}
)  # fmt: skip
"""Types whose values are never stored apart from their row, so that an update always carries them."""

_NUMERIC = re.compile(r"numeric\((\d+),(-?\d+)\)")


_NUMBERS = frozenset({"int2", "int4", "int8", "oid", "float4", "float8", "numeric"})
_TEXTS = frozenset({"text", "varchar", "uuid", "date", "timestamp", "timestamptz", "time"})
"""Element types whose cast to text gives what their output function gives."""

_TOKENS = """'"(?:[^"\\\\]|\\\\.)*"|[{},]|[^{},"]+'"""


def _array(element: str, type_: str) -> Carried:
    """An array as JSON: numbers and booleans as such, everything else as its text, nested as the array is.

    Args:
        element: name of the elements' type.
        type_: `VARIANT` or `ARRAY`.
    """
    plain = "to_json(t)::VARCHAR"
    if element in _NUMBERS:
        plain = f"CASE WHEN regexp_full_match(t, '-?[0-9.]+([eE][-+]?[0-9]+)?') THEN t ELSE {plain} END"
    elif element == "bool":
        plain = "CASE t WHEN 't' THEN 'true' ELSE 'false' END"
    quoted = r"to_json(regexp_replace(substr(t, 2, length(t) - 2), '\\(.)', '\1', 'gs'))::VARCHAR"

    def landed(text: str) -> str:
        # A prefix tells the bounds of an array that does not begin with 1.
        tokens = f"regexp_extract_all(regexp_replace({text}, '^[^{{]*=', ''), {_TOKENS})"
        token = (
            "CASE WHEN t = '{' THEN '[' WHEN t = '}' THEN ']' WHEN t = ',' THEN ',' WHEN t = 'NULL' THEN 'null' "
            f"WHEN t[1] = '\"' THEN {quoted} ELSE {plain} END"
        )
        return f"array_to_string(list_transform({tokens}, lambda t: {token}), '')"

    def loaded(value: str) -> str:
        return f"to_json({value})::text" if plainly else f"to_json({value}::text[])::text"

    plainly = element in _NUMBERS or element == "bool"
    exactness = "the same elements, nested; bounds and digits beyond 38 are not kept"
    parsed = "CAST(PARSE_JSON({}) AS ARRAY)" if type_ == "ARRAY" else "PARSE_JSON({})"
    return Carried(type_, parsed.format, exactness, landed=landed, loaded=loaded)


def _spatial(type_: str) -> Carried:
    """PostGIS as Snowflake's own type, from the hexadecimal EWKB; that has no Z and M."""
    fits = "substr({}, 9, 1) IN ('0', '2')" + (" AND substr({}, 9, 1) = '2'" if type_ == "GEOGRAPHY" else "")
    return Carried(
        type_,
        lambda text: f"TO_{type_}({text}, TRUE)",
        "the same coordinates",
        lambda text: fits.replace("{}", text),
        "it has Z or M coordinates, or no SRID for a GEOGRAPHY",
    )


def carried(column: Column, *, identifying: bool = False, rules: TypeRules = DEFAULT_RULES) -> Carried:
    """Return how a column of the source is carried.

    Args:
        column: of the source.
        identifying: whether rows are found by it; a value is compared then, which JSON is not made for.
        rules: what is open to choice.
    """
    if column.type_category == "A":
        known = column.type_kind == "b" and column.element in _NUMBERS | _TEXTS | {"bool"}
        native = known and not identifying and rules.arrays != "text"
        return _array(str(column.element), rules.arrays.upper()) if native else TEXT
    if column.type_name in ("geometry", "geography") and rules.spatial == "native" and not identifying:
        return _spatial(column.type_name.upper())
    name = column.element if column.type_kind == "d" and column.element else column.type_name
    if name == "numeric":
        return _numeric(column)
    if column.type_kind not in ("b", "d") or (identifying and name in ("json", "jsonb")):
        return TEXT
    return _FIXED.get(name, TEXT)


def _numeric(column: Column) -> Carried:
    match = _NUMERIC.fullmatch(column.type_text)
    if match is None:
        return TEXT
    precision, scale = int(match.group(1)), int(match.group(2))
    if scale < 0:
        precision, scale = precision - scale, 0
    precision = max(precision, scale)
    if precision > 38 or scale > 37:
        return TEXT
    type_ = f"NUMBER({precision},{scale})"
    return Carried(type_, _cast(type_), "exact", _matches(_NUMBER), "NaN and infinity do not exist there")


def toastable(column: Column) -> bool:
    """Tell whether an update may leave the column's value out."""
    return column.type_category == "A" or column.type_kind != "b" or column.type_name not in FIXED_WIDTH


def widens(before: Carried, after: Carried) -> bool:
    """Tell whether a column of one type can be altered to the other with all its values as they would be loaded."""
    if before.type == after.type:
        return True
    old, new = _number(before.type), _number(after.type)
    return old is not None and new is not None and old[1] == new[1] and new[0] >= old[0]


def _number(type_: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"NUMBER\((\d+),(\d+)\)", type_)
    return (int(match.group(1)), int(match.group(2))) if match else None
