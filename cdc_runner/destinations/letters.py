"""What a destination puts aside: changes of single rows, and the place that keeps them.

RowChange      one row's change that is not applied now, because it was refused or because its key waits
LetterSink     keeps row changes durably; the dead-letter queue is one
StoredLetter   a row change that is kept, with the names by which it is found again
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cdc_runner.position import Position
from cdc_runner.schema import TableSchema
from cdc_runner.spec import ResolvedSync

Values = tuple[str | None, ...]


class RowOperation(StrEnum):
    """What a row change asks of the target."""

    PUT = "put"
    """The row with this key has these values; `unchanged` marks those that stay as they are."""
    DELETE = "delete"
    """The row with this key is gone; only the key's values are set."""
    COUNT = "count"
    """A table without a key gains (`count` > 0) or loses rows that look like this."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a target refused a row: SQLSTATE, and a text that holds no value of the row."""

    sqlstate: str
    message: str


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row's change that is put aside.

    Attributes:
        sync: source and target table.
        schema: the source table's schema at that time.
        operation: what is to be done.
        values: texts of `schema.stream_columns`.
        unchanged: None, or one character a column, `1` where the value stays as it is.
        count: how many rows, for COUNT.
        refusal: why it was refused; None when it waits behind an earlier change of its key.
    """

    sync: ResolvedSync
    schema: TableSchema
    operation: RowOperation
    values: Values
    unchanged: str | None = None
    count: int = 1
    refusal: Refusal | None = None

    @property
    def key(self) -> Values:
        """What tells the row from others: its key's values; of a table without a key, the whole row."""
        return key_of(self.schema, self.values)

    @property
    def key_hash(self) -> str:
        """Short name of the key."""
        return key_hash(self.key)


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A row change that is kept.

    Attributes:
        entry: its name, unique for ever.
        stream_id: its place in the queue; later entries have higher ones.
        change: the row change.
    """

    entry: str
    stream_id: str
    change: RowChange


class LetterSink(Protocol):
    """Keeps row changes durably."""

    def append(self, changes: Sequence[RowChange], position: Position, commit_time: float) -> Sequence[StoredLetter]:
        """Store changes in order, and return when they would survive a crash of the store.

        Not idempotent: what was stored for a destination transaction that then fails is left over, known to nobody.

        Args:
            changes: what to store.
            position: of the last source transaction among them.
            commit_time: its commit time, seconds since the epoch.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE, DEAD_LETTER_FULL; the caller's transaction must not commit.
        """
        ...

    def withdraw(self, letters: Sequence[StoredLetter]) -> None:
        """Remove what was stored for a transaction that was rolled back.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE; they are left over, known to nobody.
        """
        ...


def identity_columns(schema: TableSchema) -> tuple[str, ...]:
    """Return the names of the columns that tell a row from others."""
    return schema.key or schema.stream_names


def key_of(schema: TableSchema, values: Sequence[str | None]) -> Values:
    """Return the identifying values of a row."""
    if not schema.key:
        return tuple(values)
    names = schema.stream_names
    return tuple(values[names.index(name)] for name in schema.key)


def key_text(key: Sequence[str | None]) -> str:
    """Return a key as JSON."""
    return json.dumps(list(key), ensure_ascii=False, separators=(",", ":"))


def key_hash(key: Sequence[str | None]) -> str:
    """Return a name of fixed length for a key."""
    return hashlib.sha256(key_text(key).encode("utf-8", "surrogatepass")).hexdigest()[:32]
