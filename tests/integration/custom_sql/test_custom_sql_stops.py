"""Custom SQL that meets masks, errors and changed tables: a clear stop, never rows that it did not give."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from rosetta_dagster.cli.main import main
from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]

NEEDS_PERSON = 78


@pytest.fixture(autouse=True)
def _engine(pipeline: PipelineHarness) -> None:
    pipeline.engine = "pgoutput"


def _stopped(pipeline: PipelineHarness) -> str:
    assert pipeline.wait_exit(90) == NEEDS_PERSON, pipeline.log_text()[-2000:]
    return str(pipeline.config.execute("SELECT last_error FROM pipeline_metadata")[0][0])


def test_masked_values_of_any_table_are_masked_in_the_result(pipeline: PipelineHarness) -> None:
    """The mask stands at another sync of the joined table; an error at run time then stops without a value."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(
        "CREATE TABLE customers (id int PRIMARY KEY, email text, city text);"
        "CREATE TABLE orders (id int PRIMARY KEY, customer_id int, amount text, card text);"
        "INSERT INTO customers SELECT i, 'canary' || i, 'canary' FROM generate_series(1, 9) i;"
        "INSERT INTO orders SELECT i, i, i::text, 'canary' || i FROM generate_series(1, 9) i"
    )
    sql = (
        "SELECT o.id, o.amount::INTEGER AS amount, c.email, c.city, o.card, c.email = 'canary1' AS told "
        "FROM orders o JOIN customers c ON c.id = o.customer_id"
    )
    pipeline.configure(
        syncs=[
            {"table": "public.customers", "mask": {"email": "hash", "city": "null"}},
            {"table": "public.orders", "target": "sold", "custom_sql": sql, "mask": {"card": {"truncate": 2}}},
        ]
    )
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute("UPDATE customers SET email = 'canary0', city = 'x' WHERE id = 3; INSERT INTO orders VALUES (10, 1)")
    pipeline.wait_caught_up()
    hashes = dict(target.execute("SELECT id, email FROM customers"))
    found = target.execute("SELECT id, amount, email, city, card, told FROM sold ORDER BY 1")
    assert found[2] == (3, 3, hashes[3], None, "ca", False) and found[9] == (10, None, hashes[1], None, None, False)
    assert [row[2] for row in found[:9]] == [hashes[number] for number in range(1, 10)]

    source.execute("UPDATE orders SET amount = 'canary amount' WHERE id = 4; DELETE FROM orders WHERE id = 5")
    error = _stopped(pipeline)
    assert "target public.sold: custom SQL: a value cannot be converted" in error
    assert target.execute("SELECT count(*) FROM sold WHERE id IN (4, 5)") == [(2,)], "nothing of the batch is there"
    source.execute("UPDATE orders SET amount = '40' WHERE id = 4")
    pipeline.ensure_running()
    pipeline.wait_caught_up()
    assert target.execute("SELECT id, amount FROM sold WHERE id IN (4, 5)") == [(4, 40)]
    pipeline.stop()
    for database in (pipeline.targets["target"], pipeline.config):
        with closing(database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE tablename <> 'orders' "
                "AND schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
            for (table,) in cursor.fetchall():
                cursor.execute(
                    f"SELECT count(*) FROM {table} t WHERE t::text ~ 'canary(\\d| amount)' AND {_no_sql(table)}"
                )
                assert cursor.fetchall() == [(0,)], table
    assert "canary amount" not in pipeline.log_text()


def _no_sql(table: str) -> str:
    # The statement itself names one of the values.
    return "custom_sql IS NULL" if table == "public.pipelines_destination_table_sync" else "true"


def test_changed_tables_are_followed_or_named(
    pipeline: PipelineHarness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns that it does not name may go; a type may grow; a column that it names may not go."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, region text, n int, other text);"
        "INSERT INTO t SELECT i, 'r' || i % 3, i, 'x' FROM generate_series(1, 30) i"
    )
    pipeline.configure(
        syncs=[
            {"table": "public.t", "target": "sums", "custom_sql": "SELECT region, sum(n) AS s FROM t GROUP BY region"},
            {"table": "public.t", "target": "rows", "custom_sql": "SELECT id, n FROM t WHERE n < 1000000000000"},
        ]
    )
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute(
        "ALTER TABLE t DROP other, ADD more text; INSERT INTO t VALUES (31, NULL, 7, 'm'), (32, NULL, 8, 'm')"
    )
    source.execute("ALTER TABLE t ALTER n TYPE bigint; UPDATE t SET n = 30000000000 WHERE id = 1")
    source.execute("UPDATE t SET n = n + 1 WHERE id = 31")
    pipeline.wait_caught_up()
    sums = target.execute("SELECT region, s FROM sums ORDER BY 1")
    assert sums == source.execute("SELECT region, sum(n) FROM t GROUP BY 1 ORDER BY 1") and sums[-1] == (None, 16)
    assert target.execute("SELECT id, n FROM rows ORDER BY 1") == source.execute("SELECT id, n FROM t ORDER BY 1")
    monkeypatch.setenv("CONFIG_DATABASE_URL", pipeline.config.url())
    assert main(["lineage", "shop", "--json"]) == 0
    found = {one["target"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["public.sums"]["columns"] == [
        {"name": "region", "from": ["public.t.region"], "how": "copied"},
        {"name": "s", "from": ["public.t.n"], "how": "computed"},
    ]
    assert main(["lineage", "--mermaid"]) == 0 and 'n1[("shop: public.t")]' in capsys.readouterr().out
    source.execute("ALTER TABLE t RENAME region TO area; UPDATE t SET n = 1 WHERE id = 2")
    error = _stopped(pipeline)
    assert "target public.sums: custom SQL: Binder Error" in error and "region" in error
    assert target.execute("SELECT region, s FROM sums ORDER BY 1") == sums


def test_a_statement_that_does_not_fit_its_tables_stops_before_anything_is_made(pipeline: PipelineHarness) -> None:
    pipeline.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    pipeline.configure(syncs=[{"table": "public.t", "target": "x", "custom_sql": "SELECT a, upper(a) AS b FROM t"}])
    pipeline.start()
    assert "target public.x: custom SQL: column id of table t must be in the result" in _stopped(pipeline)
    assert pipeline.targets["target"].execute("SELECT to_regclass('public.x')") == [(None,)]
