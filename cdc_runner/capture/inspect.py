"""Read the tables of a source: columns, types, keys and replica identity, from its system catalogs."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg2.extensions

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema

SYSTEM_SCHEMAS = ("pg_catalog", "information_schema", "pg_toast", "_rosetta")
NEW_SCHEMA, KEPT_SCHEMA = "_rosetta_new_", "_rosetta_kept_"
"""Schemas, with a number behind, of tables that a rebuild fills or has replaced; a destination may be a source, too."""

_TABLES = """
SELECT n.nspname, c.relname, c.relreplident::text, c.relkind::text = 'p', c.oid,
       coalesce(pg_relation_filenode(c.oid), 0)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
  AND n.nspname <> ALL (%(system)s) AND n.nspname NOT LIKE 'pg\\_temp\\_%%' AND n.nspname NOT LIKE 'pg\\_toast%%'
  AND (%(names)s::name[] IS NULL OR c.relname = ANY (%(names)s::name[]))
ORDER BY n.nspname, c.relname
"""

# attmissingval is an anyarray of one element; its text through array_to_json would lose exactness, so the element is
# taken as text by subscripting the array's own text form in the reader (array_out, then unnest of the column's type).
# A partition root has none itself; its partitions of that time do.
_COLUMNS = """
SELECT a.attrelid, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), t.typname, tn.nspname, t.typtype::text,
       t.typcategory::text,
       CASE WHEN t.typcategory = 'A' AND t.typelem <> 0 THEN e.typname
            WHEN t.typtype = 'd' THEN (
              WITH RECURSIVE base AS (
                SELECT t.typbasetype AS oid UNION ALL
                SELECT p.typbasetype FROM pg_type p JOIN base ON base.oid = p.oid WHERE p.typbasetype <> 0)
              SELECT p.typname FROM base JOIN pg_type p ON p.oid = base.oid WHERE p.typtype <> 'd' LIMIT 1)
       END,
       a.attnotnull, a.attgenerated <> '', pg_catalog.pg_get_expr(d.adbin, d.adrelid),
       CASE WHEN a.atthasmissing THEN a.attmissingval::text
            WHEN c.relkind = 'p' THEN (
              SELECT l.attmissingval::text FROM pg_partition_tree(c.oid) p JOIN pg_attribute l ON l.attrelid = p.relid
              WHERE p.isleaf AND l.attname = a.attname AND l.atthasmissing LIMIT 1)
       END,
       a.attnum, a.attgenerated = 'v'
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_namespace tn ON tn.oid = t.typnamespace
LEFT JOIN pg_type e ON e.oid = t.typelem
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY (%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

_KEYS = """
SELECT i.indrelid, i.indisprimary, i.indisreplident, i.indimmediate,
       (SELECT array_agg(a.attname::text ORDER BY k.ordinality)
        FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, ordinality)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE k.ordinality <= i.indnkeyatts)
FROM pg_index i
WHERE i.indrelid = ANY (%(oids)s) AND (i.indisprimary OR i.indisreplident) AND i.indisvalid
"""


def split_pattern(pattern: str) -> tuple[str, str]:
    """Return schema and table halves of a pattern such as `public.*`, `"odd.schema"."table"` or `orders`.

    A pattern without a dot means the schema `public`.

    Raises:
        RosettaError: CONFIG_INVALID, an unclosed quote or more than two parts.
    """
    parts: list[str] = []
    rest = pattern
    while True:
        if rest.startswith('"'):
            end = rest.find('"', 1)
            while end != -1 and rest[end : end + 2] == '""':
                end = rest.find('"', end + 2)
            if end == -1:
                raise RosettaError(ErrorKind.CONFIG_INVALID, f"table pattern {pattern!r}: a quote is not closed")
            # Quoted halves are literal: fnmatch's special characters are escaped.
            literal = rest[1:end].replace('""', '"')
            parts.append("".join(f"[{char}]" if char in "*?[" else char for char in literal))
            rest = rest[end + 1 :]
        else:
            head, _, _ = rest.partition(".")
            parts.append(head)
            rest = rest[len(head) :]
        if not rest:
            break
        if not rest.startswith(".") or len(rest) == 1:
            raise RosettaError(ErrorKind.CONFIG_INVALID, f"table pattern {pattern!r} is not schema.table")
        rest = rest[1:]
    if len(parts) == 1:
        parts.insert(0, "public")
    if len(parts) != 2 or not all(parts):
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"table pattern {pattern!r} is not schema.table")
    return parts[0], parts[1]


def matches(table: TableId, patterns: Iterable[str]) -> bool:
    """Tell whether a table matches one of the patterns; case matters, as it does for PostgreSQL's stored names."""
    return any(
        fnmatch.fnmatchcase(table.schema, schema) and fnmatch.fnmatchcase(table.name, name)
        for schema, name in map(split_pattern, patterns)
    )


