"""Definitions of user types, read from a database's catalogs together with the types that they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg2
import psycopg2.extensions

from cdc_runner.schema import Column, quote_identifier

MADE_HERE = "Made by Rosetta as the source has it"
"""Comment of types that were created at the target; others belong to somebody and are not taken anything from."""

BUILT_IN = ("pg_catalog", "information_schema")
"""Schemas whose types every server has."""

# rngmultitypid came with PostgreSQL 14; through jsonb the query also runs before that.
_CLOSURE = """
WITH RECURSIVE edge(parent, child) AS (
  SELECT 0::oid, t.oid FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
  JOIN unnest(%(schemas)s::text[], %(names)s::text[]) AS w(nsp, typ) ON n.nspname = w.nsp AND t.typname = w.typ
 UNION
  SELECT edge.child, part.oid FROM edge JOIN pg_type t ON t.oid = edge.child CROSS JOIN LATERAL (
    SELECT t.typelem AS oid WHERE t.typtype = 'b'
    UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
    UNION ALL SELECT a.atttypid FROM pg_attribute a
              WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid
    UNION ALL SELECT r.rngtypid FROM pg_range r WHERE (to_jsonb(r) ->> 'rngmultitypid')::oid = t.oid
  ) part WHERE part.oid <> 0
)
SELECT parent, child FROM edge
"""

_TYPES = """
SELECT t.oid, n.nspname, t.typname, t.typtype::text, coalesce(c.relkind::text, ''), t.typnotnull,
       e.extname, en.nspname,
       CASE WHEN t.typtype = 'b' AND t.typcategory = 'A' AND t.typelem <> 0 AND t.typlen = -1 THEN t.typelem ELSE 0 END,
       ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder),
       pg_catalog.obj_description(t.oid, 'pg_type')
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_class c ON c.oid = t.typrelid
LEFT JOIN pg_depend d ON d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
  AND (d.classid = 'pg_type'::regclass AND d.objid = t.oid
       OR d.classid = 'pg_class'::regclass AND d.objid = t.typrelid AND t.typrelid <> 0)
LEFT JOIN pg_extension e ON e.oid = d.refobjid
LEFT JOIN pg_namespace en ON en.oid = e.extnamespace
WHERE t.oid = ANY (%(oids)s)
"""

# What a type is made of, as columns: the base of a domain, the attributes of a composite, the subtype of a range.
_PARTS = """
SELECT p.owner, p.name, pg_catalog.format_type(t.oid, p.modifier), t.typname, n.nspname, t.typtype::text,
       t.typcategory::text, CASE WHEN t.typcategory = 'A' AND t.typelem <> 0 THEN e.typname END
FROM (
  SELECT d.oid AS owner, 'value' AS name, d.typbasetype AS type, d.typtypmod AS modifier, 0 AS place
  FROM pg_type d WHERE d.oid = ANY (%(oids)s) AND d.typtype = 'd'
  UNION ALL
  SELECT c.oid, a.attname, a.atttypid, a.atttypmod, a.attnum
  FROM pg_type c JOIN pg_attribute a ON a.attrelid = c.typrelid AND a.attnum > 0 AND NOT a.attisdropped
  WHERE c.oid = ANY (%(oids)s) AND c.typtype = 'c'
  UNION ALL
  SELECT r.rngtypid, 'subtype', r.rngsubtype, -1, 0 FROM pg_range r WHERE r.rngtypid = ANY (%(oids)s)
) p
JOIN pg_type t ON t.oid = p.type JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_type e ON e.oid = t.typelem
ORDER BY p.owner, p.place
"""

# Constraints that are NOT VALID may be broken by old values, so a target that has them could not take those.
_CHECKS = """
SELECT contypid, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE contypid = ANY (%(oids)s) AND contype = 'c' AND convalidated ORDER BY contypid, conname
"""

_RANGES = """
SELECT r.rngtypid, mn.nspname, m.typname, o.opcdefault, quote_ident(opn.nspname) || '.' || quote_ident(o.opcname),
       CASE WHEN dn.nspname = 'pg_catalog' THEN quote_ident(f.proname) END
