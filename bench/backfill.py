"""`python -m bench.backfill [--rows N] [--changes N] [--kills N]`: a resync beside the stream, against plain COPY.

With `--rebuild` the one under fire is a rebuild, while somebody reads the table all the time.

copy      the table by COPY from server to server into an empty one with its key, and nothing else
right     a backfill of a target that is right: read and compared, nothing written
empty     a backfill of a target that was emptied
fire      a resync of a damaged target while rows inside and outside the chunks are updated, deleted, inserted and
          get other keys, and the process is killed; both sides are compared as text at the end
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from contextlib import closing
from typing import Any

from bench import machine
from bench.pipeline import Pipeline
from bench.servers import Database, Servers, servers
from bench.waiting import wait_until
from cdc_runner.catalog.database import open_catalog, session_scope
from cdc_runner.destinations.postgres.pipe import copy_across
from cdc_runner.services.backfill import BackfillRequest, show_backfill, start_backfill

_CREATE = "CREATE TABLE orders (id bigint PRIMARY KEY, customer int, amount numeric, note text, at timestamptz)"
_ROWS = (
    "INSERT INTO orders SELECT i, i %% 1000, i / 7.0, md5(i::text), timestamptz '2026-01-01' + i * interval '1 second' "
    "FROM generate_series(1, %s) i"
)
SUM = "SELECT count(*), coalesce(sum(hashtextextended(o::text, 0)::numeric), 0)::text FROM orders o"
_HOURS = 7200.0


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(prog="bench.backfill")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=2_000, help="changes a second while it is under fire")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--engine", default="pgoutput")
    parser.add_argument("--fire", action="store_true", help="only plain COPY and the resync under fire")
    parser.add_argument("--rebuild", action="store_true", help="under fire: a rebuild in place of a resync")
    arguments = parser.parse_args()
    with servers() as own:
        result = measure(
            own,
            arguments.rows,
            arguments.changes,
            arguments.kills,
            arguments.engine,
            quiet=not arguments.fire,
            mode="rebuild" if arguments.rebuild else "resync",
        )
        print(json.dumps(result, indent=2))


def measure(
    own: Servers, rows: int, changes: int, kills: int, engine: str, *, quiet: bool = True, mode: str = "resync"
) -> dict[str, Any]:
    """Return rows a second of each, and what the one under fire came to."""
    load = machine.load_average()
    source, target, other = own.create("source", "shop"), own.create("target", "shop"), own.create("target", "copy")
    for database in (source, other):
        database.execute(_CREATE)
    source.execute(_ROWS, (rows,))
    source.execute("VACUUM ANALYZE orders")
    own.settle()
    copied = _plain_copy(source, other)
    pipeline = Pipeline(own, source, target, ["public.orders"], engine)
    pipeline.start()
    try:
        pipeline.wait_loaded(_HOURS)
        found = _undisturbed(own, pipeline, rows, copied) if quiet else {}
        fire = _under_fire(pipeline, rows, changes, kills, mode)
    finally:
        pipeline.remove()
    return {
        "rows": rows,
        "engine": engine,
        "copy_rows_per_second": round(rows / copied),
        **found,
        "fire": fire,
        "load_average": load,
    }


def _undisturbed(own: Servers, pipeline: Pipeline, rows: int, copied_seconds: float) -> dict[str, Any]:
    # What tables there are is reported about once a second.
    time.sleep(3)
    right = _wait(pipeline, _start(pipeline, "backfill"))
    pipeline.target.execute("TRUNCATE orders")
    own.settle()
    empty = _wait(pipeline, _start(pipeline, "backfill"))
    return {
        "right_rows_per_second": round(rows / right["seconds"]),
        "right_changed": right["changed"],
        "empty_rows_per_second": round(rows / empty["seconds"]),
        "against_copy": round(copied_seconds / empty["seconds"], 2),
    }


def fill(database: Database, rows: int) -> None:
    """Make the table `orders` with so many rows."""
    database.execute(_CREATE)
    database.execute(_ROWS, (rows,))
    database.execute("VACUUM ANALYZE orders")


def _plain_copy(source: Database, target: Database) -> float:
    began = time.monotonic()
    with closing(source.connect()) as reader, closing(target.connect()) as writer, writer.cursor() as cursor:
        copy_across(reader, "COPY orders TO STDOUT", cursor, "COPY orders FROM STDIN")
    return time.monotonic() - began


def _start(pipeline: Pipeline, mode: str) -> int:
    engine = open_catalog(pipeline.config.url())
    try:
        with session_scope(engine) as session:
            outcome = start_backfill(session, BackfillRequest("bench", ("public.orders",), mode=mode))
            return int(outcome.queued[0]["id"])
    finally:
        engine.dispose()


def _show(pipeline: Pipeline, identifier: int) -> dict[str, Any]:
    engine = open_catalog(pipeline.config.url())
    try:
        with session_scope(engine) as session:
            return show_backfill(session, identifier)
    finally:
        engine.dispose()


def _wait(pipeline: Pipeline, identifier: int) -> dict[str, Any]:
    shown: dict[str, Any] = {}

    def ended() -> bool:
        nonlocal shown
        shown = _show(pipeline, identifier)
        return shown["status"] not in ("PENDING", "EXECUTING")

    wait_until(ended, _HOURS, "the backfill", 0.2)
    if shown["status"] != "COMPLETED":
        raise RuntimeError(str(shown))
    return shown


class Writer(threading.Thread):
    """Makes a number of changes a second, twenty in a transaction."""

    def __init__(self, source: Database, rows: int, changes_per_second: int) -> None:
        """Args:
        source: has the table `orders`.
        rows: with numbers from 1 on; those are changed.
        changes_per_second: how many.
        """
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.changes = 0
        self._source = source
        self._rows, self._next = rows, rows + 1
        self._pause_seconds = 20 / changes_per_second
        self._random = random.Random(1)

    def run(self) -> None:
        """Make changes until it is stopped."""
        due = time.monotonic()
        with closing(self._source.connect()) as connection, connection.cursor() as cursor:
            while not self.stopping.is_set():
                some = self._random.randint(1, self._rows)
                # Twelve updates, three deletes, three inserts, two keys that change.
                cursor.execute(
                    f"UPDATE orders SET amount = amount + 1 WHERE id BETWEEN {some} AND {some + 11};"
                    f"DELETE FROM orders WHERE id BETWEEN {some + 12} AND {some + 14};"
                    f"INSERT INTO orders SELECT i, 1, 2, 'new', now() FROM generate_series({self._next}, "
                    f"{self._next + 2}) i;"
                    f"UPDATE orders SET id = id + {10**10 * self._next} WHERE id BETWEEN {some + 15} AND {some + 16}"
                )
                self._next += 3
                self.changes += 20
                due += self._pause_seconds
                self.stopping.wait(max(0.0, due - time.monotonic()))


class _Reader(threading.Thread):
    """Reads a row of the target all the time, by the key of one that nobody changes."""

    def __init__(self, target: Database) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.reads, self.missing, self.longest_seconds = 0, 0, 0.0
        self._target = target

    def run(self) -> None:
        with closing(self._target.connect()) as connection, connection.cursor() as cursor:
            while not self.stopping.wait(0.001):
                began = time.monotonic()
                cursor.execute("SELECT note FROM orders WHERE id = 0")
                self.missing += cursor.fetchone() is None
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
                self.reads += 1


def _under_fire(pipeline: Pipeline, rows: int, changes: int, kills: int, mode: str) -> dict[str, Any]:
    pipeline.source.execute("INSERT INTO orders VALUES (0, 0, 0, 'read', now())")
    lsn = int(pipeline.source.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0])
    pipeline.source.execute("SELECT pg_logical_emit_message(true, 'rosetta', '')")
    pipeline.wait_position(lsn, _HOURS)
    pipeline.target.execute(
        "SET session_replication_role = replica; UPDATE orders SET note = 'wrong' WHERE id % 10 = 0 AND id <> 0;"
        "DELETE FROM orders WHERE id % 10 = 1;"
        "INSERT INTO orders SELECT -i, 0, 0, 'extra', now() FROM generate_series(1, 1000) i"
    )
    writer = Writer(pipeline.source, rows, changes)
    began = time.monotonic()
    writer.start()
    reader = _Reader(pipeline.target)
    reader.start()
    one = _start(pipeline, mode)
    for kill in range(1, kills + 1):
        share = kill / (kills + 1)
        wait_until(
            lambda share=share: _show(pipeline, one)["chunks_done"] >= share * (_show(pipeline, one)["chunks"] or 1e9),  # type: ignore[misc]
            _HOURS,
            "its share of the chunks",
            0.1,
        )
        pipeline.kill()
        pipeline.start()
    shown = _wait(pipeline, one)
    seconds = time.monotonic() - began
    writer.stopping.set()
    writer.join(30)
    reader.stopping.set()
    reader.join(30)
    lsn = int(pipeline.source.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0])
    pipeline.source.execute("SELECT pg_logical_emit_message(true, 'rosetta', '')")
    caught = pipeline.wait_position(lsn, _HOURS)
    return {
        "mode": mode,
        "seconds": round(seconds, 1),
        "changes_per_second": round(writer.changes / seconds),
        "kills": kills,
        "resumed": shown["resumed"],
        "changed": shown["changed"],
        "deleted": shown["deleted"],
        "rows_per_second_at_work": shown["rows_per_second"],
        "caught_up_after_seconds": round(caught - began - seconds, 1),
        "reads": reader.reads,
        "reads_without_the_row": reader.missing,
        "longest_read_ms": round(reader.longest_seconds * 1000),
        "equal": pipeline.source.execute(SUM) == pipeline.target.execute(SUM),
    }


if __name__ == "__main__":
    main()
