"""Transfers between accounts whose sum never changes: a load for a pipeline, and a watch over the sum at its target."""

from __future__ import annotations

import random
import threading
from contextlib import closing
from types import TracebackType

import psycopg2

from tests.support.pipelines import PipelineHarness

SETUP = """
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, note text);
INSERT INTO account SELECT i, 1000, repeat('n', 50) FROM generate_series(1, 200) i;
CREATE TABLE entry (at int, line text);
ALTER TABLE entry REPLICA IDENTITY FULL;
INSERT INTO entry SELECT i % 5, 'same' FROM generate_series(1, 50) i;
CREATE TABLE bulk (id bigint PRIMARY KEY, v text);
"""
TOTAL = 200 * 1000


class Load(threading.Thread):
    """A mixed workload: transfers whose sum never changes, equal rows without a key, bulk statements now and then."""

    def __init__(self, harness: PipelineHarness, seed: int, first_id: int = 0) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.transactions = 0
        self._harness = harness
        self._random = random.Random(seed)
        self._next = first_id

    def run(self) -> None:
        with closing(self._harness.source.connect()) as connection:
            connection.autocommit = False
            while not self.stopping.is_set():
                with connection, connection.cursor() as cursor:
                    self._one(cursor)
                self.transactions += 1
                self.stopping.wait(0.004)

    def finish(self) -> None:
        """End with what is under way."""
        self.stopping.set()
        self.join(30)

    def _one(self, cursor: psycopg2.extensions.cursor) -> None:
        draw = self._random.random()
        if draw < 0.7:
            first, second = self._random.sample(range(1, 201), 2)
            amount = self._random.randint(1, 50)
            cursor.execute("UPDATE account SET balance = balance - %s WHERE id = %s", (amount, first))
            cursor.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (amount, second))
            cursor.execute("INSERT INTO entry VALUES (%s, 'same')", (self._random.randint(0, 4),))
        elif draw < 0.8:
            cursor.execute("DELETE FROM entry WHERE ctid = (SELECT ctid FROM entry WHERE at = %s LIMIT 1)", (1,))
        elif draw < 0.9:
            old, new = self._random.randint(1, 200), self._random.randint(1, 200)
            cursor.execute("SELECT balance FROM account WHERE id IN (%s, %s) FOR UPDATE", (old, new))
            # Two accounts change their numbers.
            cursor.execute("UPDATE account SET id = -id WHERE id IN (%s, %s)", (old, new))
            if old != new:
                cursor.execute("UPDATE account SET id = CASE id WHEN %s THEN %s ELSE %s END WHERE id IN (%s, %s)",
                               (-old, new, old, -old, -new))  # fmt: skip
            else:
                cursor.execute("UPDATE account SET id = -id WHERE id = %s", (-old,))
        elif draw < 0.97:
            size = self._random.choice((10, 100, 500))
            cursor.execute(
                "INSERT INTO bulk SELECT i, 'v' FROM generate_series(%s, %s) i", (self._next, self._next + size - 1)
            )
            self._next += size
        elif draw < 0.99:
            # The last statements' rows: an update of everything would outrun any follower.
            cursor.execute("UPDATE bulk SET v = v || '.' WHERE id BETWEEN %s AND %s", (self._next - 3000, self._next))
        else:
            cursor.execute("DELETE FROM bulk WHERE id %% 7 = 1 AND id < %s", (self._next,))


class Watcher(threading.Thread):
    """Reads the sum of the balances at the target all the time: it must be that of the source at every moment."""

    def __init__(self, harness: PipelineHarness) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.wrong: list[object] = []
        self.reads = 0
        self._harness = harness

    def run(self) -> None:
        with closing(self._harness.targets["target"].connect()) as connection, connection.cursor() as cursor:
            while not self.stopping.wait(0.005):
                cursor.execute("SELECT sum(balance), count(*) FROM account")
                row = cursor.fetchone()
                self.reads += 1
                if row != (TOTAL, 200):
                    self.wrong.append(row)


class Transfers:
    """A load on a pipeline and a watcher of its target, each started when the test wants it; both end with the block.

    `SETUP` must have been run at the source.
    """

    def __init__(self, harness: PipelineHarness, seed: int) -> None:
        self.load, self.watcher = Load(harness, seed), Watcher(harness)
        self._harness = harness

    def assert_exact(self, timeout_seconds: float) -> None:
        """End the load, and fail unless the target comes to equal the source and never showed what it never was."""
        self.load.finish()
        self._harness.wait_caught_up(timeout_seconds)
        self.watcher.stopping.set()
        self.watcher.join(10)
        self._harness.assert_equal()
        reads, wrong = self.watcher.reads, self.watcher.wrong
        assert reads > 100, "too little was read to show anything"
        assert not wrong, f"{len(wrong)} of {reads} reads saw a sum that the source never had"

    def __enter__(self) -> Transfers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.load.stopping.set()
        self.watcher.stopping.set()
