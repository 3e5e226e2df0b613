"""Tables of a source as the engine sees them: identity, columns, key. Immutable; a change is a new version."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, order=True)
class TableId:
    """A table by schema and name, as PostgreSQL stores them (unquoted, case kept)."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def quoted(self) -> str:
        """The name as an SQL identifier."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"


class ReplicaIdentity(StrEnum):
    """What the source writes to the WAL about the old row (`pg_class.relreplident`)."""

    DEFAULT = "d"
    NOTHING = "n"
    FULL = "f"
    INDEX = "i"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a source table.

    Attributes:
        name: as stored, case kept.
        type_text: `format_type` with modifiers, schema-qualified where it is not in pg_catalog, e.g. `numeric(10,2)`,
            `sales.mood[]`.
        type_name: `pg_type.typname` (`numeric`, `_mood`).
        type_schema: schema of the type (`pg_catalog`, `public`).
        type_kind: `pg_type.typtype`: b base, e enum, d domain, c composite, r range, m multirange, p pseudo.
        type_category: `pg_type.typcategory` (`A` is array).
        element: for arrays the element's `typname`, for domains the base type's `typname`, else None.
        not_null: declared or implied by the primary key.
        generated: stored or virtual generated column.
        default: default expression as text, None when there is none.
        missing_value: the value, as text, that rows older than the column have (`attmissingval`), or None.
        number: `attnum`, which stays when a column is renamed and never comes back when it is dropped; 0 when unknown.
        expression: what a generated column is computed from, as text; None for other columns.
        virtual: a generated column that is computed when it is read (PostgreSQL 18).
    """

    name: str
    type_text: str
    type_name: str
    type_schema: str = "pg_catalog"
    type_kind: str = "b"
    type_category: str = "U"
    element: str | None = None
    not_null: bool = False
    generated: bool = False
    default: str | None = None
    missing_value: str | None = None
    number: int = 0
    expression: str | None = None
    virtual: bool = False


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table's columns and key at one version.

    Attributes:
        table: identity at the source.
        columns: in the order of the source.
        key: names of the columns that identify a row in the change stream: the primary key, else the replica identity
            index; empty when the whole row is the identity (REPLICA IDENTITY FULL without a key).
        primary_key: the primary key's columns in key order; may be empty.
        replica_identity: what the WAL holds of old rows.
        partitioned: a partition root.
        oid: the table's oid at the source, by which a table that was dropped and created again is told; 0 when unknown.
        filenode: changes whenever the source writes the table anew; 0 when unknown and for a partition root.
    """

    table: TableId
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    primary_key: tuple[str, ...]
    replica_identity: ReplicaIdentity
    partitioned: bool = False
    oid: int = 0
    filenode: int = 0

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names in source order."""
        return tuple(column.name for column in self.columns)

    @property
    def stream_columns(self) -> tuple[Column, ...]:
        """The columns whose values the change stream carries: all but generated ones."""
        return tuple(column for column in self.columns if not column.generated)

    @property
    def stream_names(self) -> tuple[str, ...]:
        """Names of `stream_columns`."""
        return tuple(column.name for column in self.columns if not column.generated)

    def column(self, name: str) -> Column:
        """Return a column by name.

        Raises:
            KeyError: there is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)


def quote_identifier(name: str) -> str:
    """Return a name as a quoted SQL identifier of PostgreSQL and DuckDB.

    Raises:
        ValueError: the name holds a NUL byte, which no identifier can.
    """
    if "\x00" in name:
        raise ValueError("an identifier cannot hold a NUL byte")
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Return a text as a standard-conforming SQL string literal.

    Raises:
        ValueError: the text holds a NUL byte.
    """
    if "\x00" in text:
        raise ValueError("a literal cannot hold a NUL byte")
    return "'" + text.replace("'", "''") + "'"
