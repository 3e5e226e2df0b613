"""A twin of a target table: made like it in a schema of its own, and put in its place under its name.

    make_twin       an empty table with the same columns, owner and key
    missing_indexes statements for the other indexes, for when it is full
    exchange        names, rights, triggers, comments and the rest change hands, in the caller's transaction

Before the exchange is over everything that the catalogs say of the old table is compared with what they say of the
new one: what this module does not know how to carry over is refused, not lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg2.extensions

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId, TableSchema, quote_identifier

Cursor = psycopg2.extensions.cursor

_COLUMNS = """
SELECT 'column ' || a.attname, concat_ws('; ', row_number() OVER (ORDER BY a.attnum),
       format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, a.attcollation::text,
       a.attstorage, a.attoptions::text, coalesce(nullif(a.attstattarget, -1), -1),
       'default ' || pg_get_expr(d.adbin, d.adrelid), 'comment ' || col_description(a.attrelid, a.attnum))
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
"""
_REST = """
SELECT 'index ' || x.relname, concat_ws('; ', pg_get_indexdef(i.indexrelid), i.indisclustered, i.indisreplident,
       i.indisvalid, 'comment ' || obj_description(i.indexrelid, 'pg_class'))
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = %(oid)s
UNION ALL
SELECT 'constraint ' || conname, concat_ws('; ', pg_get_constraintdef(oid), convalidated, condeferrable,
       'comment ' || obj_description(oid, 'pg_constraint'))
FROM pg_constraint WHERE conrelid = %(oid)s AND contype <> 'n'
UNION ALL
SELECT 'trigger ' || tgname, concat_ws('; ', pg_get_triggerdef(oid), tgenabled,
       'comment ' || obj_description(oid, 'pg_trigger'))
FROM pg_trigger WHERE tgrelid = %(oid)s AND NOT tgisinternal
UNION ALL
SELECT 'sequence of ' || a.attname, s.objid::regclass::text
FROM pg_depend s JOIN pg_attribute a ON a.attrelid = s.refobjid AND a.attnum = s.refobjsubid
JOIN pg_class q ON q.oid = s.objid AND q.relkind = 'S'
WHERE s.classid = 'pg_class'::regclass AND s.refclassid = 'pg_class'::regclass AND s.refobjid = %(oid)s
  AND s.deptype = 'a'
UNION ALL
SELECT 'the table', concat_ws('; ', 'owner ' || c.relowner::regrole, c.reloptions::text, t.reloptions::text,
       c.relreplident, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity,
       'comment ' || obj_description(c.oid, 'pg_class'))
FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = %(oid)s
UNION ALL
SELECT 'rights on column ' || c.attname, string_agg(DISTINCT
       format('%%s %%s %%s', a.grantee, a.privilege_type, a.is_grantable), ',')
