"""A chunk of an initial load of which the target refuses rows: all others are written, those go to the dead letters.

The rows pass through a numbered staging table in place of the plain COPY, and are searched as those of a batch are
(`isolate`). Memory is bounded by a page of rows; the number of refused rows by the queue's limit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import psycopg2.extensions

from cdc_runner.destinations.base import TableLoad
from cdc_runner.destinations.letters import LetterSink, Refusal, RowChange, RowOperation, StoredLetter
from cdc_runner.destinations.postgres import statements, waiting
from cdc_runner.destinations.postgres.isolate import RowSearch, numbered
from cdc_runner.destinations.postgres.statements import TargetShape
from cdc_runner.errors import ErrorKind, RosettaError

Cursor = psycopg2.extensions.cursor

STAGING = "pg_temp.rosetta_load_numbered"
SEARCH_ROWS = 20_000
_PAGE = 2000


class RefusedLoad:
    """Writes one chunk in the caller's transaction."""

    def __init__(self, pipeline: str, sink: LetterSink, most: int) -> None:
        """Args:
        pipeline: under which the marks are kept.
        sink: takes the refused rows.
        most: refused rows beyond which the load stops.
        """
        self._pipeline = pipeline
        self._sink = sink
        self._most = most
        self.stored: list[StoredLetter] = []
        """What went to the queue, to be withdrawn when the transaction fails."""

    def write(
        self,
        cursor: Cursor,
        load: TableLoad,
        shape: TargetShape,
        copy: Callable[[str], None],
        lock: Callable[[], object],
    ) -> int:
        """Write what the target takes, put the rest aside, and return how many rows were written.

        Args:
            cursor: of the chunk's transaction.
            load: the table.
            shape: its target.
            copy: runs a `COPY … FROM STDIN` statement with the chunk's rows.
            lock: locks the pipeline's position: nobody takes stock of the queue until the transaction ends.

        Raises:
            RosettaError: DEAD_LETTER_FULL, DEAD_LETTER_UNAVAILABLE; the transaction must be rolled back.
        """
        values = ", ".join(f"c{place} text" for place in range(len(shape.columns)))
        cursor.execute(f"DROP TABLE IF EXISTS {STAGING}")
        cursor.execute(
            f"CREATE TEMPORARY TABLE {STAGING} (r bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
            f"d boolean DEFAULT false, x text, n bigint DEFAULT 1{', ' if values else ''}{values}) ON COMMIT DROP"
        )
        copy(f"COPY {STAGING} ({', '.join(f'c{place}' for place in shape.written)}) FROM STDIN")
        count = cursor.rowcount
        cursor.execute(f"ANALYZE {STAGING} (r)")
        refused = self._search(cursor, load, shape, count)
        if refused:
            lock()
            self._put_aside(cursor, load, shape, refused)
        return count - len(refused)

    def _search(self, cursor: Cursor, load: TableLoad, shape: TargetShape, count: int) -> dict[int, Refusal]:
        staged = numbered(STAGING)
        if load.resumed and shape.key:
            step = statements.upsert(shape, staged, partial=False)
        else:
            step = statements.insert_multiset(shape, staged)
        search, refused = RowSearch(), dict[int, Refusal]()
        for low in range(1, count + 1, SEARCH_ROWS):
            refused |= search.run(cursor, [step], low, min(low + SEARCH_ROWS - 1, count))
            if len(refused) > self._most:
                raise RosettaError(
                    ErrorKind.DEAD_LETTER_FULL,
                    f"target {load.state.sync.target} refuses more than {self._most} rows of the initial load "
                    f"(dead_letter_max_entries), the last one because: {refused[max(refused)].message}",
                    {"table": str(load.state.sync.source)},
                )
        return refused

    def _put_aside(self, cursor: Cursor, load: TableLoad, shape: TargetShape, refused: dict[int, Refusal]) -> None:
        state = load.state
        operation = RowOperation.PUT if state.schema.key else RowOperation.COUNT
        columns = "".join(f", c{place}" for place in range(len(shape.columns)))
        places = sorted(refused)
        for start in range(0, len(places), _PAGE):
            some = places[start : start + _PAGE]
            cursor.execute(f"SELECT r{columns} FROM {STAGING} WHERE r = ANY(%s) ORDER BY r", (some,))
            changes = [
                RowChange(state.sync, state.schema, operation, tuple(values), refusal=refused[place])
                for place, *values in cursor.fetchall()
            ]
            letters = self._sink.append(changes, state.snapshot, 0.0)
            self.stored += letters
            waiting.add_marks(cursor, self._pipeline, letters, state.snapshot.lsn)
        waiting.raise_version(cursor, self._pipeline)

    def withdraw(self) -> None:
        """The transaction has failed: take back what it put into the queue, if that can be reached."""
        with suppress(RosettaError):
            self._sink.withdraw(self.stored)
        self.stored = []
