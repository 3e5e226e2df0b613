"""Changing a target table as its source changed: one object for one table and one set of changes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from cdc_runner.destinations.base import ReloadNeeded
from cdc_runner.destinations.postgres.definition import (
    column_definition,
    holds_rows,
    identifier_list,
    key_refused,
    reason,
)
from cdc_runner.destinations.postgres.target_table import KEPT, TargetColumn, TargetTable, kept_name, read_target
from cdc_runner.destinations.postgres.type_names import SchemaMap, same_schema, target_type
from cdc_runner.destinations.postgres.widening import accepts, converts_alike, holds
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import Column, TableSchema, quote_identifier, quote_literal
from cdc_runner.shaping.evolution import ChangeKind, SchemaChange

_NUMBER = re.compile(re.escape(KEPT) + r" \(number (\d+)\)")
_NULL_DEFAULT = re.compile(r"NULL(::.*)?", re.DOTALL)


class Evolving:
    """Carries out changes and keeps the statements that ran. Used by `ddl.evolve`, in the caller's transaction."""

    def __init__(
        self,
        target: psycopg2.extensions.connection,
        existing: TargetTable,
        new: TableSchema,
        schema_map: SchemaMap,
        *,
        drop_columns: bool,
    ) -> None:
        self.statements: list[str] = []
        self._target = target
        self._table = existing
        self._id = existing.table
        self._new = new
        self._schema_map = schema_map
        self._drop_columns = drop_columns

    def run(self, changes: Sequence[SchemaChange]) -> None:
        """Carry out the changes: what goes makes room first, what needs the rest comes last."""

        def of(*kinds: ChangeKind) -> list[SchemaChange]:
            return [change for change in changes if change.kind in kinds]

        for change in of(ChangeKind.RECREATE_TABLE):
            raise ReloadNeeded(self._id, change.text)
        renames = [(change.before.name, change.column.name)
                   for change in of(ChangeKind.RENAME_COLUMN) if change.before and change.column]  # fmt: skip
        rekeyed = bool(of(ChangeKind.CHANGE_KEY))
        if rekeyed:
            self._drop_key(dict(renames))
        for change in of(ChangeKind.DROP_COLUMN):
            if change.before is not None:
                self._drop(change.before)
        self._rename(renames)
        for change in of(ChangeKind.CHANGE_TYPE, ChangeKind.GENERATION, ChangeKind.NULLABILITY):
            if change.column is not None:
                self._alter(change.kind, change.column, change.before)
        for change in of(ChangeKind.ADD_COLUMN):
            if change.column is not None:
                self._add(change.column, change.rewritten)
        if rekeyed:
            self._add_key()

    # -- columns that go ---------------------------------------------------------------------------------------------

    def _drop(self, column: Column) -> None:
        existing = self._table.columns.get(column.name)
        if existing is None or existing.kept:
            return
        if self._drop_columns:
            self._alter_table(f"DROP COLUMN {quote_identifier(column.name)}", f"column {column.name} was dropped")
            return
        name = quote_identifier(column.name)
        what = f"column {column.name} was dropped and is kept here"
        if existing.identity:
            self._alter_table(f"ALTER COLUMN {name} DROP IDENTITY", what)
        if existing.column.not_null:
            self._alter_table(f"ALTER COLUMN {name} DROP NOT NULL", what)
        if existing.column.type_kind == "d" and not self._takes_null(existing):
            self._alter_table(f"ALTER COLUMN {name} TYPE text USING {name}::text", what)
        mark = KEPT + (f" (number {column.number})" if column.number else "")
        comment = f"{existing.comment}\n{mark}" if existing.comment else mark
        self._execute(f"COMMENT ON COLUMN {self._id.quoted}.{name} IS {quote_literal(comment)}", what)

    def _takes_null(self, column: TargetColumn) -> bool:
        """Tell whether a domain takes NULL, which later rows have in a kept column."""
        with self._target.cursor() as cursor:
            cursor.execute("SAVEPOINT rosetta_null")
            try:
                cursor.execute(f"SELECT NULL::{target_type(column.column, same_schema)}")
                return True
            except psycopg2.IntegrityError:
                cursor.execute("ROLLBACK TO SAVEPOINT rosetta_null")
                return False
            finally:
                cursor.execute("RELEASE SAVEPOINT rosetta_null")

    def _set_aside(self, name: str) -> None:
        """Give a kept column another name, for its own is needed again."""
        existing = self._table.columns[name]
        found = _NUMBER.search(existing.comment or "")
        number = int(found.group(1)) if found else existing.column.number
        other = kept_name(name, number, self._table.columns)
        self._rename_one(name, other)

    # -- columns that get another name -------------------------------------------------------------------------------

    def _rename(self, renames: Sequence[tuple[str, str]]) -> None:
        leaving = {before for before, _ in renames}
        direct: list[tuple[str, str]] = []
        parked: list[tuple[str, str]] = []
        for number, (before, after) in enumerate(renames):
            old, taken = self._table.columns.get(before), self._table.columns.get(after)
            if taken is not None and taken.kept:
                self._set_aside(after)
                taken = None
            if old is None or old.kept:
                if taken is None:
                    raise self._held(f"column {before} was renamed to {after}, and the destination has neither")
                continue
            if taken is not None and after not in leaving:
                raise self._held(f"column {before} was renamed to {after}, and the destination has both")
            if after in leaving:
                # Names that change places, or move along a chain, need a name in between.
                between = f"_rosetta_rename_{number}"
                self._rename_one(before, between)
                parked.append((between, after))
            else:
                direct.append((before, after))
        # Those that take a free name first, then those that take a name which has become free.
        for before, after in direct + parked:
            self._rename_one(before, after)

    def _rename_one(self, before: str, after: str) -> None:
        self._alter_table(
            f"RENAME COLUMN {quote_identifier(before)} TO {quote_identifier(after)}",
            f"column {before} was renamed to {after}",
        )

    # -- columns that change -----------------------------------------------------------------------------------------

    def _alter(self, kind: ChangeKind, column: Column, before: Column | None) -> None:
        existing = self._table.columns.get(column.name)
        if existing is None or existing.kept:
            raise self._held(f"column {column.name} changed, and the destination does not have it")
        if kind is ChangeKind.CHANGE_TYPE:
            self._change_type(column, before, existing)
        elif kind is ChangeKind.GENERATION:
            self._change_generation(column, existing)
        elif not column.not_null and existing.column.not_null:
            # The other way round nothing is done: rows that are under way may still hold NULL.
            self._alter_table(
                f"ALTER COLUMN {quote_identifier(column.name)} DROP NOT NULL", f"column {column.name} may be null now"
            )

    def _change_type(self, column: Column, before: Column | None, existing: TargetColumn) -> None:
        name, wanted = quote_identifier(column.name), target_type(column, self._schema_map)
        if wanted == target_type(existing.column, same_schema):
            return
        what = f"column {column.name} changed its type from {existing.column.type_text} to {column.type_text}"
        if converts_alike(existing.column, column):
            through = "::text" if existing.column.type_kind == column.type_kind == "e" else ""
            self._alter_table(f"ALTER COLUMN {name} TYPE {wanted} USING {name}{through}::{wanted}", what)
        elif before is not None and holds(before, column) and accepts(column, existing.column, self._schema_map):
            # The source widened a column which is wider still at the target.
            return
        elif column.generated or not holds_rows(self._target, self._id):
            self._alter_table(f"ALTER COLUMN {name} TYPE {wanted} USING {name}::text::{wanted}", what)
        else:
            raise self._held(
                f"{what}, and older rows may have other values at the source now: change the column at the destination "
                "in the same way, or load the table again"
            )

    def _change_generation(self, column: Column, existing: TargetColumn) -> None:
        name, what = quote_identifier(column.name), f"column {column.name} is generated in another way"
        if not column.generated:
            if existing.column.generated:
                self._alter_table(f"ALTER COLUMN {name} DROP EXPRESSION", what)
        elif not existing.column.generated or self._target.server_version < 170000:
            self._alter_table(f"DROP COLUMN {name}", what)
            self._add(column, None)
        else:
            self._alter_table(f"ALTER COLUMN {name} SET EXPRESSION AS ({column.expression})", what)

    # -- columns that come -------------------------------------------------------------------------------------------

    def _add(self, column: Column, rewritten: bool | None) -> None:
        existing = self._table.columns.get(column.name)
        name, what = quote_identifier(column.name), f"column {column.name} {column.type_text} was added"
        if existing is not None and existing.kept:
            self._set_aside(column.name)
        elif existing is not None:
            if not accepts(column, existing.column, self._schema_map):
                raise self._held(f"{what}, and the destination has it as {existing.column.type_text}")
            if existing.column.generated and not column.generated:
                self._alter_table(f"ALTER COLUMN {name} DROP EXPRESSION", what)
            return
        # Without NOT NULL: the catalog may tell of a moment later than that of rows which are under way.
        definition = column_definition(self._target, column, self._schema_map, not_null=False)
        if column.generated or column.missing_value is None:
            if not column.generated and self._has_unknown_values(column, rewritten):
                raise ReloadNeeded(self._id, f"{what}, and older rows may have values of their own in it")
            self._alter_table(f"ADD COLUMN {definition}", what)
            return
        value = f"{quote_literal(column.missing_value)}::{target_type(column, self._schema_map)}"
        # The statement holds a value that rows have, so it is not kept as it is.
        self._alter_table(f"ADD COLUMN {definition} DEFAULT {value}", what, kept=f"ADD COLUMN {definition} DEFAULT ...")
        self._alter_table(f"ALTER COLUMN {name} DROP DEFAULT", what)

    def _has_unknown_values(self, column: Column, rewritten: bool | None) -> bool:
        """Tell whether older rows may have values in a new column that has no missing value.

        PostgreSQL keeps a constant default as the column's missing value. Without one, older rows are NULL, or the
        table was written anew. Where that is not known, a default or NOT NULL is taken as the sign of it.
        """
        if rewritten is None:
            null_default = column.default is None or _NULL_DEFAULT.fullmatch(column.default) is not None
            rewritten = column.not_null or not null_default
        return rewritten and holds_rows(self._target, self._id)

    # -- key ---------------------------------------------------------------------------------------------------------

    def _drop_key(self, renames: dict[str, str]) -> None:
        existing = self._table.primary_key
        if existing is None or existing.constraint is None:
            return
        if {renames.get(name, name) for name in existing.columns} != set(self._new.primary_key):
            self._alter_table(f"DROP CONSTRAINT {quote_identifier(existing.constraint)}", "the key changed")

    def _add_key(self) -> None:
        schema = self._new
        try:
            if schema.primary_key and self._table.primary_key is None:
                self._alter_table(f"ADD PRIMARY KEY ({identifier_list(schema.primary_key)})", "the key changed")
            if schema.key and self._table.unique_on(schema.key) is None:
                statement = f"CREATE UNIQUE INDEX ON {self._id.quoted} ({identifier_list(schema.key)})"
                self._execute(statement, "the key changed")
        except psycopg2.IntegrityError as error:
            raise key_refused(self._id, schema, error) from None

    # -- statements --------------------------------------------------------------------------------------------------

    def _alter_table(self, action: str, what: str, *, kept: str | None = None) -> None:
        start = f"ALTER TABLE {self._id.quoted} "
        self._execute(start + action, what, kept=None if kept is None else start + kept)

    def _execute(self, statement: str, what: str, *, kept: str | None = None) -> None:
        try:
            with self._target.cursor() as cursor:
                cursor.execute(statement)
        except (psycopg2.ProgrammingError, psycopg2.NotSupportedError, psycopg2.DataError) as error:
            raise self._refused(what, error) from None
        except psycopg2.InternalError as error:
            if error.pgcode is None or not error.pgcode.startswith("2B"):
                raise
            raise self._refused(what, error) from None
        self.statements.append(kept or statement)
        read = read_target(self._target, self._id)
        assert read is not None, "the table is there and locked"
        self._table = read

    def _refused(self, what: str, error: psycopg2.Error) -> RosettaError:
        if error.pgcode == "42501":
            return RosettaError(
                ErrorKind.DESTINATION_PERMISSION,
                f"table {self._id}: {what}, and the destination's role may not change the table: make it the owner",
                {"table": str(self._id)},
            )
        return self._held(f"{what}, which the destination refuses ({reason(error)})")

    def _held(self, what: str) -> RosettaError:
        return RosettaError(ErrorKind.SCHEMA_CHANGE_HELD, f"table {self._id}: {what}", {"table": str(self._id)})
