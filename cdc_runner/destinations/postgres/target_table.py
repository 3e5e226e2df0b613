"""A target table as it is: columns, unique indexes, what else could stand in the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psycopg2.extensions

from cdc_runner.schema import Column, TableId

KEPT = "Rosetta keeps this column, which the source dropped"
"""Comment of a column that the source dropped and the target keeps."""

_TABLE = """
SELECT c.oid, c.relkind::text, c.relrowsecurity AND row_security_active(c.oid) FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""

_COLUMNS = """
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), t.typname, n.nspname, t.typtype::text,
       t.typcategory::text,
       CASE WHEN t.typcategory = 'A' AND t.typelem <> 0 THEN e.typname
            WHEN t.typtype = 'd' THEN (SELECT b.typname FROM pg_type b WHERE b.oid = t.typbasetype) END,
       a.attnotnull, a.attgenerated <> '', pg_catalog.pg_get_expr(d.adbin, d.adrelid), a.attnum,
       a.attidentity::text, pg_catalog.col_description(a.attrelid, a.attnum), a.attgenerated::text
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_type e ON e.oid = t.typelem
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""

_INDEXES = """
SELECT c.relname, i.indisprimary, con.conname, i.indimmediate AND i.indpred IS NULL AND i.indisvalid,
       (SELECT array_agg(a.attname::text ORDER BY k.place)
        FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(number, place)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number WHERE k.place <= i.indnkeyatts),
       i.indnkeyatts
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_constraint con ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid AND con.contype IN ('p', 'u')
WHERE i.indrelid = %s AND i.indisunique ORDER BY c.relname
"""


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column of a target table.

    Attributes:
        column: type and the like, with the names of the target.
        identity: `a` for GENERATED ALWAYS AS IDENTITY, `d` for BY DEFAULT, else an empty text.
        kept: the source dropped the column, the target keeps it.
        comment: its comment, or None.
    """

    column: Column
    identity: str
    kept: bool
    comment: str | None


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """A unique index of a target table.

    Attributes:
        name: its name.
        columns: its columns; empty when one of them is an expression.
        primary: of the primary key.
        constraint: the constraint it belongs to, if any.
        usable: whole, valid and checked at once, so that `ON CONFLICT` can use it.
    """

    name: str
    columns: tuple[str, ...]
    primary: bool
    constraint: str | None
    usable: bool


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A target table.

    Attributes:
        table: its name.
        oid: its oid.
        kind: `relkind`.
        row_security: whether row security applies to the role.
        columns: by name, in order.
        unique: its unique indexes.
    """

    table: TableId
    oid: int
    kind: str
    row_security: bool
    columns: dict[str, TargetColumn]
    unique: tuple[UniqueIndex, ...]

    @property
    def primary_key(self) -> UniqueIndex | None:
        """The primary key's index."""
        return next((index for index in self.unique if index.primary), None)

    def unique_on(self, columns: Iterable[str]) -> UniqueIndex | None:
        """Return an index by which rows with these columns can be told apart, in whatever order it has them."""
        wanted = set(columns)
        return next((index for index in self.unique if index.usable and set(index.columns) == wanted), None)


def read_target(target: psycopg2.extensions.connection, table: TableId) -> TargetTable | None:
    """Return the table, view or foreign table of that name, or None when there is none."""
    with target.cursor() as cursor:
        cursor.execute(_TABLE, (table.schema, table.name))
        row = cursor.fetchone()
        if row is None:
            return None
        oid, kind, row_security = row
        cursor.execute(_COLUMNS, (oid,))
        columns = {one[0]: _column(one) for one in cursor.fetchall()}
        cursor.execute(_INDEXES, (oid,))
        unique = tuple(
            UniqueIndex(name, tuple(names or ()) if len(names or ()) == width else (), primary, constraint, usable)
            for name, primary, constraint, usable, names, width in cursor.fetchall()
        )
    return TargetTable(table, oid, kind, row_security, columns, unique)


def _column(row: tuple[object, ...]) -> TargetColumn:
    name, text, type_name, schema, kind, category, element, not_null, generated, default, number, *rest = row
    identity, comment, generation = rest
    column = Column(
        name=str(name),
        type_text=str(text),
        type_name=str(type_name),
        type_schema=str(schema),
        type_kind=str(kind),
        type_category=str(category),
        element=None if element is None else str(element),
        not_null=bool(not_null),
        generated=bool(generated),
        default=None if generated or default is None else str(default),
        number=int(str(number)),
        expression=str(default) if generated else None,
        virtual=generation == "v",
    )
    note = None if comment is None else str(comment)
    return TargetColumn(column, str(identity), note is not None and KEPT in note, note)


def kept_name(name: str, number: int, taken: Iterable[str]) -> str:
    """Return another name for a kept column whose name is needed again: `<name>_dropped_<number>`, 63 bytes at most."""
    names = set(taken)
    while True:
        suffix = f"_dropped_{number}"
        stem = name.encode()[: 63 - len(suffix)].decode(errors="ignore")
        if stem + suffix not in names:
            return stem + suffix
        number += 1