FROM pg_attribute c, aclexplode(c.attacl) a WHERE c.attrelid = %(oid)s AND NOT c.attisdropped GROUP BY c.attname
UNION ALL
SELECT 'rights', string_agg(DISTINCT format('%%s %%s %%s', a.grantee, a.privilege_type, a.is_grantable), ',')
FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a WHERE c.oid = %(oid)s
"""

# Statements that make of a new table, once it has the old one's name, what the old one is; written before the exchange.
_CARRIED = """
SELECT 1, format('REVOKE ALL ON TABLE %%s FROM PUBLIC', %(name)s)
UNION ALL
SELECT 1, format('REVOKE ALL ON TABLE %%s FROM %%s', %(name)s, a.grantee::regrole)
FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid IN (%(oid)s, %(twin)s) AND a.grantee <> 0
UNION ALL
SELECT 2, format('GRANT %%s ON TABLE %%s TO %%s%%s', a.privilege_type, %(name)s,
       CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
       CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a WHERE c.oid = %(oid)s
UNION ALL
SELECT 2, format('GRANT %%s (%%I) ON TABLE %%s TO %%s%%s', a.privilege_type, c.attname, %(name)s,
       CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
       CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_attribute c, aclexplode(c.attacl) a WHERE c.attrelid = %(oid)s AND NOT c.attisdropped
UNION ALL
SELECT 3, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = %(oid)s AND NOT tgisinternal
UNION ALL
SELECT 4, format('ALTER TABLE %%s %%s TRIGGER %%I', %(name)s,
       CASE tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' WHEN 'A' THEN 'ENABLE ALWAYS' END, tgname)
FROM pg_trigger WHERE tgrelid = %(oid)s AND NOT tgisinternal AND tgenabled <> 'O'
UNION ALL
SELECT 5, format('COMMENT ON TRIGGER %%I ON %%s IS %%L', t.tgname, %(name)s, obj_description(t.oid, 'pg_trigger'))
FROM pg_trigger t WHERE t.tgrelid = %(oid)s AND obj_description(t.oid, 'pg_trigger') IS NOT NULL
UNION ALL
SELECT 5, format('COMMENT ON INDEX %%I.%%I IS %%L', %(schema)s, x.relname, obj_description(x.oid, 'pg_class'))
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
WHERE i.indrelid = %(oid)s AND obj_description(x.oid, 'pg_class') IS NOT NULL
UNION ALL
SELECT 5, format('COMMENT ON CONSTRAINT %%I ON %%s IS %%L', conname, %(name)s, obj_description(oid, 'pg_constraint'))
FROM pg_constraint WHERE conrelid = %(oid)s AND obj_description(oid, 'pg_constraint') IS NOT NULL
UNION ALL
SELECT 5, format('COMMENT ON TABLE %%s IS %%L', %(name)s, obj_description(%(oid)s, 'pg_class'))
WHERE obj_description(%(oid)s, 'pg_class') IS NOT NULL
UNION ALL
SELECT 6, format('ALTER TABLE %%s CLUSTER ON %%I', %(name)s, x.relname)
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = %(oid)s AND i.indisclustered
UNION ALL
SELECT 6, format('ALTER TABLE %%s REPLICA IDENTITY %%s', %(name)s,
       CASE c.relreplident WHEN 'n' THEN 'NOTHING' WHEN 'f' THEN 'FULL' ELSE
       (SELECT format('USING INDEX %%I', x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
        WHERE i.indrelid = c.oid AND i.indisreplident) END)
FROM pg_class c WHERE c.oid = %(oid)s AND c.relreplident <> 'd'
ORDER BY 1
"""

_SEQUENCES = """
SELECT n.nspname, q.relname, a.attname, s.deptype::text
FROM pg_depend s JOIN pg_attribute a ON a.attrelid = s.refobjid AND a.attnum = s.refobjsubid
JOIN pg_class q ON q.oid = s.objid AND q.relkind = 'S' JOIN pg_namespace n ON n.oid = q.relnamespace
WHERE s.classid = 'pg_class'::regclass AND s.refclassid = 'pg_class'::regclass AND s.refobjid = %s
  AND s.deptype IN ('a', 'i')
"""

_INDEXES = """
SELECT x.relname, i.indisunique, pg_get_indexdef(i.indexrelid), con.conname, con.contype::text
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
LEFT JOIN pg_constraint con ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid AND con.contype IN ('p', 'u')
WHERE i.indrelid = %s ORDER BY i.indisprimary DESC, x.relname
"""

_SETTINGS = """
SELECT format('ALTER TABLE %%s SET (%%s)', %(twin)s, string_agg(one, ', ')) FROM (
    SELECT unnest(c.reloptions) FROM pg_class c WHERE c.oid = %(oid)s
    UNION ALL
    SELECT 'toast.' || unnest(t.reloptions) FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid
    WHERE c.oid = %(oid)s) o(one) HAVING count(*) > 0
UNION ALL
SELECT format('ALTER TABLE %%s ALTER %%I SET STATISTICS %%s', %(twin)s, attname, attstattarget) FROM pg_attribute
WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped AND attstattarget >= 0
UNION ALL
SELECT format('GRANT USAGE, CREATE ON SCHEMA %%I TO %%s', %(schema)s, relowner::regrole) FROM pg_class
WHERE oid = %(oid)s AND relowner <> current_user::regrole
UNION ALL
SELECT format('ALTER TABLE %%s OWNER TO %%s', %(twin)s, relowner::regrole) FROM pg_class
WHERE oid = %(oid)s AND relowner <> current_user::regrole
"""


def make_twin(cursor: Cursor, table: TableId, twin: TableId, schema: TableSchema) -> None:
    """Make an empty table like another in a new schema, with the index that tells rows apart and no other.

    Raises:
        RosettaError: REBUILD_REFUSED, naming columns that cannot be made alike.
        psycopg2.Error: what the server refuses.
    """
    cursor.execute(f"CREATE SCHEMA {quote_identifier(twin.schema)}")
    cursor.execute(
        f"CREATE TABLE {twin.quoted} (LIKE {table.quoted} INCLUDING ALL EXCLUDING INDEXES EXCLUDING STATISTICS)"
    )
    oid = _oid(cursor, table)
    cursor.execute(_SETTINGS, {"oid": oid, "twin": twin.quoted, "schema": twin.schema})
    for (statement,) in cursor.fetchall():
        cursor.execute(statement)
    wanted = set(schema.key)
    for name, unique, definition, constraint, kind in _indexes(cursor, oid):
        cursor.execute(
            "SELECT array_agg(a.attname::text), bool_and(i.indimmediate AND i.indpred IS NULL) FROM pg_index i "
            "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) "
            "WHERE i.indexrelid = %s::regclass",
            (TableId(table.schema, name).quoted,),
        )
        row = cursor.fetchone()
        if unique and row is not None and row[1] and set(row[0]) == wanted:
            cursor.execute(_moved(definition, name, unique, table, twin))
            if constraint is not None:
                cursor.execute(_as_constraint(twin, constraint, kind, name))
            break
    else:
        raise RosettaError(ErrorKind.REBUILD_REFUSED, f"table {table} has no unique index on its key")
    _check_alike(_described(cursor, oid, _COLUMNS), _described(cursor, _oid(cursor, twin), _COLUMNS), table)


def missing_indexes(cursor: Cursor, table: TableId, twin: TableId) -> list[str]:
    """Return statements, each for a transaction of its own, for the indexes that the twin lacks.

    One that was begun and never finished is dropped first.
    """
    statements = []
    cursor.execute(
        "SELECT format('DROP INDEX %%I.%%I', %s::text, x.relname) FROM pg_index i JOIN pg_class x "
        "ON x.oid = i.indexrelid WHERE i.indrelid = %s AND NOT i.indisvalid",
        (twin.schema, _oid(cursor, twin)),
    )
    statements += [row[0] for row in cursor.fetchall()]
    unfinished = len(statements)
    cursor.execute(
        "SELECT x.relname, con.conname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid "
        "LEFT JOIN pg_constraint con ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid "
        "WHERE i.indrelid = %s AND i.indisvalid",
        (_oid(cursor, twin),),
    )
    there = dict(cursor.fetchall())
    for name, unique, definition, constraint, kind in _indexes(cursor, _oid(cursor, table)):
        if name not in there:
            # Beside writers: the stream goes on meanwhile.
            statement = _moved(definition, name, unique, table, twin)
            statements.append(statement.replace("INDEX ", "INDEX CONCURRENTLY ", 1))
        if constraint is not None and there.get(name) is None:
            statements.append(_as_constraint(twin, constraint, kind, name))
    return statements if len(statements) > unfinished else []


def exchange(cursor: Cursor, table: TableId, twin: TableId, kept: TableId) -> None:
    """Put the twin in the table's place, and the table into a schema where it is kept; in the caller's transaction.

    The caller holds both tables exclusively.

    Raises:
        RosettaError: REBUILD_REFUSED, the new table would not be as the old one is, naming in what; roll back.
        psycopg2.Error: what the server refuses; roll back.
    """
    oid, new = _oid(cursor, table), _oid(cursor, twin)
    before = _everything(cursor, oid)
    names = {"oid": oid, "twin": new, "name": table.quoted, "schema": table.schema}
    cursor.execute(_CARRIED, names)
    carried = [row[1] for row in cursor.fetchall()]
    owned, counters = _sequences(cursor, oid)
    for sequence, _ in owned:
        cursor.execute(f"ALTER SEQUENCE {sequence.quoted} OWNED BY NONE")
    cursor.execute(f"CREATE SCHEMA {quote_identifier(kept.schema)}")
    cursor.execute(f"ALTER TABLE {table.quoted} SET SCHEMA {quote_identifier(kept.schema)}")
    cursor.execute(f"ALTER TABLE {twin.quoted} SET SCHEMA {quote_identifier(table.schema)}")
    cursor.execute(f"DROP SCHEMA {quote_identifier(twin.schema)}")
    for sequence, column in owned:
        cursor.execute(f"ALTER SEQUENCE {sequence.quoted} OWNED BY {table.quoted}.{quote_identifier(column)}")
    for column, value, called in counters:
        cursor.execute("SELECT setval(pg_get_serial_sequence(%s, %s), %s, %s)", (table.quoted, column, value, called))
    for statement in carried:
        cursor.execute(statement)
    _check_alike(before, _everything(cursor, new), table)


def _sequences(cursor: Cursor, oid: int) -> tuple[list[tuple[TableId, str]], list[tuple[str, int, bool]]]:
    """Return the sequences that columns own, with the column; and of identity columns how far they have counted."""
    cursor.execute(_SEQUENCES, (oid,))
    owned: list[tuple[TableId, str]] = []
    counters: list[tuple[str, int, bool]] = []
    for schema, name, column, kind in cursor.fetchall():
        sequence = TableId(schema, name)
        if kind == "a":
            owned.append((sequence, column))
            continue
        cursor.execute(f"SELECT last_value, is_called FROM {sequence.quoted}")
        row = cursor.fetchone()
        assert row is not None, "a sequence has one row"
        counters.append((column, row[0], row[1]))
    return owned, counters


def _everything(cursor: Cursor, oid: int) -> dict[str, str]:
    return _described(cursor, oid, _COLUMNS) | _described(cursor, oid, _REST)


def _described(cursor: Cursor, oid: int, query: str) -> dict[str, str]:
    cursor.execute(query, {"oid": oid})
    return dict(cursor.fetchall())


def _check_alike(old: dict[str, str], new: dict[str, str], table: TableId) -> None:
    """Raises: RosettaError, REBUILD_REFUSED."""
    other = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if other:
        raise RosettaError(
            ErrorKind.REBUILD_REFUSED,
            f"table {table} cannot be built anew as it is: what is set for {', '.join(other[:5])} would be lost",
        )


def _indexes(cursor: Cursor, oid: int) -> Sequence[tuple[Any, ...]]:
    cursor.execute(_INDEXES, (oid,))
    return cursor.fetchall()


def _moved(definition: str, name: str, unique: bool, table: TableId, twin: TableId) -> str:
    """Return the statement for an index of the table as one for its twin, under the same name."""
    start = f"CREATE {'UNIQUE ' if unique else ''}INDEX "
    head, found, rest = definition.partition(" USING ")
    if not definition.startswith(start) or not found or not head.endswith(f".{_as_server(table.name, head)}"):
        raise RosettaError(ErrorKind.REBUILD_REFUSED, f"index {name} of table {table} cannot be made again")
    return f"{start}{quote_identifier(name)} ON {twin.quoted} USING {rest}"


def _as_server(name: str, head: str) -> str:
    """Return a name as the server has written it: quoted only where that is needed."""
    quoted = quote_identifier(name)
    return quoted if head.endswith(quoted) else name


def _as_constraint(twin: TableId, constraint: str, kind: str, index: str) -> str:
    what = "PRIMARY KEY" if kind == "p" else "UNIQUE"
    return (
        f"ALTER TABLE {twin.quoted} ADD CONSTRAINT {quote_identifier(constraint)} {what} "
        f"USING INDEX {quote_identifier(index)}"
    )


def _oid(cursor: Cursor, table: TableId) -> int:
    cursor.execute("SELECT %s::regclass::oid", (table.quoted,))
    row = cursor.fetchone()
    assert row is not None, "a cast gives a row"
    return int(row[0])
