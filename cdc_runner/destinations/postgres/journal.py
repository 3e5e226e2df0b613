"""Keys that the stream touches while rows of their table are on their way from the source by another road.

A backfill reads rows under a snapshot and writes them later; what the stream has changed meanwhile must stay. So while
a target is watched, each apply notes the keys of its changes, in the transaction that applies them: a key that was
deleted is noted as well as one that was written, and with a row of which the stream did not carry every value which
ones those were. Notes are made before dead letters are sorted out, so that a key that is put aside counts as touched.

A watch is begun and read under the lock of the position, which every apply takes: whoever holds the lock sees the notes
of all that is applied. It lives in this process; one that was killed leaves a table behind, which the next removes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg2.extensions
import pyarrow as pa

from cdc_runner.destinations.postgres.encode import BinaryEncoder
from cdc_runner.destinations.postgres.statements import TargetShape
from cdc_runner.position import Position
from cdc_runner.schema import TableId, quote_identifier, quote_literal
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import ResolvedSync

Cursor = psycopg2.extensions.cursor

_PREFIX = "backfill_journal_"


@dataclass(slots=True)
class Watch:
    """A target of which touched keys are noted.

    Attributes:
        target: the table.
        journal: name of the table that holds the notes: `n` in order, `end_lsn`, `x` (as in a staging table; NULL where
            the change said everything), `m` (the row has got this key, or has gone on under another one, with values
            that the stream did not say), `k0 …` typed as the key's columns are.
        key: names of the key's columns at the target.
        types: their types.
        void: why what was read must not be written any more; None while it may.
    """

    target: TableId
    journal: str
    key: tuple[str, ...]
    types: tuple[str, ...]
    void: str | None = None


class Journal:
    """The watches of one destination. `record` belongs to the thread that applies, the rest to backfills."""

    def __init__(self, pipeline: str, encoder: BinaryEncoder) -> None:
        """Args:
        pipeline: whose targets these are.
        encoder: of the thread that applies.
        """
        self._pipeline = pipeline
        self._encoder = encoder
        self._watches: dict[TableId, Watch] = {}
        self._made: set[int] = set()

    @property
    def active(self) -> bool:
        """Whether any target is watched."""
        return bool(self._watches)

    def forget_session(self) -> None:
        """The session that applies is gone, and its staging tables with it."""
        self._made.clear()

    def void(self, target: TableId, why: str) -> None:
        """What was read of a target is not to be written any more."""
        watch = self._watches.get(target)
        if watch is not None:
            watch.void = watch.void or why

    # -- backfills -----------------------------------------------------------------------------------------------------

    def watch(self, cursor: Cursor, shape: TargetShape) -> Watch:
        """Begin to note touched keys of a target, from the caller's commit on.

        Args:
            cursor: of a transaction that holds the lock of the position.
            shape: the target; it has a key.
        """
        name = f"_rosetta.{quote_identifier(_table_name(self._pipeline, shape.table))}"
        key = tuple(shape.columns[place] for place in shape.key)
        key_types = tuple(shape.types[place] for place in shape.key)
        columns = ", ".join(f"k{place} {type_}" for place, type_ in enumerate(key_types))
        cursor.execute(f"DROP TABLE IF EXISTS {name}")
        cursor.execute(
            f"CREATE TABLE {name} (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, end_lsn bigint NOT NULL, "
            f"x text, m boolean NOT NULL, {columns})"
        )
        watch = Watch(shape.table, name, key, key_types)
        # An apply that waits for the lock finds it set; if the caller does not commit, its notes fail and it is void.
        self._watches[shape.table] = watch
        return watch

    def end(self, watch: Watch) -> None:
        """Note nothing of a target any more; its notes are dropped by `drop_left`, or by the next watch."""
        if self._watches.get(watch.target) is watch:
            del self._watches[watch.target]

    def drop_left(self, cursor: Cursor) -> None:
        """Drop the notes of targets that are not watched; the transaction must hold the lock of the position."""
        kept = {_table_name(self._pipeline, target) for target in self._watches}
        for name in _left(cursor, self._pipeline):
            if name not in kept:
                cursor.execute(f"DROP TABLE IF EXISTS _rosetta.{quote_identifier(name)}")

    # -- the thread that applies ---------------------------------------------------------------------------------------

    def record(self, cursor: Cursor, segment: Iterable[tuple[ResolvedSync, NetChange]], through: Position) -> None:
        """Note the keys that a segment touches, in the transaction that applies it."""
        for sync, change in segment:
            watch = self._watches.get(sync.target)
            if watch is None:
                continue
            if change.truncate:
                self.void(sync.target, "it was truncated")
            if change.rows.num_rows == 0:
                continue
            notes = _notes(change, watch.key)
            if notes is None:
                self.void(sync.target, "its key changed")
            else:
                self._insert(cursor, watch, notes, through)

    def _insert(self, cursor: Cursor, watch: Watch, notes: pa.Table, through: Position) -> None:
        width = len(watch.key)
        staging = f"pg_temp.rosetta_journal_{width}"
        columns = [("x", "text"), ("m", "boolean"), *((f"k{place}", "text") for place in range(width))]
        if width not in self._made:
            listed = ", ".join(f"{name} {type_}" for name, type_ in columns)
            cursor.execute(f"CREATE TEMPORARY TABLE {staging} ({listed}) ON COMMIT DELETE ROWS")
            self._made.add(width)
        else:
            cursor.execute(f"TRUNCATE {staging}")
        with self._encoder.encoded(notes, columns) as file:
            cursor.copy_expert(f"COPY {staging} FROM STDIN (FORMAT binary)", file, size=1 << 18)
        typed = ", ".join(f"k{place}::{type_}" for place, type_ in enumerate(watch.types))
        names = ", ".join(name for name, _ in columns)
        cursor.execute(
            f"INSERT INTO {watch.journal} (end_lsn, {names}) SELECT {through.lsn}, x, m, {typed} FROM {staging}"
        )


def drop_journals(connection: psycopg2.extensions.connection, pipeline: str) -> None:
    """Drop what backfills of a pipeline have left at a destination, in the caller's transaction."""
    with connection.cursor() as cursor:
        for name in _left(cursor, pipeline):
            cursor.execute(f"DROP TABLE IF EXISTS _rosetta.{quote_identifier(name)}")