FROM pg_range r
JOIN pg_opclass o ON o.oid = r.rngsubopc JOIN pg_namespace opn ON opn.oid = o.opcnamespace
LEFT JOIN pg_proc f ON f.oid = r.rngsubdiff LEFT JOIN pg_namespace dn ON dn.oid = f.pronamespace
LEFT JOIN pg_type m ON m.oid = (to_jsonb(r) ->> 'rngmultitypid')::oid
LEFT JOIN pg_namespace mn ON mn.oid = m.typnamespace
WHERE r.rngtypid = ANY (%(oids)s)
"""


@dataclass(slots=True)
class RangeParts:
    """What a range type has beside its subtype. `difference` is a built-in function or None."""

    multirange: tuple[str, str] | None
    operator_class: str | None
    difference: str | None


@dataclass(slots=True)
class UserType:
    """A type and what it is made of.

    Attributes:
        oid: identity in its own database.
        schema: schema of the type.
        name: name of the type.
        kind: `typtype`.
        table_row: the row type of a table or view, which cannot be created by itself.
        not_null: of a domain.
        extension: name of the extension that owns the type.
        extension_schema: where that extension is.
        element: oid of the element when this is an array type, else 0.
        labels: of an enum, in order.
        made_here: whether Rosetta created it.
        parts: base of a domain, attributes of a composite, subtype of a range.
        checks: name and definition of a domain's constraints.
        range_parts: the rest of a range type.
        uses: oids of the types that it is made of.
    """

    oid: int
    schema: str
    name: str
    kind: str
    table_row: bool
    not_null: bool
    extension: str | None
    extension_schema: str | None
    element: int
    labels: tuple[str, ...]
    made_here: bool
    parts: list[Column] = field(default_factory=list)
    checks: list[tuple[str, str]] = field(default_factory=list)
    range_parts: RangeParts | None = None
    uses: list[int] = field(default_factory=list)

    @property
    def built_in(self) -> bool:
        """Whether every server has it."""
        return self.schema in BUILT_IN

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def read_types(
    connection: psycopg2.extensions.connection, names: Iterable[tuple[str, str]]
) -> tuple[Mapping[int, UserType], Mapping[tuple[str, str], int]]:
    """Return the named types and all that they are made of, by oid, and the oids of the named ones that exist.

    Args:
        connection: the database to read; constraint definitions are written for its present `search_path`.
        names: schema and `typname` of types.
    """
    wanted = sorted(set(names))
    parameters = {"schemas": [schema for schema, _ in wanted], "names": [name for _, name in wanted]}
    with connection.cursor() as cursor:
        cursor.execute(_CLOSURE, parameters)
        edges = cursor.fetchall()
        oids = {"oids": sorted({child for _, child in edges})}
        cursor.execute(_TYPES, oids)
        types = {
            row[0]: UserType(
                oid=row[0],
                schema=row[1],
                name=row[2],
                kind=row[3],
                table_row=row[4] not in ("", "c"),
                not_null=row[5],
                extension=row[6],
                extension_schema=row[7],
                element=row[8],
                labels=tuple(row[9]),
                made_here=row[10] == MADE_HERE,
            )
            for row in cursor.fetchall()
        }
        cursor.execute(_PARTS, oids)
        for owner, *part in cursor.fetchall():
            types[owner].parts.append(Column(*part))
        cursor.execute(_CHECKS, oids)
        for owner, name, definition in cursor.fetchall():
            types[owner].checks.append((name, definition))
        cursor.execute(_RANGES, oids)
        for owner, schema, name, is_default, operator_class, difference in cursor.fetchall():
            types[owner].range_parts = RangeParts(
                (schema, name) if name else None, None if is_default else operator_class, difference
            )
    for parent, child in edges:
        if parent:
            types[parent].uses.append(child)
    found = {(types[child].schema, types[child].name): child for parent, child in edges if parent == 0}
    return types, found


@contextmanager
def search_path(connection: psycopg2.extensions.connection, schemas: Iterable[str]) -> Iterator[None]:
    """Run a block with another `search_path`, so that names in expressions are written and read without schema.

    An expression such as `VALUE <> ALL (ARRAY['a'::mood])` then means the same in a database where `mood` is in another
    schema.
    """
    path = ", ".join(quote_identifier(schema) for schema in dict.fromkeys(schemas))
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('search_path'), set_config('search_path', %s, false)", (path,))
        row = cursor.fetchone()
    assert row is not None, "a SELECT without FROM returns a row"
    try:
        yield
    finally:
        # A transaction that failed restores the setting when it is rolled back.
        if connection.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_INERROR:
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('search_path', %s, false)", (row[0],))
