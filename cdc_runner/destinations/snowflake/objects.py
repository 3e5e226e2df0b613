"""Tables, streams and tasks of a target: made, brought up to a new schema, taken away. Every step can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from cdc_runner.destinations.base import ReloadNeeded, TableState
from cdc_runner.destinations.snowflake import naming
from cdc_runner.destinations.snowflake.merge import MergePlan, task_statement
from cdc_runner.destinations.snowflake.naming import Naming, ObjectName, TableNames
from cdc_runner.destinations.snowflake.rows import Shape, carried_in
from cdc_runner.destinations.snowflake.sql import SqlSession, literal
from cdc_runner.destinations.snowflake.state import StateStore
from cdc_runner.destinations.snowflake.types import TypeRules, widens
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableSchema, quote_identifier
from cdc_runner.shaping.evolution import ChangeKind, SchemaChange
from cdc_runner.spec import ResolvedSync, SnowflakeAddress, SyncMode

SERVERLESS = "serverless"
"""In place of a warehouse: Snowflake finds one for the task."""

_HARMLESS = (ChangeKind.NULLABILITY, ChangeKind.NEW_TABLE)


def added_columns(shape: Shape) -> dict[str, str]:
    """Return the columns that a target has beside those of the table, with their types."""
    if shape.keeps is SyncMode.HISTORY:
        return {naming.POSITION: "VARCHAR", naming.OPERATION: "VARCHAR", naming.COMMITTED_AT: "TIMESTAMP_NTZ(6)",
                naming.TRANSACTION: "VARCHAR", naming.UNCHANGED: "VARCHAR"}  # fmt: skip
    if not shape.schema.key:
        return {naming.ROW: "VARCHAR"}
    if shape.keeps is SyncMode.SOFT_DELETE:
        return {naming.DELETED: "BOOLEAN", naming.DELETED_AT: "TIMESTAMP_NTZ(6)"}
    return {}


def _digest(statement: str) -> str:
    return hashlib.sha256(statement.encode()).hexdigest()[:32]


class Objects:
    """Makes and changes what belongs to target tables."""

    def __init__(
        self, sql: SqlSession, address: SnowflakeAddress, names: Naming, store: StateStore, writer: str
    ) -> None:
        """Args:
        sql: runs statements.
        address: warehouse, schedule and kind of deletes.
        names: of objects.
        store: the state tables.
        writer: identifies pipeline and destination.
        """
        self._sql = sql
        self._address = address
        self._naming = names
        self._store = store
        self._writer = writer
        self._rules = TypeRules(address.arrays, address.spatial)

    def names(self, sync: ResolvedSync) -> TableNames:
        """Return the names of what belongs to a target."""
        return self._naming.table(sync.target)

    def shape(self, schema: TableSchema, sync: ResolvedSync) -> Shape:
        """Return how a table is written.

        Args:
            schema: of the source, or what the sync's shape makes of it.
            sync: says what is kept of rows that change, unless the destination does.
        """
        keeps = sync.shape.mode
        if keeps is SyncMode.MIRROR and self._address.deletes == "soft" and schema.key:
            keeps = SyncMode.SOFT_DELETE
        return Shape(schema, self._naming.columns(schema), keeps, self._rules)

    def made_shape(self, known: TableSchema, sync: ResolvedSync) -> Shape:
        """Return how a table was written whose sync nobody knows any more: its target's columns tell."""
        columns = self.columns(self.names(sync).target)
        keeps = SyncMode.MIRROR
        if naming.OPERATION in columns:
            keeps = SyncMode.HISTORY
        elif naming.DELETED in columns:
            keeps = SyncMode.SOFT_DELETE
        return Shape(known, self._naming.columns(known), keeps, self._rules)

    def unmerged(self, sync: ResolvedSync) -> int:
        """Return how many rows have landed for a target and are not merged."""
        names = self.names(sync)
        position = quote_identifier(naming.POSITION)
        merged = f"(SELECT MERGED FROM {self._store.table.quoted} WHERE {self._store.where(names.target)})"
        found = self._sql.run(
            f"SELECT COUNT(*) FROM {names.landing.quoted} WHERE {position} > {merged}", "count the rows to be merged"
        )
        return int(found.value or 0)

    def plan(self, sync: ResolvedSync, shape: Shape) -> MergePlan:
        """Return the merge of a target."""
        return MergePlan(
            self.names(sync),
            shape,
            self._store.table,
            self._writer,
            landing_hours=self._address.landing_hours,
        )

    def merge(self, sync: ResolvedSync, shape: Shape, through: str | None = None) -> None:
        """Merge what is in the landing table now, up to a position or all of it; no hold is in the way of it."""
        self._sql.run(self.plan(sync, shape).block(through), f"merge into {self.names(sync).target.name}")

    # -- set-up ------------------------------------------------------------------------------------------------------

    def create_schemas(self) -> None:
        """Make the schemas of targets and landing tables unless they are there."""
        address = self._address
        landing = (address.landing_database or address.database, address.landing_schema or address.schema)
        for database, schema in {(address.database, self._naming.fold(address.schema)), landing}:
            # CREATE … IF NOT EXISTS needs the right to create even when there is nothing to do.
            found = self._sql.run(
                f"SELECT COUNT(*) FROM {quote_identifier(database)}.INFORMATION_SCHEMA.SCHEMATA "
                f"WHERE SCHEMA_NAME = {literal(schema)}",
                f"look for schema {schema}",
            )
            if found.value == "0":
                quoted = f"{quote_identifier(database)}.{quote_identifier(schema)}"
                self._sql.run(f"CREATE SCHEMA IF NOT EXISTS {quoted}", f"create schema {schema}")

    def make(self, sync: ResolvedSync, shape: Shape, known: TableSchema | None, *, ours: bool = False) -> None:
        """Make landing table, target, stream and task. A landing table that is there keeps its rows.

        Args:
            sync: source and target.
            shape: of the source table.
            known: what the target was made for by this pipeline before; None when it was not, or for another shape.
            ours: the target was made by this pipeline.

        Raises:
            RosettaError: DESTINATION_SCHEMA for a target that somebody else made and that does not fit or holds rows.
        """
        names = self.names(sync)
        fixed = ", ".join(f"{quote_identifier(name)} VARCHAR" for name in naming.LANDING_COLUMNS)
        self._sql.run(f"CREATE TABLE IF NOT EXISTS {names.landing.quoted} ({fixed})", "create a landing table")
        present = self.columns(names.landing)
        for column in shape.columns.values():
            if column not in present:
                self._add(names.landing, column, "VARCHAR")
        wanted = self._target_columns(shape)
        existing = self.columns(names.target)
        if existing and not ours and known is None:
            missing = [name for name in wanted if name not in existing]
            rows = self._sql.run(f"SELECT COUNT(*) FROM {names.target.quoted}", "count the rows of a target").value
            if missing or rows != "0":
                why = f"lacks column {missing[0]}" if missing else "holds rows already, which Rosetta did not put there"
                raise RosettaError(
                    ErrorKind.DESTINATION_SCHEMA, f"target {names.target.name} {why}: drop it or choose another"
                )
        elif (
            known is None or not set(wanted) <= set(existing) or self._target_columns(self.shape(known, sync)) != wanted
        ):
            # Nothing of what it holds counts: the load replaces all of it.
            columns = ", ".join(f"{quote_identifier(name)} {type_}" for name, type_ in wanted.items())
            clustered = self._clustering(shape)
            self._sql.run(
                f"CREATE OR REPLACE TABLE {names.target.quoted} ({columns}){clustered}", "create a target table"
            )
        self._sql.run(
            f"CREATE STREAM IF NOT EXISTS {names.stream.quoted} ON TABLE {names.landing.quoted} APPEND_ONLY = TRUE",
            "create a stream",
        )
        self.make_task(sync, shape)

    def empty_landing(self, sync: ResolvedSync) -> None:
        """Remove what has landed for a target; only where a load replaces what it would have made of it."""
        landing = self.names(sync).landing
        if self.columns(landing):
            self._sql.run(f"DELETE FROM {landing.quoted}", "empty a landing table")

    def _clustering(self, shape: Shape) -> str:
        key = [quote_identifier(shape.columns[name]) for name in shape.schema.key]
        return f" CLUSTER BY ({', '.join(key)})" if key and self._address.cluster_targets == "key" else ""

    def make_task(self, sync: ResolvedSync, shape: Shape) -> None:
        """Make or replace the task of a target, and have it run."""
        plan, statement = self.plan(sync, shape), self._task(sync, shape)
        self._sql.run(statement, "create a task")
        self._sql.run(f"ALTER TASK {plan.names.task.quoted} RESUME", "resume a task")
        self._store.note_task(plan.names.target, _digest(statement))

    def keep_task(self, sync: ResolvedSync, shape: Shape, known: str | None) -> None:
        """Replace the task of a target when its settings or its statements are others than those it was made with.

        Args:
            sync: source and target.
            shape: of the source table, as the target has it.
            known: digest of the task that is there.
        """
        if known == _digest(self._task(sync, shape)):
            return
        # What a target keeps of deleted rows changes with a new load only.
        made = replace(shape, keeps=self.made_shape(shape.schema, sync).keeps)
        if known != _digest(self._task(sync, made)):
            self.make_task(sync, made)

    def _task(self, sync: ResolvedSync, shape: Shape) -> str:
        address = self._address
        warehouse = address.merge_warehouse or address.warehouse
        return task_statement(
            self.plan(sync, shape),
            seconds=address.merge_seconds,
            warehouse=None if warehouse == SERVERLESS else warehouse,
            triggered=address.merge_when == "triggered",
        )

    def drop(self, sync: ResolvedSync) -> list[str]:
        """Drop task, stream and landing table of a target, and return their names. The target stays."""
        names = self.names(sync)
        self._sql.run(f"DROP TASK IF EXISTS {names.task.quoted}", "drop a task")
        self._sql.run(f"DROP STREAM IF EXISTS {names.stream.quoted}", "drop a stream")
        self._sql.run(f"DROP TABLE IF EXISTS {names.landing.quoted}", "drop a landing table")
        return [names.task.name, names.stream.name, names.landing.name]

    def columns(self, table: ObjectName) -> list[str]:
        """Return the names of a table's columns; empty when there is no table."""
        found = self._sql.run(
            f"SELECT COLUMN_NAME FROM {quote_identifier(table.database)}.INFORMATION_SCHEMA.COLUMNS "
            f"WHERE TABLE_SCHEMA = {literal(table.schema)} AND TABLE_NAME = {literal(table.name)} "
            "ORDER BY ORDINAL_POSITION",
            "read the columns of a table",
        )
        return [str(row[0]) for row in found.rows]

    def _target_columns(self, shape: Shape) -> dict[str, str]:
        schema = shape.schema
        wanted = {
            shape.columns[column.name]: shape.carried(column).type
            for column in schema.stream_columns
            if column.name in shape.columns
        }
        return wanted | added_columns(shape)

    def _add(self, table: ObjectName, column: str, type_: str) -> None:
        self._sql.run(f"ALTER TABLE {table.quoted} ADD COLUMN {quote_identifier(column)} {type_}", "add a column")

    # -- changes -----------------------------------------------------------------------------------------------------

    def evolve(
        self,
        sync: ResolvedSync,
        known: TableState,
        new: TableSchema,
        changes: Sequence[SchemaChange],
        *,
        drop_columns: bool,
    ) -> None:
        """Bring landing table and target to a new schema. What landed before is merged under the old one first.

        Raises:
            ReloadNeeded: rows that are there would differ from the source's.
        """
        names = self.names(sync)
        for change in changes:
            self._refuse_what_needs_a_load(sync, known.schema, new, change)
        old_shape, shape = self.shape(known.schema, sync), self.shape(new, sync)
        self.merge(sync, old_shape)
        landing, target = self.columns(names.landing), self.columns(names.target)
        for column in shape.columns.values():
            if column not in landing:
                self._add(names.landing, column, "VARCHAR")
        self._rename(names.target, target, changes)
        for change in changes:
            if change.kind is ChangeKind.DROP_COLUMN and change.before is not None:
                stored = self._naming.fold(change.before.name)
                if drop_columns and stored in target:
                    self._sql.run(
                        f"ALTER TABLE {names.target.quoted} DROP COLUMN {quote_identifier(stored)}", "drop a column"
                    )
                    target.remove(stored)
            elif change.kind is ChangeKind.ADD_COLUMN and change.column is not None:
                self._add_to_target(names.target, target, shape, change)
            elif change.kind is ChangeKind.CHANGE_TYPE and change.column is not None:
                stored, how = shape.columns[change.column.name], shape.carried(change.column)
                if carried_in(known.schema, change.before or change.column, self._rules).type != how.type:
                    self._sql.run(
                        f"ALTER TABLE {names.target.quoted} ALTER COLUMN {quote_identifier(stored)} "
                        f"SET DATA TYPE {how.type}",
                        "widen a column",
                    )
        self.make_task(sync, shape)

    def _refuse_what_needs_a_load(
        self, sync: ResolvedSync, old: TableSchema, new: TableSchema, change: SchemaChange
    ) -> None:
        if change.kind in _HARMLESS or change.kind in (ChangeKind.RENAME_COLUMN, ChangeKind.DROP_COLUMN):
            return
        if change.kind is ChangeKind.ADD_COLUMN and not change.rewritten:
            return
        if (
            change.kind is ChangeKind.CHANGE_TYPE
            and change.before is not None
            and change.column is not None
            and widens(carried_in(old, change.before, self._rules), carried_in(new, change.column, self._rules))
        ):
            return
        raise ReloadNeeded(sync.target, change.text)

    def _rename(self, table: ObjectName, present: list[str], changes: Sequence[SchemaChange]) -> None:
        """Rename columns, by way of other names where two change places; what was renamed already is left."""
        fold = self._naming.fold
        pairs = [
            (fold(change.before.name), fold(change.column.name))
            for change in changes
            if change.kind is ChangeKind.RENAME_COLUMN and change.before is not None and change.column is not None
        ]
        steps = [(old, f"_ROSETTA_RENAMED_{new}", new) for old, new in pairs if old != new]
        for old, between, new in steps:
            if old in present and between not in present and not (new in present and (new not in dict(pairs))):
                self._move(table, present, old, between)
        for _, between, new in steps:
            if between in present:
                if new in present:
                    self._move(table, present, new, f"{new}_KEPT")
                self._move(table, present, between, new)

    def _move(self, table: ObjectName, present: list[str], old: str, new: str) -> None:
        self._sql.run(
            f"ALTER TABLE {table.quoted} RENAME COLUMN {quote_identifier(old)} TO {quote_identifier(new)}",
            "rename a column",
        )
        present[present.index(old)] = new

    def _add_to_target(self, table: ObjectName, present: list[str], shape: Shape, change: SchemaChange) -> None:
        column = change.column
        assert column is not None, "a new column"
        if column.name not in shape.columns:
            return
        stored, how = shape.columns[column.name], shape.carried(column)
        if stored in present:
            # A column of this name was dropped at the source and kept here.
            self._move(table, present, stored, f"{stored}_KEPT_{column.number}")
        self._add(table, stored, how.type)
        present.append(stored)
        if column.missing_value is not None:
            value = how.value(literal(column.missing_value))
            # Rows of before the column have its default; so have later ones that are not merged yet.
            self._sql.run(f"UPDATE {table.quoted} SET {quote_identifier(stored)} = {value}", "fill a new column")