def _left(cursor: Cursor, pipeline: str) -> list[str]:
    cursor.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = '_rosetta' "
        f"AND starts_with(tablename, {quote_literal(_prefix(pipeline))})"
    )
    return [row[0] for row in cursor.fetchall()]


def _prefix(pipeline: str) -> str:
    return f"{_PREFIX}{hashlib.sha256(pipeline.encode()).hexdigest()[:12]}_"


def _table_name(pipeline: str, target: TableId) -> str:
    digest = hashlib.sha256(f"{target.schema}\x00{target.name}".encode()).hexdigest()
    return f"{_prefix(pipeline)}{digest[:16]}"


def _notes(change: NetChange, key: Sequence[str]) -> pa.Table | None:
    """Return the keys that a change touches, with the marks of values that it does not carry; None without a key."""
    schema, rows = change.version.schema, change.rows
    names = schema.stream_names
    if tuple(schema.key) != tuple(key) or change.kind not in (NetKind.MERGE, NetKind.MOVE):
        return None
    columns = {f"k{place}": rows.column(f"c{names.index(name)}") for place, name in enumerate(key)}
    if change.kind is NetKind.MERGE:
        return pa.table({"x": rows.column("x"), "m": pa.repeat(False, rows.num_rows), **columns})
    # The values that a row keeps under its new key are those of the old one: nothing of what was read is of use. What
    # was read may have the row under its new key already, when the batch spans the snapshot: that counts as moved, too.
    whole = pa.nulls(rows.num_rows, pa.string())
    old = {name: rows.column(name) for name in columns}
    return pa.concat_tables(
        [
            pa.table({"x": whole, "m": pa.repeat(True, rows.num_rows), **columns}),
            pa.table({"x": whole, "m": pa.repeat(True, rows.num_rows), **old}),
        ]
    )
