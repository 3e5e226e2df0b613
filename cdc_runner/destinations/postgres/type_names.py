"""How a type of the source is named at the target."""

from __future__ import annotations

from collections.abc import Callable

import psycopg2.extensions

from cdc_runner.destinations.postgres.type_catalog import BUILT_IN
from cdc_runner.schema import Column, quote_identifier

SchemaMap = Callable[[str], str]
"""Source schema to target schema."""

_TARGET_TYPES = """
SELECT n.nspname, t.typname, EXISTS (
         SELECT FROM pg_depend d WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
         AND (d.classid = 'pg_type'::regclass AND d.objid = t.oid
              OR d.classid = 'pg_class'::regclass AND d.objid = t.typrelid AND t.typrelid <> 0))
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE n.nspname <> ALL (%s) AND coalesce(c.relkind, 'c') = 'c'
  AND NOT EXISTS (SELECT FROM pg_type element WHERE element.typarray = t.oid)
"""


class TypePlaces:
    """A schema map that also knows where the target has the types of its extensions.

    An extension is in a database once, in whatever schema somebody chose, so its types are found by name there and not
    by the schema that the source has them in. Use it wherever a schema map is asked for.
    """

    def __init__(self, schema_map: SchemaMap) -> None:
        self._schema_map = schema_map
        self._types: set[tuple[str, str]] = set()
        self._extension_types: dict[str, str] = {}

    def __call__(self, schema: str) -> str:
        """Return the target schema of a source schema."""
        return self._schema_map(schema)

    def learn(self, target: psycopg2.extensions.connection) -> None:
        """Read which types the target has; `types.ensure_types` does so after it has created some."""
        with target.cursor() as cursor:
            cursor.execute(_TARGET_TYPES, (list(BUILT_IN),))
            rows = cursor.fetchall()
        self._types = {(schema, name) for schema, name, _ in rows}
        self._extension_types = {name: schema for schema, name, owned in rows if owned}

    def place(self, schema: str, name: str) -> tuple[str, str]:
        """Return schema and name that a source's type has at the target."""
        mapped = self._schema_map(schema)
        if (mapped, name) not in self._types and name in self._extension_types:
            return self._extension_types[name], name
        return mapped, name


def place_type(schema: str, name: str, schema_map: SchemaMap) -> tuple[str, str]:
    """Return schema and name that a source's type has, or is to get, at the target."""
    if schema in BUILT_IN:
        return schema, name
    if isinstance(schema_map, TypePlaces):
        return schema_map.place(schema, name)
    return schema_map(schema), name


def same_schema(schema: str) -> str:
    """Return the schema itself: the schema map of columns that were read from the target."""
    return schema


def target_type(column: Column, schema_map: SchemaMap) -> str:
    """Return the SQL text of a column's type at the target, with modifiers; it depends on no search_path.

    Args:
        column: a column of the source.
        schema_map: source schema to target schema; a `TypePlaces` also finds types of extensions that the target has in
            another schema.
    """
    if column.type_schema == "pg_catalog":
        return column.type_text
    array = is_array(column)
    name = column.element if array and column.element else column.type_name
    schema, name = place_type(column.type_schema, name, schema_map)
    return f"{quote_identifier(schema)}.{quote_identifier(name)}{modifiers(column)}{'[]' if array else ''}"


def is_array(column: Column) -> bool:
    """Tell whether a column's type is an array type itself; a domain over an array is not."""
    return column.type_kind == "b" and column.type_text.endswith("[]")


def modifiers(column: Column) -> str:
    """Return the modifiers of a type's text with their parentheses, such as `(10,2)`, or an empty text."""
    text = column.type_text.removesuffix("[]")
    if column.type_schema == "pg_catalog":
        start, end = text.find("("), text.find(")")
        return text[start : end + 1] if 0 <= start < end else ""
    # A name that ends with a parenthesis would end with a quote here.
    return text[text.rindex("(") :] if text.endswith(")") and "(" in text else ""
