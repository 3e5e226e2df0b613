"""What happens at the source: tables, and changes with their positions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import psycopg2.extensions

from bench.servers import Database
from cdc_runner.position import parse_lsn

ACCOUNTS = "public.pgbench_accounts"
MARKER = "public.bench_marker"
BATCH = 1000

ACCOUNTS_DDL = """
CREATE TABLE pgbench_accounts (aid integer PRIMARY KEY, bid integer, abalance integer, filler character(84));
CREATE TABLE bench_marker (id integer PRIMARY KEY, n bigint);
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Changes that were committed at the source.

    Attributes:
        marks: positions, each with the number of row changes committed at or before it; growing.
    """

    marks: list[tuple[int, int]]

    @property
    def rows(self) -> int:
        """Row changes in all."""
        return self.marks[-1][1]

    @property
    def end(self) -> int:
        """Position at which all of them are done."""
        return self.marks[-1][0]

    @property
    def bytes_per_row(self) -> float:
        """WAL that a row change takes at the source."""
        (first, before), (last, after) = self.marks[0], self.marks[-1]
        return (last - first) / max(1, after - before)

    def rows_at(self, lsn: int) -> int:
        """Return how many row changes are committed at or before a position."""
        place = bisect_right(self.marks, lsn, key=lambda mark: mark[0])
        return self.marks[place - 1][1] if place else 0


@dataclass(frozen=True, slots=True)
class Workload:
    """A named way to change `pgbench_accounts`."""

    name: str
    rows: int
    changes: Callable[[psycopg2.extensions.cursor, int, int], Iterator[int]]
    """Cursor, number of changes, rows of the table; yields how many changes were committed since the last yield."""

    def run(self, source: Database, table_rows: int) -> Backlog:
        """Make the changes; return their positions.

        A small change of its own comes first: when that one is applied, a reader has begun.
        """
        with closing(source.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            cursor.execute(f"UPDATE {MARKER} SET n = n + 1")
            done = 1
            marks = [(current_lsn(cursor), done)]
            for rows in self.changes(cursor, self.rows, table_rows):
                done += rows
                marks.append((current_lsn(cursor), done))
            # What follows brings every reader beyond the last mark.
            cursor.execute(f"UPDATE {MARKER} SET n = n + 1")
            cursor.execute("SET synchronous_commit = on")
            cursor.execute(f"UPDATE {MARKER} SET n = n + 1")
        return Backlog(marks)


def bulk(cursor: psycopg2.extensions.cursor, rows: int, table_rows: int) -> Iterator[int]:
    """Updates in transactions of 1,000 neighbouring rows."""
    for start in range(0, rows, BATCH):
        first = start % table_rows
        cursor.execute(
            f"UPDATE {ACCOUNTS} SET abalance = abalance + 1 WHERE aid > %s AND aid <= %s", (first, first + BATCH)
        )
        yield cursor.rowcount


def single(cursor: psycopg2.extensions.cursor, rows: int, table_rows: int) -> Iterator[int]:
    """Updates of one row a transaction, spread over the table."""
    cursor.execute(
        f"""CREATE OR REPLACE PROCEDURE bench_single(first bigint, number int, size bigint) LANGUAGE plpgsql AS $$
        BEGIN
            FOR i IN 0 .. number - 1 LOOP
                UPDATE {ACCOUNTS} SET abalance = abalance + 1 WHERE aid = 1 + (first + i) * 7919 % size;
                COMMIT;
            END LOOP;
        END $$"""
    )
    for start in range(0, rows, BATCH):
        number = min(BATCH, rows - start)
        cursor.execute("CALL bench_single(%s, %s, %s)", (start, number, table_rows))
        yield number


def large(cursor: psycopg2.extensions.cursor, rows: int, table_rows: int) -> Iterator[int]:
    """Updates in one transaction."""
    cursor.execute(f"UPDATE {ACCOUNTS} SET abalance = abalance + 1 WHERE aid <= %s", (min(rows, table_rows),))
    yield cursor.rowcount


def create_accounts(source: Database, rows: int) -> None:
    """Create and fill `pgbench_accounts` and the marker, vacuumed, as `pgbench -i` does."""
    with closing(source.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(ACCOUNTS_DDL)
        cursor.execute("INSERT INTO bench_marker VALUES (1, 0)")
        cursor.execute(
            "INSERT INTO pgbench_accounts SELECT i, 1 + i / 100000, 0, '' FROM generate_series(1, %s) i", (rows,)
        )
        cursor.execute("VACUUM ANALYZE pgbench_accounts")


def current_lsn(cursor: psycopg2.extensions.cursor) -> int:
    """Return where the source writes now."""
    cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
    row = cursor.fetchone()
    assert row is not None, "the server knows its position"
    return parse_lsn(row[0])
