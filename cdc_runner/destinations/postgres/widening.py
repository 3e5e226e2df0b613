"""Which type holds every value of another, and which conversions give the same on both sides. Pure."""

from __future__ import annotations

import re

from cdc_runner.destinations.postgres.type_catalog import BUILT_IN
from cdc_runner.destinations.postgres.type_names import SchemaMap, is_array, modifiers, same_schema, target_type
from cdc_runner.schema import Column

_INTEGER_DIGITS = {"int2": 5, "int4": 10, "int8": 19}

_HELD: dict[str, frozenset[str]] = {
    "int2": frozenset({"int4", "int8", "float4", "float8"}),
    "int4": frozenset({"int8", "float8"}),
    "float4": frozenset({"float8"}),
    "date": frozenset({"timestamp"}),
    "name": frozenset({"varchar"}),
    "cidr": frozenset({"inet"}),
    "macaddr": frozenset({"macaddr8"}),
    "varchar": frozenset({"citext"}),
    "text": frozenset({"citext"}),
    "citext": frozenset({"varchar"}),
}
"""Target types without modifiers that hold every value of a type."""

_PRECISION = frozenset({"time", "timetz", "timestamp", "timestamptz", "interval"})
_CHARACTER = frozenset({"varchar", "bpchar"})
_BITS = frozenset({"bit", "varbit"})

# The conversion to text of these depends on no session setting, so that the source's and the target's agree.
_TO_TEXT_ALIKE = frozenset(
    {"int2", "int4", "int8", "numeric", "bool", "uuid", "varchar", "bpchar", "name", "json", "jsonb", "inet", "cidr"}
    | {"macaddr", "macaddr8", "citext", "xml", "ltree", "hstore", "text", "bit", "varbit"}
)

_ALIKE = frozenset({("json", "jsonb"), ("jsonb", "json"), ("bit", "varbit")})
"""Conversions that lose form, but the same form on both sides."""


def accepts(source: Column, target: Column, schema_map: SchemaMap) -> bool:
    """Tell whether a target column takes every value of a source column without loss.

    Args:
        source: a column of the source.
        target: a column of the target, with the target's type names.
        schema_map: source schema to target schema.
    """
    if target_type(source, schema_map) == target_type(target, same_schema):
        return True
    if target.type_kind == "d":
        # It may have constraints that the source's type does not have.
        return False
    if _takes_text(target):
        return True
    if is_array(source) != is_array(target):
        return False
    if target.type_schema not in BUILT_IN:
        if _base(target) == "citext":
            return _holds(_base(source), _numbers(source), "citext", ())
        # Of the same user type, a column without modifiers takes those with any.
        return not modifiers(target) and target_type(source, schema_map).replace(modifiers(source), "") == target_type(
            target, same_schema
        )
    if source.type_schema not in BUILT_IN and source.type_kind != "d" and _base(source) != "citext":
        return False
    return _holds(_base(source), _numbers(source), _base(target), _numbers(target))


def holds(before: Column, after: Column) -> bool:
    """Tell whether every value of a source column has the same meaning in another built-in type of the source."""
    if is_array(before) != is_array(after) or {before.type_schema, after.type_schema} > set(BUILT_IN):
        return False
    return _holds(_base(before), _numbers(before), _base(after), _numbers(after)) or _takes_text(after)


def _takes_text(target: Column) -> bool:
    """Tell whether a column takes any text, and so the text form of everything."""
    return not is_array(target) and (_base(target) == "text" or (_base(target) == "varchar" and not modifiers(target)))


def converts_alike(before: Column, after: Column) -> bool:
    """Tell whether `ALTER COLUMN ... TYPE` at the target makes of old rows what it made of them at the source.

    Taken that the source converted them by the types' own cast; a USING clause there leaves no trace in the stream.
    """
    if is_array(before) != is_array(after):
        return False
    old, new = _base(before), _base(after)
    if (old, new) in _ALIKE:
        return True
    if new == "text" or (new == "varchar" and not modifiers(after)):
        return old in _TO_TEXT_ALIKE or before.type_kind == "e"
    if before.type_kind == "e" and after.type_kind == "e":
        return True
    return _holds(old, _numbers(before), new, _numbers(after))


def _holds(old: str, old_numbers: tuple[int, ...], new: str, new_numbers: tuple[int, ...]) -> bool:
    if old == new:
        return _same_type(old, old_numbers, new_numbers)
    if new in _HELD.get(old, ()) and not new_numbers:
        return True
    if new == "numeric" and old in _INTEGER_DIGITS:
        return not new_numbers or new_numbers[0] - _scale(new_numbers) >= _INTEGER_DIGITS[old]
    if old in _CHARACTER and new == "varchar":
        return bool(old_numbers) and new_numbers[:1] >= old_numbers[:1] if new_numbers else True
    if old == "bit" and new == "varbit":
        return not new_numbers or new_numbers[0] >= (old_numbers or (1,))[0]
    return False


def _same_type(name: str, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    if old == new:
        return True
    if name == "numeric":
        if not new:
            return True
        return bool(old) and _scale(new) >= _scale(old) and new[0] - _scale(new) >= old[0] - _scale(old)
    if name in _CHARACTER or name == "varbit":
        # `character` without a length comes as bpchar with none, which is unlimited, as varchar's is.
        return not new or (bool(old) and new[0] >= old[0])
    if name in _PRECISION:
        return not new or (bool(old) and new[0] >= old[0])
    # Modifiers of other types (bit, geometry, vector) say which values they take at all.
    return not new and name not in _BITS


def _scale(numbers: tuple[int, ...]) -> int:
    return numbers[1] if len(numbers) > 1 else 0


def _base(column: Column) -> str:
    """Return the type's name, of an array its element's, of a domain the base type's."""
    if is_array(column) or column.type_kind == "d":
        return column.element or column.type_name
    return column.type_name


def _numbers(column: Column) -> tuple[int, ...]:
    found = re.fullmatch(r"\((-?\d+)(?:,(-?\d+))?\)", modifiers(column))
    return tuple(int(number) for number in found.groups() if number is not None) if found else ()
