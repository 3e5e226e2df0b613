"""Statements that would do harm in DuckDB: each is refused or ended, within seconds and little memory.

`ROSETTA_ATTACK_TABLE=FILE` writes the table of verdicts that docs/preview.md shows.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from cdc_runner.sandbox.run import SandboxResult, SandboxTable, run_statement

ORDERS = SandboxTable(
    "orders",
    (("id", "INTEGER"), ("region", "VARCHAR"), ("amount", "DECIMAL(10,2)")),
    pa.table({"id": ["1", "2", "3"], "region": ["EU", None, "US"], "amount": ["1.10", "3", "5"]}),
)

REFUSED = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_json('/etc/passwd')", "SELECT * FROM read_parquet('/etc/passwd')", "SELECT * FROM glob('/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')", "SELECT * FROM '/etc/passwd'", 'SELECT * FROM "/proc/self/environ"',
    "SELECT * FROM read_duckdb('/tmp/x.db')", "COPY orders TO '/tmp/x'", "COPY orders FROM '/tmp/x'",
    "EXPORT DATABASE '/tmp/x'", "IMPORT DATABASE '/tmp/x'", "ATTACH '/tmp/x.db'", "ATTACH ':memory:' AS m",
    "INSTALL postgres",
    "LOAD postgres",
    "SELECT * FROM 'http://169.254.169.254/latest'",
    "SELECT * FROM 's3://b/k.parquet'",
    "CREATE SECRET s (TYPE s3)", "SELECT * FROM duckdb_secrets()", "SET memory_limit = '10GB'", "PRAGMA database_list",
    "CALL enable_logging(storage = 'file', storage_path = '/tmp/x')",
    "SELECT * FROM enable_logging(storage = 'file', storage_path = '/tmp/x')", "CHECKPOINT", "SELECT write_log('x')",
    "DROP TABLE orders", "INSERT INTO orders VALUES (4)", "CREATE MACRO abs(x) AS x", "SELECT * FROM duckdb_settings()",
    "SELECT current_setting('home_directory')", "SELECT * FROM postgres_query('x', 'SELECT 1')",
    "SELECT * FROM postgres_execute('x', 'DROP TABLE y')", "SELECT * FROM postgres_scan('host=x', 'public', 'y')",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY orders TO '/tmp/x'",
    "SELECT repeat('x', 2000000000)",
    "SELECT lpad('x', 2000000000, 'x')",
    "SELECT printf('%999999999d', 1)", "SELECT format('{:>999999999}', 1)", "SELECT levenshtein('a', 'b')",
    "SELECT list_sort([1])",
    "SELECT getvariable('x')",
    "SELECT nextval('s')",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM duckdb_databases()", "SUMMARIZE orders", "DESCRIBE orders", "SHOW TABLES", "PIVOT orders ON region",
    'WITH "/etc/passwd" AS (SELECT 1) SELECT * FROM "/etc/passwd"',
    "SELECT * FROM memory.main.orders",
    "EXECUTE x",
    "FROM system.main.x",
    "SELECT (SELECT count(*) FROM read_text('/etc/passwd'))",
    "SELECT * FROM orders ORDER BY (SELECT max(content) FROM read_text('/etc/passwd'))",
    "SELECT list_transform([1], x -> (SELECT content FROM read_text('/etc/passwd')))",
    "SELECT $1",
    "SELECT query('SELECT 1')",
    "SELECT * FROM query('SELECT 1')", "SELECT * FROM query_table('orders')", "EXPLAIN ANALYZE SELECT 1", "VACUUM", "",
    "SELECT * FROM pg_catalog.pg_class",
    "UPDATE orders SET id = 1",
    "DELETE FROM orders",
    "MERGE INTO orders USING orders ON true",
    "SELECT '" + "x" * 30_000 + "'",
]  # fmt: skip

ENDED = [
    "SELECT count(*) FROM range(100000000) a, range(100000000) b",
    "SELECT count(*) FROM range(10000000000000000)",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r",
    "SELECT string_agg(a.range::VARCHAR, ',') FROM range(200000000) a",
    "SELECT list(a.range) FROM range(500000000) a",
    "SELECT length(replace(string_agg('xxxxxxxxxx', ''), 'x', 'yyyyyyyyyyyyyyyyyyyyyyyy')) FROM range(100000000)",
    "SELECT count(*) FROM (SELECT DISTINCT md5(range::VARCHAR) FROM range(1000000000))",
    "SELECT * FROM range(10000000000000) ORDER BY hash(range)",
    "SELECT damerau_levenshtein(a, a) FROM (SELECT string_agg('x', '') AS a FROM range(100000))",
]

ALLOWED = [
    "SELECT * FROM orders", "SELECT region, sum(amount) AS total FROM orders GROUP BY region ORDER BY 1 -- comment",
    "WITH big AS (SELECT * FROM orders WHERE amount > 2) SELECT count(*) FROM big JOIN orders USING (id);",
    "SELECT id, CASE WHEN region IS NULL THEN 'none' END, row_number() OVER (ORDER BY id) FROM main.orders",
    "SELECT * FROM range(3)", "SELECT x FROM unnest([1, 2]) t(x)", "VALUES (1), (2)",
]  # fmt: skip


def test_attacks_are_refused_or_ended_and_plain_questions_are_answered() -> None:
    rows = [("refused", sql, run_statement(sql, [ORDERS])) for sql in REFUSED]
    rows += [("ended", sql, run_statement(sql, [ORDERS])) for sql in ENDED]
    rows += [("answered", sql, run_statement(sql, [ORDERS])) for sql in ALLOWED]
    _write_table(rows)
    wanted = {"refused": ("REFUSED",), "ended": ("KILLED", "FAILED"), "answered": ("COMPLETED",)}
    wrong = [(kind, sql[:80], one.state, one.reason) for kind, sql, one in rows if one.state not in wanted[kind]]
    assert not wrong
    # The process begins as a copy of the one that runs the tests, which counts.
    assert max(one.peak_bytes for _, _, one in rows) < 1_500_000_000
    assert max(one.seconds for _, _, one in rows) < 40, (
        "a busy machine starts processes late; the statement itself has 6 s"
    )


def _write_table(rows: list[tuple[str, str, SandboxResult]]) -> None:
    place = os.environ.get("ROSETTA_ATTACK_TABLE")
    if place:
        lines = ["| statement | verdict | s | peak MB | reason |", "|---|---|---|---|---|"]
        for _, sql, one in rows:
            shown = sql[:70].replace("|", "\\|") + ("…" if len(sql) > 70 else "")
            reason = (one.reason or "")[:70].replace("|", "\\|")
            lines.append(f"| `{shown}` | {one.state} | {one.seconds:.1f} | {one.peak_bytes // 1_000_000} | {reason} |")
        Path(place).write_text("\n".join(lines) + "\n")


def test_results_are_exact_text_with_types() -> None:
    found = run_statement("SELECT id, amount * 2 AS twice, region IS NULL AS none FROM orders ORDER BY id", [ORDERS])
    assert found.columns == (("id", "INTEGER"), ("twice", "DECIMAL(18,2)"), ("none", "BOOLEAN"))
    assert found.rows is not None
    assert found.rows.to_pylist()[1] == {"c0": "2", "c1": "6.00", "c2": "true"}
    assert found.network == "none" or found.network.startswith("not isolated")


def test_a_value_is_never_in_an_error() -> None:
    table = SandboxTable("t", (("a", "VARCHAR"),), pa.table({"a": ["canary"]}))
    found = run_statement("SELECT a::INTEGER FROM t", [table])
    assert found.state == "FAILED" and "canary" not in str(found.reason)


@pytest.mark.slow
def test_a_hundred_in_parallel() -> None:
    """Four at a time, as the preview service lets them."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: run_statement(ENDED[2], [ORDERS]).state, range(100)))
    assert set(found) == {"KILLED"}
