"""User types at the target: created as the source has them, and kept up with values added later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from cdc_runner.destinations.postgres.extensions import ensure_extension
from cdc_runner.destinations.postgres.type_catalog import MADE_HERE, UserType, read_types, search_path
from cdc_runner.destinations.postgres.type_changes import add_attributes, change_labels, relax_domain
from cdc_runner.destinations.postgres.type_names import SchemaMap, TypePlaces, place_type, same_schema, target_type
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import Column, TableSchema, quote_identifier, quote_literal

__all__ = ["SchemaMap", "TypePlaces", "ensure_schema", "ensure_types", "refresh_types", "target_type"]

_LOCK = "SELECT pg_advisory_xact_lock(hashtext('rosetta types'))"


def ensure_types(
    source: psycopg2.extensions.connection,
    target: psycopg2.extensions.connection,
    schemas: Sequence[TableSchema],
    schema_map: SchemaMap,
) -> list[str]:
    """Create at the target whatever types these tables need and it lacks; return what was done, one line each.

    Idempotent. Runs in the caller's transaction and holds a lock until its end, so that two pipelines do not create the
    same type at once. A label added to an enum that was there before can be used only after the commit (SQLSTATE 55P04
    until then). `schema_map` may be a `TypePlaces`, which then knows the new types.

    Raises:
        RosettaError: DESTINATION_SCHEMA when the target cannot have a type, names the column, the type and the
            statement to run; or when two different types would have one name.
    """
    with target.cursor() as cursor:
        cursor.execute(_LOCK)
    if isinstance(schema_map, TypePlaces):
        schema_map.learn(target)
    wanted = _Wanted.read(source, schemas)
    builder = _Builder(target, schema_map, wanted)
    # Schemas of the source in the same order on both sides: names in constraints then mean the same.
    path = [schema_map(schema) for schema in wanted.path]
    with search_path(target, path):
        for table, column in wanted.columns:
            oid = wanted.named.get((column.type_schema, column.type_name))
            where = f"column {column.name} of table {table.table}"
            if oid is not None:
                builder.build(oid, where)
            else:
                builder.require(column, where)
    if isinstance(schema_map, TypePlaces):
        schema_map.learn(target)
    return builder.done


def refresh_types(
    source: psycopg2.extensions.connection,
    target: psycopg2.extensions.connection,
    schemas: Sequence[TableSchema],
    schema_map: SchemaMap,
) -> list[str]:
    """Bring types that the target has to what the source has by now; return what was done, one line each.

    The change stream tells nothing of ALTER TYPE and ALTER DOMAIN. For a batch that was refused because a label or an
    attribute is unknown (22P02), or because a domain refuses a value or NULL (23514, 23502). Commit before the batch is
    tried again: a new label cannot be used in the transaction that adds it. Labels are renamed, and constraints of a
    domain dropped, only where Rosetta made the type.
    """
    with target.cursor() as cursor:
        cursor.execute(_LOCK)
    wanted = _Wanted.read(source, schemas)
    builder = _Builder(target, schema_map, wanted)
    with search_path(target, [schema_map(schema) for schema in wanted.path]):
        for type_ in wanted.types.values():
            if type_.kind in "edc" and type_.extension is None and not type_.built_in:
                existing = builder.existing(type_)
                if existing is not None:
                    builder.adapt(type_, existing, f"a column of type {type_}", relax=True)
    return builder.done


def ensure_schema(target: psycopg2.extensions.connection, schema: str) -> bool:
    """Create a schema unless it is there; tell whether it was created.

    Raises:
        RosettaError: DESTINATION_PERMISSION, the role may not create schemas.
    """
    with target.cursor() as cursor:
        # CREATE SCHEMA IF NOT EXISTS asks for the right to create even where the schema is there.
        cursor.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,))
        if cursor.rowcount:
            return False
        statement = f"CREATE SCHEMA {quote_identifier(schema)}"
        try:
            cursor.execute(statement)
        except psycopg2.errors.InsufficientPrivilege:
            raise RosettaError(
                ErrorKind.DESTINATION_PERMISSION,
                f"the destination's role may not create schema {schema}: run {statement} there, "
                "or grant it CREATE on the database",
                {"schema": schema},
            ) from None
    return True


@dataclass(slots=True)
class _Wanted:
    """Columns with user types, and the source's definitions of those."""

    columns: list[tuple[TableSchema, Column]]
    types: Mapping[int, UserType]
    named: Mapping[tuple[str, str], int]
    path: list[str]

    @classmethod
    def read(cls, source: psycopg2.extensions.connection, schemas: Iterable[TableSchema]) -> _Wanted:
        columns = [
            (schema, column) for schema in schemas for column in schema.columns if column.type_schema != "pg_catalog"
        ]
        names = {(column.type_schema, column.type_name) for _, column in columns}
        types, _ = read_types(source, names) if names else ({}, {})
        path = sorted({type_.schema for type_ in types.values() if not type_.built_in} | {"public"})
        with search_path(source, path):
            types, named = read_types(source, names) if names else ({}, {})
        return cls(columns, types, named, path)


