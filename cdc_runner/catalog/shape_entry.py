"""The part of a table's entry in the configuration file that says how its rows are shaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from cdc_runner.custom_sql.query import CustomSqlRefused, parse_query
from cdc_runner.row_filter.form import render_form
from cdc_runner.row_filter.sql import FilterRefused, RowFilter, parse_filter
from cdc_runner.spec import Mask, MaskKind, SyncMode, TableShape

MAX_TRUNCATE = 1000
MAX_CONSTANT = 1000


def _filter(value: object) -> object:
    """Return a filter as it is to be stored, whatever form it was given in."""
    if value is None or isinstance(value, RowFilter):
        return value
    try:
        if isinstance(value, Mapping):
            value = render_form(value)
        if not isinstance(value, str):
            raise FilterRefused("it must be a condition as text, or in builder form")
        return parse_filter(value)
    except FilterRefused as error:
        raise PydanticCustomError("filter", "{reason}", {"reason": error.message.removeprefix("filter: ")}) from None


def _masks(value: object) -> object:
    if not isinstance(value, Mapping):
        raise PydanticCustomError("mask", "must be a mapping of columns to masks")
    return {name: mask if isinstance(mask, Mask) else _mask(name, mask) for name, mask in value.items()}


def _mask(name: object, value: object) -> Mask:
    if not isinstance(name, str) or not name or "\x00" in name:
        raise PydanticCustomError("mask", "must name columns")
    if value is None or value == "null":
        return Mask(MaskKind.NULL)
    if value == "hash":
        return Mask(MaskKind.HASH)
    if isinstance(value, Mapping) and len(value) == 1:
        length, text = value.get("truncate"), value.get("constant")
        if isinstance(length, int) and not isinstance(length, bool) and 0 <= length <= MAX_TRUNCATE:
            return Mask(MaskKind.TRUNCATE, length=length)
        if isinstance(text, str) and len(text) <= MAX_CONSTANT and "\x00" not in text:
            return Mask(MaskKind.CONSTANT, text=text)
    raise PydanticCustomError("mask", "a mask is hash, null, {truncate: NUMBER OF CHARACTERS} or {constant: TEXT}", {})


def _custom_sql(value: object) -> object:
    """Return a statement that can be kept right, as it was written."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise PydanticCustomError("custom_sql", "must be a SELECT as text")
    try:
        parse_query(value)
    except CustomSqlRefused as error:
        reason = error.message.removeprefix("custom SQL: ")
        raise PydanticCustomError("custom_sql", "{reason}", {"reason": reason}) from None
    return value.strip()


CustomSql = Annotated[Any, BeforeValidator(_custom_sql)]
Filter = Annotated[Any, BeforeValidator(_filter)]
Masks = Annotated[Any, BeforeValidator(_masks)]


def table_shape(
    row_filter: RowFilter | None,
    columns: Sequence[str] | None,
    exclude: Sequence[str],
    rename: Mapping[str, str],
    masks: Mapping[str, Mask],
    mode: str,
    custom_sql: str | None = None,
    key: Sequence[str] = (),
) -> TableShape:
    """Return the shape that the fields of an entry ask for."""
    return TableShape(
        filter=row_filter.sql if row_filter else None,
        filter_columns=row_filter.columns if row_filter else (),
        columns=None if columns is None else tuple(dict.fromkeys(columns)),
        exclude=tuple(sorted(set(exclude))),
        rename=tuple(sorted(rename.items())),
        masks=tuple(sorted(masks.items())),
        mode=SyncMode(mode),
        custom_sql=custom_sql,
        key=tuple(key),
    )


def shape_fields(shape: TableShape) -> dict[str, Any]:
    """Return the fields of an entry that ask for a shape; an entry with them has that very shape."""
    fields: dict[str, Any] = {
        # Not as text: what is written is not read the same again, and another filter loads the table anew.
        "filter": None if shape.filter is None else RowFilter(shape.filter, shape.filter_columns),
        "columns": None if shape.columns is None else list(shape.columns),
        "exclude": list(shape.exclude),
        "rename": dict(shape.rename),
        "mask": {name: _mask_field(mask) for name, mask in shape.masks},
        "custom_sql": shape.custom_sql,
        "key": list(shape.key),
        "mode": None if shape.mode is SyncMode.MIRROR else shape.mode.value,
    }
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def _mask_field(mask: Mask) -> str | dict[str, int | str | None]:
    if mask.kind is MaskKind.TRUNCATE:
        return {"truncate": mask.length}
    return {"constant": mask.text} if mask.kind is MaskKind.CONSTANT else mask.kind.value


def shown_shape(shape: TableShape) -> str:
    """Return a shape as one line for the plan of an apply; empty for a plain copy."""
    parts = []
    if shape.filter:
        parts.append(f"where {shape.filter}")
    if shape.columns is not None:
        parts.append(f"columns {', '.join(shape.columns)}")
    if shape.exclude:
        parts.append(f"without {', '.join(shape.exclude)}")
    if shape.rename:
        parts.append("renamed " + ", ".join(f"{old} to {new}" for old, new in shape.rename))
    if shape.masks:
        parts.append("masked " + ", ".join(f"{name} ({_shown_mask(mask)})" for name, mask in shape.masks))
    if shape.mode is not SyncMode.MIRROR:
        parts.append(shape.mode.value)
    if shape.custom_sql is not None:
        parts.append(" ".join(shape.custom_sql.split()))
    if shape.key:
        parts.append(f"key {', '.join(shape.key)}")
    return "; ".join(parts)


def _shown_mask(mask: Mask) -> str:
    if mask.kind is MaskKind.TRUNCATE:
        return f"truncate {mask.length}"
    return f"constant {mask.text!r}" if mask.kind is MaskKind.CONSTANT else mask.kind.value
