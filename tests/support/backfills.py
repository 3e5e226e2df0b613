"""Backfills of a pipeline under test: asked for as people do, waited for, and a writer that works beside them."""

from __future__ import annotations

import random
import threading
from contextlib import closing
from typing import Any

import psycopg2.extensions
from sqlalchemy import Engine

from cdc_runner.catalog.database import open_catalog, session_scope
from cdc_runner.services.backfill import BackfillRequest, cancel_backfills, show_backfill, start_backfill
from cdc_runner.services.rebuild import confirm_rebuilds
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

ENDED = ("COMPLETED", "FAILED", "CANCELLED")


class Backfills:
    """What is done with the queue of one pipeline."""

    def __init__(self, harness: PipelineHarness, name: str = "shop") -> None:
        self._harness = harness
        self._name = name

    def start(self, *tables: str, **fields: Any) -> int:
        """Queue a backfill of one target and return its id."""
        # Which tables there are is reported about once a second.
        streaming = "SELECT count(*) > 0 AND bool_and(load_state = 'STREAMING') FROM pipelines_destination_table_sync"
        resolved = f"{streaming} WHERE origin = 'RESOLVED'"
        wait_for(lambda: self._harness.config.execute(resolved) == [(True,)], 60, "the tables to be reported")
        request = BackfillRequest(self._name, tables, **fields)
        engine = self._engine()
        try:
            with session_scope(engine) as session:
                outcome = start_backfill(session, request)
        finally:
            engine.dispose()
        assert len(outcome.queued) == 1, outcome.as_json()
        return int(outcome.queued[0]["id"])

    def cancel(self, *ids: int) -> None:
        """Cancel backfills."""
        engine = self._engine()
        try:
            with session_scope(engine) as session:
                cancel_backfills(session, self._name, ids)
        finally:
            engine.dispose()

    def confirm(self, *tables: str) -> list[dict[str, Any]]:
        """Drop the tables that rebuilds have replaced; returns the rebuilds."""
        engine = self._engine()
        try:
            with session_scope(engine) as session:
                return confirm_rebuilds(session, self._name, (), tables)
        finally:
            engine.dispose()

    def show(self, identifier: int) -> dict[str, Any]:
        """Return a backfill as people see it."""
        engine = self._engine()
        try:
            with session_scope(engine) as session:
                return show_backfill(session, identifier)
        finally:
            engine.dispose()

    def wait(self, identifier: int, status: str = "COMPLETED", timeout: float = 180) -> dict[str, Any]:
        """Wait until a backfill has ended, and return it."""

        def ended() -> dict[str, Any] | None:
            found = self.show(identifier)
            return found if found["status"] in ENDED else None

        try:
            found = wait_for(ended, timeout, f"backfill {identifier} to end")
        except AssertionError as error:
            shown = self.show(identifier)
            raise AssertionError(f"{error}\n{shown}\n{self._harness.log_text()[-3000:]}") from error
        assert found is not None
        assert found["status"] == status, f"{found}\n{self._harness.log_text()[-3000:]}"
        return found

    def _engine(self) -> Engine:
        return open_catalog(self._harness.config.url())


WRITTEN = """
CREATE TABLE item (id int PRIMARY KEY, v int NOT NULL, note text, big text, code int UNIQUE);
ALTER TABLE item ALTER big SET STORAGE EXTERNAL;
"""


DAMAGE = """
SET session_replication_role = replica;
UPDATE item SET note = 'wrong', big = 'wrong' WHERE id % 3 = 0;
DELETE FROM item WHERE id % 7 = 0;
INSERT INTO item SELECT 100000000 + i, 0, 'extra', 'extra', NULL FROM generate_series(1, 300) i;
"""


def fill(harness: PipelineHarness, rows: int) -> None:
    """Fill the table that `Writer` writes to; values of `big` lie outside the row."""
    harness.source.execute(
        "INSERT INTO item SELECT i, 0, 'n' || i, repeat(md5(i::text), CASE WHEN i %% 10 = 0 THEN 100 ELSE 1 END), i "
        "FROM generate_series(1, %s) i",
        (rows,),
    )


def start_damaged(harness: PipelineHarness, rows: int) -> None:
    """Start a pipeline of small chunks and short windows, wait for its load, then make its target wrong."""
    harness.source.execute(WRITTEN)
    fill(harness, rows)
    harness.configure(
        settings={
            "load_chunk_bytes": 1 << 20,
            "backfill_window_seconds": 5,
            "backfill_megabytes_per_second": max(1, rows // 50_000),
        }
    )
    harness.start()
    harness.wait_caught_up(300)
    harness.targets["target"].execute(DAMAGE)


class Writer(threading.Thread):
    """Changes rows of `item` all the time: updates, deletes, inserts, keys that change, unique values that move."""

    def __init__(self, harness: PipelineHarness, seed: int, rows: int, *, pause_seconds: float = 0.002) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.changes = 0
        self._harness = harness
        self._random = random.Random(seed)
        self._rows = rows
        self._next = rows + 1
        self._pause_seconds = pause_seconds

    def run(self) -> None:
        with closing(self._harness.source.connect()) as connection:
            connection.autocommit = False
            while not self.stopping.wait(self._pause_seconds):
                with connection, connection.cursor() as cursor:
                    self._one(cursor)
                self.changes += 1

    def finish(self) -> None:
        """End it."""
        self.stopping.set()
        self.join(30)

    def _one(self, cursor: psycopg2.extensions.cursor) -> None:
        draw, some = self._random.random(), self._random.randint(1, self._next)
        if draw < 0.5:
            # `big` is not in the stream when it lies outside the row.
            cursor.execute("UPDATE item SET v = v + 1 WHERE id BETWEEN %s AND %s", (some, some + 5))
        elif draw < 0.6:
            cursor.execute("UPDATE item SET big = repeat(big, 2) WHERE id = %s AND length(big) < 5000", (some,))
        elif draw < 0.75:
            cursor.execute("DELETE FROM item WHERE id = %s", (some,))
        elif draw < 0.85:
            cursor.execute("INSERT INTO item VALUES (%s, 1, 'new', 'b', NULL)", (self._next,))
            self._next += 1
        elif draw < 0.95:
            cursor.execute("UPDATE item SET id = %s WHERE id = %s", (self._next, some))
            self._next += 1
        else:
            cursor.execute("INSERT INTO item VALUES (%s, 2, 'again', 'c', NULL) ON CONFLICT DO NOTHING", (some,))
