"""Rows of one chunk into their target: those that differ, in short transactions under the lock of the position."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg2
import psycopg2.extensions
import structlog

from cdc_runner.backfill import statements as sql
from cdc_runner.backfill.pace import Pace
from cdc_runner.backfill.rows import RowSource
from cdc_runner.backfill.window import Side, Window, Work, copied_columns
from cdc_runner.destinations.letters import Refusal, RowChange, RowOperation, StoredLetter
from cdc_runner.destinations.postgres import statements, waiting
from cdc_runner.destinations.postgres.isolate import RowSearch, is_row_error
from cdc_runner.destinations.postgres.pipe import copy_across
from cdc_runner.errors import ErrorKind, RosettaError

log = structlog.get_logger()

Connection = psycopg2.extensions.connection
Cursor = psycopg2.extensions.cursor

HELD_SECONDS = 0.05
"""For how long one step is meant to hold up the stream."""
_NOTES_AT_ONCE = 5_000
_FIRST_STEP, _LEAST_STEP, _LARGEST_STEP = 1_000, 100, 20_000
_RANGE = f"(SELECT * FROM {sql.DUE} WHERE r BETWEEN $1 AND $2)"
_WHOLE = f"(SELECT * FROM {sql.DUE} WHERE r BETWEEN $1 AND $2 AND x IS NULL)"


@dataclass(slots=True)
class Merged:
    """What became of a chunk.

    Attributes:
        rows: read at the source.
        changed: written, since they were another at the target or missing.
        refused: put into the dead-letter queue.
        moved: left out, since they have got another key meanwhile, or just this one, and kept values that only the
            target knows.
    """

    rows: int = 0
    changed: int = 0
    refused: int = 0
    moved: int = 0


@dataclass(slots=True)
class _Steps:
    """How many rows a step takes, from how long the last one took."""

    size: int = _FIRST_STEP

    def took(self, seconds: float) -> None:
        """Adapt the size of the next step."""
        wanted = self.size * HELD_SECONDS / max(seconds, 0.001)
        # Not more than twice at once: the first steps find cold pages.
        self.size = int(max(_LEAST_STEP, min(wanted, self.size * 2, _LARGEST_STEP)))


@dataclass(slots=True)
class ChunkMerge:
    """Copies chunks in one session of the destination. Used by one thread."""

    side: Side
    rows: RowSource
    window: Window
    work: Work
    pace: Pace
    writer: Connection
    _steps: _Steps = field(default_factory=_Steps)
    _search: RowSearch = field(default_factory=RowSearch)
    _marked: bool = False

    def clear(self) -> None:
        """Begin with no rows beside the target."""
        with self.writer, self.writer.cursor() as cursor:
            cursor.execute(f"DROP TABLE IF EXISTS {sql.STAGED}, {sql.DUE}")
            cursor.execute(sql.create_staged(self.rows.shape))

    def stage(self, reader: Connection, copy_out: str) -> int:
        """Copy rows beside the target; return how many there are.

        Raises:
            Interrupted: the work was asked to end.
            RosettaError: the kinds of both sides.
        """
        with self.writer, self.writer.cursor() as cursor:
            copy_in = f"COPY {sql.STAGED} ({copied_columns(self.rows.shape.written)}) FROM STDIN"
            copy_across(reader, copy_out, cursor, copy_in, self.rows.masker(), self.pace)
            return int(cursor.rowcount)

    def merge(self, rows: int) -> Merged:
        """Write what was staged, once the destination has reached the snapshot.

        Raises:
            Interrupted, WindowVoid: what is written so far is right, the rest must be read again.
            RosettaError: the destination's kinds.
        """
        merged = Merged(rows)
        self._marked = False
        upto = self._prepare(merged)
        with self.writer, self.writer.cursor() as cursor:
            cursor.execute(f"SELECT coalesce(max(r), 0) FROM {sql.DUE}")
            row = cursor.fetchone()
            last = 0 if row is None else int(row[0])
            if last:
                cursor.execute(f"CREATE INDEX ON {sql.DUE} (r)")
                cursor.execute(f"ANALYZE {sql.DUE} (r)")
        low = 1
        while low <= last:
            self.work.check()
            upto = self._catch_up(low, upto, merged)
            high = min(low + self._steps.size - 1, last)
            self._step(low, high, upto, merged, final=high == last)
            low = high + 1
        return merged

    # -- before the lock ----------------------------------------------------------------------------------------------

    def _prepare(self, merged: Merged) -> int:
        """Leave only what has to be written; return the number of the last note that was heeded."""
        try:
            with self.writer, self.writer.cursor() as cursor:
                return self._sort_out(cursor, merged, compare=True)
        except psycopg2.Error as error:
            if not is_row_error(error.pgcode):
                raise
        # A value that the target's type does not take makes each statement fail that looks at it.
        with self.writer, self.writer.cursor() as cursor:
            return self._sort_out(cursor, merged, compare=False)

    def _sort_out(self, cursor: Cursor, merged: Merged, *, compare: bool) -> int:
        shape = self.rows.shape
        cursor.execute(sql.actual_types(shape))
        actual = dict(cursor.fetchall())
        cursor.execute(f"ANALYZE {sql.STAGED}")
        cursor.execute(sql.PROBE_KEYS)
        named = [actual[shape.columns[place]] for place in shape.written]
        cursor.execute(sql.create_due(shape, named, compare=compare))
        cursor.execute("SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on")
        if not compare:
            self._drop_bad_keys(cursor, merged)
        cursor.execute(sql.has_waiting(shape, self.side.pipeline))
        row = cursor.fetchone()
        if row is not None and row[0]:
            cursor.execute(sql.drop_waiting(shape, self.side.pipeline))
        upto = self._last_note(cursor)
        if upto:
            cursor.execute(f"ANALYZE {sql.DUE}")
            self._heed_notes(cursor, merged, 0, "true")
        return upto

    def _drop_bad_keys(self, cursor: Cursor, merged: Merged) -> None:
        """Put rows aside whose key the target's type does not take."""
        cursor.execute(f"SELECT coalesce(max(r), 0) FROM {sql.DUE}")
        row = cursor.fetchone()
        if row is None or not row[0]:
            return
        bad = self._search.run(cursor, [sql.checked_keys(self.rows.shape)], 1, int(row[0]))
        if bad:
            self.window.lock(cursor)
            self._put_aside(cursor, bad)
            cursor.execute(f"DELETE FROM {sql.DUE} WHERE r = ANY(%s)", (sorted(bad),))
            merged.refused += len(bad)

    def _heed_notes(self, cursor: Cursor, merged: Merged, after: int, rows: str) -> None:
        shape, watch, lsn = self.rows.shape, self.window.watch, self.window.position.lsn
        # The planner expects no notes behind the last one that it knows of, and would look at each row for each note.
        cursor.execute("SET LOCAL enable_nestloop = off")
        cursor.execute(sql.drop_touched(shape, watch, lsn, after, rows, moved=True))
        merged.moved += cursor.rowcount
        cursor.execute(sql.drop_touched(shape, watch, lsn, after, rows, moved=False))
        cursor.execute(f"SELECT EXISTS (SELECT FROM {watch.journal} WHERE n > {after} AND x IS NOT NULL)")
        row = cursor.fetchone()
        if row is not None and row[0]:
            cursor.execute(sql.mark_touched(shape, watch, lsn, after, rows))
            self._marked = self._marked or cursor.rowcount > 0
        cursor.execute("SET LOCAL enable_nestloop = DEFAULT")

    def _last_note(self, cursor: Cursor) -> int:
        cursor.execute(sql.last_note(self.window.watch))
        row = cursor.fetchone()
        return 0 if row is None else int(row[0])

    def _catch_up(self, low: int, upto: int, merged: Merged) -> int:
        """Heed what many notes say of the rows that are left, so that a step has few to heed under the lock."""
        with self.writer, self.writer.cursor() as cursor:
            last = self._last_note(cursor)
            if last - upto < _NOTES_AT_ONCE:
                return upto
            self._heed_notes(cursor, merged, upto, f"s.r >= {low}")
        return last

    # -- under the lock ----------------------------------------------------------------------------------------------

    def _step(self, low: int, high: int, upto: int, merged: Merged, *, final: bool) -> None:
        """Write a range of rows in one transaction."""
        for careful in (False, True):
            try:
                merged.changed += self._write(low, high, upto, merged, careful=careful, final=final)
                return
            except psycopg2.Error as error:
                if not is_row_error(error.pgcode):
                    raise
                # Unique values may have changed places between rows: then it helps to delete the rows first.
                if error.pgcode != "23505":
                    break
        self._write_isolated(low, high, upto, merged)

    def _begin(self, cursor: Cursor, low: int, high: int, upto: int, merged: Merged, *, final: bool) -> None:
        if not final:
            # The last step waits for the disk, and all before it with it.
            cursor.execute("SET LOCAL synchronous_commit = off")
        else:
            cursor.execute("SET LOCAL synchronous_commit = on")
        self.window.lock(cursor)
        if self._last_note(cursor) > upto:
            self._heed_notes(cursor, merged, upto, f"s.r BETWEEN {low} AND {high}")

    def _write(self, low: int, high: int, upto: int, merged: Merged, *, careful: bool, final: bool) -> int:
        shape = self.rows.shape
        bounds = f"r BETWEEN {low} AND {high}"
        with self.writer, self.writer.cursor() as cursor:
            self._begin(cursor, low, high, upto, merged, final=final)
            began = time.monotonic()
            part = f"(SELECT * FROM {sql.DUE} WHERE {bounds})"
            whole = f"(SELECT * FROM {sql.DUE} WHERE {bounds} AND x IS NULL)"
            count = 0
            if self._marked and len(shape.written) > len(shape.key):
                cursor.execute(statements.update_partial(shape, part))
                count = cursor.rowcount
            if careful:
                cursor.execute(statements.delete_upserted(shape, whole))
            cursor.execute(statements.upsert(shape, whole, partial=False))
            count += cursor.rowcount
        self._steps.took(time.monotonic() - began)
        return int(count)

    def _write_isolated(self, low: int, high: int, upto: int, merged: Merged) -> None:
        shape = self.rows.shape
        stored: list[StoredLetter] = []
        steps = [statements.delete_upserted(shape, _WHOLE), statements.upsert(shape, _WHOLE, partial=False)]
        if len(shape.written) > len(shape.key):
            steps.insert(0, statements.update_partial(shape, _RANGE))
        try:
            with self.writer, self.writer.cursor() as cursor:
                self._begin(cursor, low, high, upto, merged, final=True)
                cursor.execute(f"SELECT count(*) FROM {sql.DUE} WHERE r BETWEEN {low} AND {high}")
                row = cursor.fetchone()
                refused = self._search.run(cursor, steps, low, high)
                stored += self._put_aside(cursor, refused)
        except BaseException:
            self._withdraw(stored)
            raise
        merged.refused += len(refused)
        merged.changed += (0 if row is None else int(row[0])) - len(refused)
        log.warning("backfill.rows_refused", target=str(shape.table), rows=len(refused))

    def _put_aside(self, cursor: Cursor, refused: Mapping[int, Refusal]) -> Sequence[StoredLetter]:
        """Put rows into the dead-letter queue, and their marks into the caller's transaction, which holds the lock."""
        if not refused:
            return []
        if self.side.letters is None:
            first = refused[min(refused)]
            raise RosettaError(ErrorKind.DESTINATION_ROW_REJECTED, f"a row was refused: {first.message}")
        shape, sync = self.rows.shape, self.rows.sync
        values = ", ".join(f"c{place}" for place in range(len(shape.columns)))
        cursor.execute(f"SELECT r, {values} FROM {sql.DUE} WHERE r = ANY(%s) ORDER BY r", (sorted(refused),))
        changes = [
            RowChange(sync, self.rows.known.schema, RowOperation.PUT, tuple(texts), refusal=refused[place])
            for place, *texts in cursor.fetchall()
        ]
        stored = self.side.letters.append(changes, self.window.position, 0.0)
        try:
            waiting.add_marks(cursor, self.side.pipeline, stored, self.window.position.lsn)
            waiting.raise_version(cursor, self.side.pipeline)
        except BaseException:
            self._withdraw(stored)
            raise
        self.side.destination.diversion.stale = True
        return stored

    def _withdraw(self, stored: Sequence[StoredLetter]) -> None:
        if stored and self.side.letters is not None:
            with suppress(RosettaError):
                self.side.letters.withdraw(list(stored))