@dataclass(slots=True)
class _Builder:
    target: psycopg2.extensions.connection
    schema_map: SchemaMap
    wanted: _Wanted
    done: list[str] = field(default_factory=list)
    _built: dict[tuple[str, str], UserType] = field(default_factory=dict)

    def build(self, oid: int, where: str) -> None:
        """Make a type and what it is made of; `where` names the column that needs it."""
        type_ = self.wanted.types[oid]
        if type_.built_in:
            return
        if type_.extension is not None:
            self._extension(type_, where)
            return
        for part in type_.uses:
            self.build(part, where)
        if type_.element or type_.kind == "m":
            return
        place = self._place(type_)
        built = self._built.get(place)
        if built is not None:
            if built.oid != oid and not self._alike(built, type_):
                raise _clash(type_, place, where, f"which {built} of the source has too, with another definition")
            return
        self._built[place] = type_
        existing = self.existing(type_)
        if existing is None:
            self._create(type_, where)
        else:
            self.adapt(type_, existing, where)

    def require(self, column: Column, where: str) -> None:
        """Accept a type that is gone from the source only if the target has it."""
        place = place_type(column.type_schema, column.type_name, self.schema_map)
        _, named = read_types(self.target, [place])
        if not named:
            raise RosettaError(
                ErrorKind.DESTINATION_SCHEMA,
                f"{where} has type {column.type_schema}.{column.type_name}, which neither side has any more",
                {"type": f"{column.type_schema}.{column.type_name}"},
            )

    def existing(self, type_: UserType) -> UserType | None:
        """Return the target's definition of a type."""
        types, named = read_types(self.target, [self._place(type_)])
        return types[next(iter(named.values()))] if named else None

    def _place(self, type_: UserType) -> tuple[str, str]:
        return place_type(type_.schema, type_.name, self.schema_map)

    def _name(self, type_: UserType) -> str:
        schema, name = self._place(type_)
        return f"{quote_identifier(schema)}.{quote_identifier(name)}"

    def _run(self, statements: Sequence[tuple[str, str]]) -> None:
        """Run statements and keep what each of them does."""
        with self.target.cursor() as cursor:
            for statement, what in statements:
                cursor.execute(statement)
                self.done.append(what)

    def _extension(self, type_: UserType, where: str) -> None:
        if type_.kind == "m" or type_.element or self.existing(type_) is not None:
            return
        assert type_.extension is not None and type_.extension_schema is not None, "the type is an extension's"
        schema = self.schema_map(type_.extension_schema)
        used = ensure_extension(self.target, type_.extension, schema, f"type {type_.name} of {where}")
        if used is not None:
            self.done.append(f"created extension {type_.extension} in schema {used}")
        if isinstance(self.schema_map, TypePlaces):
            self.schema_map.learn(self.target)
        if self.existing(type_) is None:
            there = ", ".join(".".join(place) for place in _places(self.target, type_.name)) or "nowhere"
            raise RosettaError(
                ErrorKind.DESTINATION_SCHEMA,
                f"{where} needs type {type_.name} of extension {type_.extension} in schema {self._place(type_)[0]} of "
                f"the destination, which has it in: {there}; move or update the extension there",
                {"extension": type_.extension, "type": type_.name},
            )

    def _create(self, type_: UserType, where: str) -> None:
        if type_.kind not in "edcr" or type_.table_row:
            what = "is the row type of a table" if type_.table_row else "is written in C"
            raise RosettaError(
                ErrorKind.DESTINATION_SCHEMA,
                f"{where} has type {type_}, which {what} and so cannot be created: create {self._name(type_)} at the "
                "destination, or leave the table out",
                {"type": str(type_)},
            )
        schema, _ = self._place(type_)
        if ensure_schema(self.target, schema):
            self.done.append(f"created schema {schema}")
        try:
            {"e": self._enum, "d": self._domain, "c": self._composite, "r": self._range}[type_.kind](type_)
        except psycopg2.errors.InsufficientPrivilege:
            raise RosettaError(
                ErrorKind.DESTINATION_PERMISSION,
                f"the destination's role may not create type {self._name(type_)}, which {where} needs: run "
                f"GRANT CREATE ON SCHEMA {quote_identifier(schema)} there",
                {"type": str(type_)},
            ) from None

    def _enum(self, type_: UserType) -> None:
        labels = ", ".join(map(quote_literal, type_.labels))
        self._make(type_, "enum", f"CREATE TYPE {self._name(type_)} AS ENUM ({labels})")

    def _make(self, type_: UserType, what: str, statement: str) -> None:
        name = self._name(type_)
        self._run([(statement, f"created {what} {name}")])
        with self.target.cursor() as cursor:
            cursor.execute(f"COMMENT ON TYPE {name} IS {quote_literal(MADE_HERE)}")

    def _domain(self, type_: UserType) -> None:
        name = self._name(type_)
        base = target_type(type_.parts[0], self.schema_map)
        # No DEFAULT: a value always comes from the source, NULL included.
        self._make(type_, "domain", f"CREATE DOMAIN {name} AS {base}{' NOT NULL' if type_.not_null else ''}")
        with self.target.cursor() as cursor:
            for constraint, definition in type_.checks:
                cursor.execute("SAVEPOINT rosetta_check")
                try:
                    cursor.execute(f"ALTER DOMAIN {name} ADD CONSTRAINT {quote_identifier(constraint)} {definition}")
                except psycopg2.ProgrammingError:
                    # Its function is not at the target. The values were checked at the source.
                    cursor.execute("ROLLBACK TO SAVEPOINT rosetta_check")
                    self.done.append(
                        f"left out constraint {constraint} of domain {name}: the destination lacks its parts"
                    )
                cursor.execute("RELEASE SAVEPOINT rosetta_check")

    def _composite(self, type_: UserType) -> None:
        attributes = ", ".join(f"{quote_identifier(name)} {text}" for name, text in self._parts(type_))
        self._make(type_, "composite type", f"CREATE TYPE {self._name(type_)} AS ({attributes})")

    def _range(self, type_: UserType) -> None:
        options = [f"subtype = {target_type(type_.parts[0], self.schema_map)}"]
        parts = type_.range_parts
        if parts is not None and parts.operator_class:
            options.append(f"subtype_opclass = {parts.operator_class}")
        if parts is not None and parts.difference:
            options.append(f"subtype_diff = {parts.difference}")
        if parts is not None and parts.multirange and self.target.server_version >= 140000:
            schema, name = place_type(*parts.multirange, self.schema_map)
            options.append(f"multirange_type_name = {quote_identifier(schema)}.{quote_identifier(name)}")
        # Without the source's canonical function, which is C code: the values that come are canonical already.
        self._make(type_, "range type", f"CREATE TYPE {self._name(type_)} AS RANGE ({', '.join(options)})")

    def adapt(self, type_: UserType, existing: UserType, where: str, *, relax: bool = False) -> None:
        """Make a type that the target has fit the source's."""
        place = self._place(type_)
        if existing.kind != type_.kind or (existing.table_row and not type_.table_row):
            raise _clash(type_, place, where, "where the destination has a type of another kind")
        name, parts = self._name(type_), self._parts(type_)
        theirs = [(part.name, target_type(part, same_schema)) for part in existing.parts]
        if type_.kind in "dr" and parts != theirs:
            raise _clash(type_, place, where, "which is over another type at the destination")
        if type_.kind == "c" and not type_.table_row:
            if parts[: len(theirs)] != theirs:
                raise _clash(type_, place, where, "which has other attributes at the destination")
            self._run(add_attributes(name, parts[len(theirs) :]))
        elif type_.kind == "e":
            self._run(change_labels(name, type_.labels, existing.labels, rename=existing.made_here))
        elif type_.kind == "d" and relax and existing.made_here:
            self._run(relax_domain(name, type_, existing))

    def _parts(self, type_: UserType) -> list[tuple[str, str]]:
        """Return names and target types of a type's parts."""
        return [(part.name, target_type(part, self.schema_map)) for part in type_.parts]

    def _alike(self, one: UserType, other: UserType) -> bool:
        return (one.kind, one.labels, self._parts(one)) == (other.kind, other.labels, self._parts(other))


def _places(target: psycopg2.extensions.connection, name: str) -> list[tuple[str, str]]:
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT n.nspname, t.typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace "
            "WHERE t.typname = %s ORDER BY 1",
            (name,),
        )
        return [(row[0], row[1]) for row in cursor.fetchall()]


def _clash(type_: UserType, place: tuple[str, str], where: str, why: str) -> RosettaError:
    return RosettaError(
        ErrorKind.DESTINATION_SCHEMA,
        f"{where} has type {type_}, to be {place[0]}.{place[1]} at the destination, {why}: rename one of them, "
        "or give the sources schemas of their own",
        {"type": str(type_), "target": f"{place[0]}.{place[1]}"},
    )
