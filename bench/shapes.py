"""Further shapes of data and of transactions: wide rows, hot keys, TPC-B, mixed types, many tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg2.extensions

from bench.servers import Database
from bench.workloads import ACCOUNTS, Workload

TABLES = 200
_WIDE_COLUMNS = 50
_HOT_KEYS = 50

NAMES = [
    "public.wide",
    "public.mixed",
    "public.pgbench_branches",
    "public.pgbench_tellers",
    "public.pgbench_history",
    *(f"public.many_{number}" for number in range(TABLES)),
]
"""The tables beside `pgbench_accounts`."""

DDL = (
    f"CREATE TABLE wide (id integer PRIMARY KEY, n bigint, "
    f"{', '.join(f'c{number} text' for number in range(_WIDE_COLUMNS - 2))});"
    """
CREATE TABLE mixed (id bigint PRIMARY KEY, n numeric(20,4), f double precision, b boolean, d date, t timestamptz,
  i interval, u uuid, j jsonb, a text[], x bytea, r int4range, ip inet, v varchar(80));
CREATE TABLE pgbench_branches (bid integer PRIMARY KEY, bbalance integer, filler character(88));
CREATE TABLE pgbench_tellers (tid integer PRIMARY KEY, bid integer, tbalance integer, filler character(84));
CREATE TABLE pgbench_history (tid integer, bid integer, aid integer, delta integer, mtime timestamp,
  filler character(22));
ALTER TABLE pgbench_history REPLICA IDENTITY FULL;
""" + "".join(f"CREATE TABLE many_{number} (id integer PRIMARY KEY, n bigint, v text);\n" for number in range(TABLES))
)


def create(source: Database, rows: int) -> None:
    """Create and fill the tables; `rows` of the wide and of the mixed one."""
    values = ", ".join(f"repeat(chr(97 + {number} % 26), 40)" for number in range(_WIDE_COLUMNS - 2))
    with closing(source.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(DDL)
        cursor.execute(f"INSERT INTO wide SELECT i, 0, {values} FROM generate_series(1, {rows}) i")
        cursor.execute(
            f"""INSERT INTO mixed SELECT i, i / 7.0, i / 3.0, i % 2 = 0, '2020-01-01'::date + i % 1000, now(),
               i * '1 s'::interval,
               gen_random_uuid(), jsonb_build_object('n', i), ARRAY['a', NULL, i::text], decode(md5(i::text), 'hex'),
               int4range(i, i + 5), '10.0.0.1', 'text ' || i FROM generate_series(1, {rows}) i"""
        )
        cursor.execute("INSERT INTO pgbench_branches SELECT i, 0, '' FROM generate_series(1, 10) i")
        cursor.execute("INSERT INTO pgbench_tellers SELECT i, 1 + i % 10, 0, '' FROM generate_series(1, 100) i")
        for number in range(TABLES):
            cursor.execute(f"INSERT INTO many_{number} SELECT i, 0, 'v' FROM generate_series(1, 20) i")
        cursor.execute("VACUUM ANALYZE")


def workloads(rows: int) -> list[Workload]:
    """Return the workloads; `rows` changes of narrow rows each, fewer of wide ones."""
    return [
        Workload("wide", rows // 4, wide),
        Workload("hot", rows, hot),
        Workload("tpcb", rows, tpcb),
        Workload("mixed", rows, mixed),
        Workload("tables", rows, many),
    ]


def wide(cursor: psycopg2.extensions.cursor, rows: int, table_rows: int) -> Iterator[int]:
    """Updates of rows of 2 KB in 50 columns, 100 a transaction."""
    yield from _ranges(cursor, "UPDATE wide SET n = n + 1 WHERE id > %s AND id <= %s", rows, 100)


def mixed(cursor: psycopg2.extensions.cursor, rows: int, table_rows: int) -> Iterator[int]:
    """Updates of rows of 14 types, 500 a transaction."""
    statement = "UPDATE mixed SET n = n + 1.5, f = -f, t = now() WHERE id > %s AND id <= %s"
    yield from _ranges(cursor, statement, rows, 500)


def _ranges(cursor: psycopg2.extensions.cursor, statement: str, rows: int, size: int) -> Iterator[int]:
    done = first = 0
    while done < rows:
        cursor.execute(statement, (first, first + size))
        if cursor.rowcount == 0:
            first = 0
            continue
        first += size
        done += cursor.rowcount
        yield cursor.rowcount


def hot(cursor: psycopg2.extensions.cursor, rows: int, table_rows: int) -> Iterator[int]:
    """Updates of the same 50 rows again and again."""
    for _ in range(rows // _HOT_KEYS):
        cursor.execute(f"UPDATE {ACCOUNTS} SET abalance = abalance + 1 WHERE aid <= %s", (_HOT_KEYS,))
        yield cursor.rowcount


def tpcb(cursor: psycopg2.extensions.cursor, rows: int, table_rows: int) -> Iterator[int]:
    """Transactions of pgbench's TPC-B: three updates and an insert."""
    cursor.execute(
        f"""CREATE OR REPLACE PROCEDURE bench_tpcb(number int, size bigint) LANGUAGE plpgsql AS $$
        DECLARE a int; t int; b int; d int;
        BEGIN
            FOR i IN 1 .. number LOOP
                a := 1 + floor(random() * size);
                t := 1 + floor(random() * 100);
                b := 1 + floor(random() * 10);
                d := i % 100;
                UPDATE {ACCOUNTS} SET abalance = abalance + d WHERE aid = a;
                UPDATE pgbench_tellers SET tbalance = tbalance + d WHERE tid = t;
                UPDATE pgbench_branches SET bbalance = bbalance + d WHERE bid = b;
                INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (t, b, a, d, now());
                COMMIT;
            END LOOP;
        END $$"""
    )
    for _ in range(rows // 2000):
        cursor.execute("CALL bench_tpcb(500, %s)", (table_rows,))
        yield 2000


def many(cursor: psycopg2.extensions.cursor, rows: int, table_rows: int) -> Iterator[int]:
    """Transactions of one row, each in the next of 200 tables."""
    cursor.execute(
        f"""CREATE OR REPLACE PROCEDURE bench_many(rounds int) LANGUAGE plpgsql AS $$
        BEGIN
            FOR i IN 1 .. rounds LOOP
                FOR number IN 0 .. {TABLES - 1} LOOP
                    EXECUTE format('UPDATE many_%s SET n = n + 1 WHERE id = %s', number, 1 + i % 20);
                    COMMIT;
                END LOOP;
            END LOOP;
        END $$"""
    )
    for _ in range(max(1, rows // (5 * TABLES))):
        cursor.execute("CALL bench_many(5)")
        yield 5 * TABLES
