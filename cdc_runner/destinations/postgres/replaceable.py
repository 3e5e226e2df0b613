"""Whether a target table can be replaced by a new one of the same name, so that nobody loses anything by it."""

from __future__ import annotations

from collections.abc import Collection

import psycopg2.extensions

from cdc_runner.schema import TableId

Cursor = psycopg2.extensions.cursor

_TABLE = """
SELECT c.oid, c.relkind::text, c.relpersistence::text, c.relispartition, c.reloftype <> 0, c.relrowsecurity,
       c.reltablespace <> 0
       OR EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                  WHERE i.indrelid = c.oid AND x.reltablespace <> 0),
       pg_has_role(c.relowner, 'USAGE'), c.relowner::regrole::text, has_schema_privilege(c.relnamespace, 'CREATE'),
       has_database_privilege(current_database(), 'CREATE')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
"""

# What depends on a table, or on its row type, without belonging to it. A rule is named by its view.
_DEPENDENTS = """
SELECT DISTINCT CASE WHEN d.classid = 'pg_rewrite'::regclass
       THEN (SELECT pg_describe_object('pg_class'::regclass, r.ev_class, 0) FROM pg_rewrite r WHERE r.oid = d.objid)
       ELSE pg_describe_object(d.classid, d.objid, d.objsubid) END
FROM pg_depend d
WHERE d.deptype = 'n'
  AND (d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
       OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN
          (SELECT t.oid FROM pg_type t JOIN pg_class c ON t.oid = c.reltype OR t.typelem = c.reltype AND c.reltype <> 0
           WHERE c.oid = %(oid)s))
  AND NOT (d.classid = 'pg_constraint'::regclass
           AND d.objid IN (SELECT oid FROM pg_constraint WHERE %(oid)s IN (conrelid, confrelid)))
  AND NOT (d.classid = 'pg_trigger'::regclass AND d.objid IN (SELECT oid FROM pg_trigger WHERE tgrelid = %(oid)s))
  AND NOT (d.classid = 'pg_attrdef'::regclass AND d.objid IN (SELECT oid FROM pg_attrdef WHERE adrelid = %(oid)s))
  AND NOT (d.classid = 'pg_policy'::regclass AND d.objid IN (SELECT oid FROM pg_policy WHERE polrelid = %(oid)s))
  AND NOT (d.classid = 'pg_class'::regclass
           AND d.objid IN (SELECT indexrelid FROM pg_index WHERE indrelid = %(oid)s UNION SELECT %(oid)s
                           UNION SELECT inhrelid FROM pg_inherits WHERE inhparent = %(oid)s))
  AND NOT (d.classid = 'pg_rewrite'::regclass AND d.objid IN (SELECT oid FROM pg_rewrite WHERE ev_class = %(oid)s))
ORDER BY 1
"""

_STANDING_IN_THE_WAY = """
SELECT format('foreign key %%s of %%s', conname, conrelid::regclass) FROM pg_constraint
WHERE contype = 'f' AND (conrelid = %(oid)s OR confrelid = %(oid)s)
UNION ALL
SELECT format('exclusion constraint %%s', conname) FROM pg_constraint WHERE contype = 'x' AND conrelid = %(oid)s
UNION ALL
SELECT format('deferrable constraint %%s', conname) FROM pg_constraint
WHERE contype IN ('p', 'u') AND condeferrable AND conrelid = %(oid)s
UNION ALL
SELECT format('constraint %%s, which is not validated', conname) FROM pg_constraint
WHERE contype = 'c' AND NOT convalidated AND conrelid = %(oid)s
UNION ALL
SELECT format('policy %%s', polname) FROM pg_policy WHERE polrelid = %(oid)s
UNION ALL
SELECT format('rule %%s', rulename) FROM pg_rewrite WHERE ev_class = %(oid)s
UNION ALL
SELECT format('statistics object %%s', stxname) FROM pg_statistic_ext WHERE stxrelid = %(oid)s
UNION ALL
SELECT format('publication %%s', p.pubname) FROM pg_publication_tables p
WHERE p.schemaname = %(schema)s AND p.tablename = %(name)s
UNION ALL
SELECT format('inheritance with %%s', CASE WHEN inhparent = %(oid)s THEN inhrelid ELSE inhparent END::regclass)
FROM pg_inherits WHERE %(oid)s IN (inhparent, inhrelid)
UNION ALL
SELECT format('extension %%s', e.extname) FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
WHERE d.classid = 'pg_class'::regclass AND d.objid = %(oid)s AND d.refclassid = 'pg_extension'::regclass
UNION ALL
SELECT format('rights on %%s, the sequence of an identity column', q.oid::regclass) FROM pg_depend d
JOIN pg_class q ON q.oid = d.objid AND q.relkind = 'S' AND q.relacl IS NOT NULL
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
  AND d.deptype = 'i'
UNION ALL
SELECT 'a security label' FROM pg_seclabel
WHERE classoid = 'pg_class'::regclass AND objoid = %(oid)s
UNION ALL
SELECT format('index %%s, which is not valid', indexrelid::regclass) FROM pg_index
WHERE indrelid = %(oid)s AND NOT indisvalid
"""


def obstacles(cursor: Cursor, target: TableId, columns: Collection[str]) -> list[str]:
    """Return why a table must not be replaced; empty when it can be.

    Args:
        cursor: of a session of the destination's role.
        target: the table.
        columns: those that Rosetta fills or the server computes from them; others hold what only this table has.
    """
    cursor.execute(_TABLE, (target.schema, target.name))
    row = cursor.fetchone()
    if row is None:
        return ["it does not exist"]
    oid, kind, persistence, partition, typed, row_security, elsewhere, owner, owner_name, creates, creates_schema = row
    if kind == "p":
        return ["it is partitioned"]
    if kind != "r" or partition or typed:
        return ["it is no ordinary table of its own"]
    found = []
    if persistence != "p":
        found.append("it is unlogged")
    if row_security:
        found.append("it has row security")
    if elsewhere:
        found.append("it, or an index of it, is in a tablespace of its own")
    if not owner:
        found.append(f"the destination's role may not act as its owner: GRANT {owner_name} to it")
    if not creates:
        found.append(f"the destination's role may not create tables in schema {target.schema}")
    if not creates_schema:
        found.append("the destination's role may not create schemas: GRANT CREATE ON DATABASE")
    cursor.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped "
        "AND attgenerated = '' AND attname <> ALL (%s) ORDER BY attnum",
        (oid, list(columns)),
    )
    found += [f"its column {name} holds values that the source does not have" for (name,) in cursor.fetchall()]
    cursor.execute(_STANDING_IN_THE_WAY, {"oid": oid, "schema": target.schema, "name": target.name})
    found += [f"it has {text}" for (text,) in cursor.fetchall()]
    cursor.execute(_DEPENDENTS, {"oid": oid})
    found += [f"{text} depends on it" for (text,) in cursor.fetchall()]
    return found
