"""The tables of a pipeline's destination in a configuration file: one, a pattern of several, or a preset."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from cdc_runner.catalog.entry_fields import STRICT, Name, storable
from cdc_runner.catalog.shape_entry import CustomSql, Filter, Masks, table_shape
from cdc_runner.spec import TableShape

_PART = r'(?:"(?:[^"\x00]|"")+"|[^".\x00]+)'
_PATTERN = re.compile(rf"^{_PART}(?:\.{_PART})?$")


def _table_pattern(value: object) -> object:
    if isinstance(value, str) and not _PATTERN.match(value):
        raise PydanticCustomError(
            "table_pattern", 'must be schema.table, with * and ?; quote a half that holds a dot: "my.schema".orders'
        )
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Identifier = Annotated[str, BeforeValidator(storable), StringConstraints(min_length=1, max_length=63)]
TablePattern = Annotated[
    str, BeforeValidator(storable), BeforeValidator(_table_pattern), StringConstraints(max_length=300)
]
TagName = Annotated[str, BeforeValidator(_lower), StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=63)]


class TableEntry(BaseModel):
    """A table, or a pattern of tables, of a pipeline's destination."""

    model_config = STRICT

    table: TablePattern
    target: Identifier | None = None
    filter: Filter = None
    columns: Annotated[list[Identifier], Field(min_length=1)] | None = None
    exclude: list[Identifier] = []
    rename: dict[Identifier, Identifier] = {}
    mask: Masks = {}
    mode: Literal["mirror", "soft_delete", "history"] = "mirror"
    custom_sql: CustomSql = None
    key: list[Identifier] = []
    tags: list[TagName] = []

    @model_validator(mode="after")
    def _one_target_for_one_table(self) -> TableEntry:
        pattern = is_pattern(self.table)
        if self.target is not None and pattern:
            raise PydanticCustomError("target_of_pattern", "a pattern of several tables cannot have one target")
        if pattern and not self.shape.plain:
            raise PydanticCustomError(
                "shape_of_pattern",
                "a pattern of several tables takes none of filter, columns, exclude, rename, mask, mode and custom_sql",
            )
        if self.custom_sql is None and self.key:
            raise PydanticCustomError("key_of_copy", "key belongs to custom_sql; a copy has the key of its table")
        beside = (self.filter, self.columns, self.exclude, self.rename, self.mode != "mirror")
        if self.custom_sql is not None and any(beside):
            raise PydanticCustomError(
                "custom_sql_alone",
                "custom_sql takes none of filter, columns, exclude, rename and mode beside it: write it in the SELECT",
            )
        return self

    @property
    def shape(self) -> TableShape:
        """How the rows are shaped."""
        return table_shape(
            self.filter, self.columns, self.exclude, self.rename, self.mask, self.mode, self.custom_sql, self.key
        )


class PresetEntry(BaseModel):
    """The tables and patterns of a preset of the pipeline's source, each with these tags."""

    model_config = STRICT

    preset: Name
    tags: list[TagName] = []


UNION_TAGS = ("one table", "a preset")
"""Pydantic puts them into the place of a problem; no field is called so."""


def _which(value: Any) -> str:
    return UNION_TAGS["preset" in value and "table" not in value] if isinstance(value, dict) else UNION_TAGS[0]


TablesEntry = Annotated[
    Annotated[TableEntry, Tag(UNION_TAGS[0])] | Annotated[PresetEntry, Tag(UNION_TAGS[1])], Discriminator(_which)
]


def is_pattern(table: str) -> bool:
    """Whether this may be several tables."""
    return any(character in table for character in "*?[")


def split_table(pattern: str) -> tuple[str, str]:
    """Return schema and table of a plain or quoted `schema.table`; without a schema it is `public`."""
    parts = [part[1:-1].replace('""', '"') if part.startswith('"') else part for part in re.findall(_PART, pattern)]
    return (parts[0], parts[1]) if len(parts) == 2 else ("public", parts[0])
