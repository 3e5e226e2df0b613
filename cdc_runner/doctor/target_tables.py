"""Checks of existing target tables against the tables that they are to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cdc_runner.doctor.finding import Findings, names
from cdc_runner.doctor.source import Connection
from cdc_runner.doctor.type_fit import type_fit
from cdc_runner.schema import TableId, TableSchema, quote_identifier


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column of a target table."""

    type_text: str
    not_null: bool
    has_default: bool
    generated: bool
    type_kind: str


@dataclass(slots=True)
class Target:
    """An existing relation at the destination."""

    kind: str
    missing_rights: tuple[str, ...]
    row_security: bool
    has_triggers: bool
    columns: dict[str, TargetColumn] = field(default_factory=dict)
    unique_keys: list[tuple[bool, frozenset[str]]] = field(default_factory=list)

    @property
    def primary_key(self) -> frozenset[str] | None:
        """Columns of the primary key, None when there is none."""
        return next((columns for primary, columns in self.unique_keys if primary), None)


_RELATIONS = """
SELECT n.nspname, c.relname, c.oid, c.relkind::text,
       array_remove(ARRAY[
           CASE WHEN NOT has_table_privilege(c.oid, 'SELECT') THEN 'SELECT' END,
           CASE WHEN NOT has_table_privilege(c.oid, 'INSERT') THEN 'INSERT' END,
           CASE WHEN NOT has_table_privilege(c.oid, 'UPDATE') THEN 'UPDATE' END,
           CASE WHEN NOT has_table_privilege(c.oid, 'DELETE') THEN 'DELETE' END,
           CASE WHEN NOT has_table_privilege(c.oid, 'TRUNCATE') THEN 'TRUNCATE' END], NULL),
       row_security_active(c.oid),
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled IN ('O', 'A'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY (%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""

_COLUMNS = """
SELECT a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       a.atthasdef OR a.attidentity <> '', a.attgenerated <> '', t.typtype::text
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = ANY (%s) AND a.attnum > 0 AND NOT a.attisdropped
"""

_KEYS = """
SELECT i.indrelid, i.indisprimary, array_agg(a.attname::text)
FROM pg_index i
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, number)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = ANY (%s) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
  AND k.number <= i.indnkeyatts
GROUP BY i.indexrelid, i.indrelid, i.indisprimary
"""


def read_targets(connection: Connection, tables: Sequence[TableId]) -> dict[TableId, Target]:
    """Return what exists under the names of target tables."""
    wanted = set(tables)
    by_oid: dict[int, Target] = {}
    result: dict[TableId, Target] = {}
    with connection.cursor() as cursor:
        cursor.execute(_RELATIONS, (sorted({table.schema for table in wanted}),))
        for schema, name, oid, kind, missing, secured, triggers in cursor.fetchall():
            table = TableId(schema, name)
            if table in wanted:
                result[table] = by_oid[oid] = Target(kind, tuple(missing), secured, triggers)
        cursor.execute(_COLUMNS, (list(by_oid),))
        for oid, name, type_text, not_null, has_default, generated, type_kind in cursor.fetchall():
            by_oid[oid].columns[name] = TargetColumn(type_text, not_null, has_default, generated, type_kind)
        cursor.execute(_KEYS, (list(by_oid),))
        for oid, primary, columns in cursor.fetchall():
            by_oid[oid].unique_keys.append((primary, frozenset(columns)))
    return result


def check_target_table(source: TableSchema, table: TableId, target: Target, username: str, found: Findings) -> None:
    """Compare an existing target table with its source."""
    subject = f"target table {table}"
    if target.kind not in ("r", "p"):
        found.error("target_kind", "it is not a table", "Rename or drop it, or choose another target.", subject)
        return
    if target.missing_rights:
        found.error(
            "target_rights",
            f"the role lacks {', '.join(target.missing_rights)}",
            f"GRANT {', '.join(target.missing_rights)} ON TABLE {table.quoted} TO {quote_identifier(username)};",
            subject,
        )
    if target.row_security:
        found.error(
            "target_row_security",
            "row security hides rows of it from the role",
            f"ALTER ROLE {quote_identifier(username)} BYPASSRLS;",
            subject,
        )
    _check_columns(source, table, target, found, subject)
    _check_extra_columns(source, table, target, found, subject)
    _check_key(source, table, target, found, subject)


def _check_columns(source: TableSchema, table: TableId, target: Target, found: Findings, subject: str) -> None:
    for column in source.columns:
        have = target.columns.get(column.name)
        name = quote_identifier(column.name)
        if have is None:
            if not column.generated:
                found.error(
                    "target_column",
                    f"column {column.name} is missing",
                    f"ALTER TABLE {table.quoted} ADD COLUMN {name} {column.type_text};",
                    subject,
                )
            continue
        if have.generated:
            if not column.generated:
                found.error(
                    "target_column",
                    f"column {column.name} is generated at the target, and cannot be written",
                    f"ALTER TABLE {table.quoted} ALTER COLUMN {name} DROP EXPRESSION;",
                    subject,
                )
            continue
        _check_type(column.type_text, have, table, column.name, found, subject)


def _check_type(source: str, have: TargetColumn, table: TableId, name: str, found: Findings, subject: str) -> None:
    fit = type_fit(source, have.type_text)
    if fit in ("equal", "wider"):
        return
    statement = f"ALTER TABLE {table.quoted} ALTER COLUMN {quote_identifier(name)} TYPE {source};"
    if fit == "narrower":
        found.error(
            "target_type",
            f"column {name} is {have.type_text}, which does not hold every value of {source}",
            statement,
            subject,
        )
    else:
        found.warning(
            "target_type",
            f"column {name} is {have.type_text}, not {source}: values go through their text form, and may be refused",
            statement,
            subject,
        )


def _check_extra_columns(source: TableSchema, table: TableId, target: Target, found: Findings, subject: str) -> None:
    known = set(source.column_names)
    for name, have in target.columns.items():
        if name not in known and have.not_null and not have.has_default and not have.generated:
            found.error(
                "target_not_null",
                f"column {name} is not in the source, NOT NULL, and has no default: every new row would be refused",
                f"ALTER TABLE {table.quoted} ALTER COLUMN {quote_identifier(name)} DROP NOT NULL;",
                subject,
            )


def _check_key(source: TableSchema, table: TableId, target: Target, found: Findings, subject: str) -> None:
    key = frozenset(source.key)
    primary = target.primary_key
    if not key:
        if target.unique_keys:
            found.warning(
                "target_key",
                "it has a unique key and the source has none: rows that are equal in it would be refused",
                "Drop the key at the target, or give the source a primary key.",
                subject,
            )
        return
    unique = {columns for _, columns in target.unique_keys}
    columns = ", ".join(quote_identifier(name) for name in source.key)
    if primary is not None and not primary >= key and key not in unique:
        found.error(
            "target_key",
            f"its primary key ({names(sorted(primary))}) is not the source's key ({names(source.key)})",
            f"ALTER TABLE {table.quoted} ADD UNIQUE ({columns}); and drop the other key",
            subject,
        )
    elif key not in unique:
        found.warning(
            "target_key",
            f"it has no unique index on the source's key ({names(source.key)}): applying changes is slow",
            f"ALTER TABLE {table.quoted} ADD PRIMARY KEY ({columns});",
            subject,
        )