def is_pattern(table: str) -> bool:
    """Tell whether a pattern stands for several tables."""
    return any(character in part for part in split_pattern(table) for character in "*?")


def read_tables(
    connection: psycopg2.extensions.connection,
    patterns: Sequence[str] | None = None,
    tables: Iterable[TableId] | None = None,
) -> list[TableSchema]:
    """Return the schemas of ordinary tables and partition roots that match, sorted by name.

    Leaf partitions, temporary, unlogged and system tables are left out. Give `patterns`, or exact `tables`, or neither
    for all.
    """
    wanted = None if tables is None else set(tables)
    with connection.cursor() as cursor:
        names = None if wanted is None else sorted({table.name for table in wanted})
        cursor.execute(_TABLES, {"system": list(SYSTEM_SCHEMAS), "names": names})
        found: dict[int, tuple[TableId, str, bool, int]] = {}
        for schema, name, identity, partitioned, oid, filenode in cursor.fetchall():
            table = TableId(schema, name)
            if schema.startswith((NEW_SCHEMA, KEPT_SCHEMA)) or (wanted is not None and table not in wanted):
                continue
            if patterns is not None and not matches(table, patterns):
                continue
            found[oid] = (table, identity, partitioned, filenode)
        oids = {"oids": list(found)}
        cursor.execute(_COLUMNS, oids)
        columns: dict[int, list[Column]] = {oid: [] for oid in found}
        for row in cursor.fetchall():
            columns[row[0]].append(_column(row))
        cursor.execute(_KEYS, oids)
        keys: dict[int, dict[str, tuple[str, ...]]] = {oid: {} for oid in found}
        for oid, primary, identity_index, immediate, names in cursor.fetchall():
            # A deferrable key identifies no row: PostgreSQL takes none as replica identity, and its values may change
            # places between rows within a statement.
            if primary and immediate:
                keys[oid]["primary"] = tuple(names)
            if identity_index:
                keys[oid]["identity"] = tuple(names)
    return [_schema(oid, *found[oid], columns[oid], keys[oid]) for oid in found]


def _column(row: tuple[Any, ...]) -> Column:
    return Column(
        name=row[1],
        type_text=row[2],
        type_name=row[3],
        type_schema=row[4],
        type_kind=row[5],
        type_category=row[6],
        element=row[7],
        not_null=row[8],
        generated=row[9],
        default=None if row[9] else row[10],
        missing_value=_single_element(row[11]),
        number=row[12],
        expression=row[10] if row[9] else None,
        virtual=row[13],
    )


def _single_element(array_text: str | None) -> str | None:
    """Return the one element of `attmissingval`'s text form `{value}`, with array_out's quoting undone."""
    if array_text is None:
        return None
    body = array_text[1:-1]
    if body.startswith('"') and body.endswith('"'):
        inner = body[1:-1]
        out: list[str] = []
        escaped = False
        for char in inner:
            if not escaped and char == "\\":
                escaped = True
                continue
            out.append(char)
            escaped = False
        return "".join(out)
    return None if body == "NULL" else body


def _schema(
    oid: int,
    table: TableId,
    identity: str,
    partitioned: bool,
    filenode: int,
    columns: list[Column],
    keys: dict[str, tuple[str, ...]],
) -> TableSchema:
    replica_identity = ReplicaIdentity(identity)
    primary = keys.get("primary", ())
    key = primary
    if replica_identity is ReplicaIdentity.INDEX:
        key = keys.get("identity", ())
    elif replica_identity is ReplicaIdentity.NOTHING:
        key = ()
    return TableSchema(
        table=table,
        columns=tuple(columns),
        key=key,
        primary_key=primary,
        replica_identity=replica_identity,
        partitioned=partitioned,
        oid=oid,
        filenode=filenode,
    )


_CONSEQUENCE = "once published, its UPDATEs and DELETEs would fail at the source"


def unsafe_identity(schema: TableSchema) -> str | None:
    """Return why publishing this table's updates would make the source refuse them, or None when it is safe.

    PostgreSQL rejects UPDATE and DELETE on a published table without a usable replica identity: adding such a table to
    a publication breaks the application that writes it.
    """
    if schema.replica_identity is ReplicaIdentity.NOTHING:
        return f"REPLICA IDENTITY NOTHING: {_CONSEQUENCE}"
    if schema.replica_identity is ReplicaIdentity.DEFAULT and not schema.primary_key:
        return f"no primary key (a deferrable one does not count) and no replica identity: {_CONSEQUENCE}"
    if schema.replica_identity is ReplicaIdentity.INDEX and not schema.key:
        return f"its replica identity index was dropped: {_CONSEQUENCE}"
    return None
