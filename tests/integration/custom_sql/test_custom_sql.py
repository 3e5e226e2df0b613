"""Custom SQL from end to end: after each quiesce a target is what its statement gives over the whole source."""

from __future__ import annotations

import random
from contextlib import closing

import pytest

from tests.support.custom_sql import compare
from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]

SETUP = """
CREATE TABLE countries (code text PRIMARY KEY, name text);
CREATE TABLE customers (id int PRIMARY KEY, name text, country text, active bool);
CREATE TABLE orders (
    id int PRIMARY KEY, customer_id bigint, region text, amount numeric(12,2), made timestamp, orders_note text);
CREATE INDEX ON orders (customer_id);
INSERT INTO countries VALUES ('de', 'Germany'), ('id', 'Indonesia'), ('fr', 'France');
INSERT INTO customers SELECT i, 'c' || i, (ARRAY['de', 'id', 'fr', 'xx', NULL])[i % 5 + 1], i % 3 > 0
    FROM generate_series(1, 40) i;
INSERT INTO orders SELECT i, i % 45, (ARRAY['EU', 'US', NULL])[i % 3 + 1], i / 3.0,
    '2024-01-01'::timestamp + i * interval '3 hours', 'note ' || i FROM generate_series(1, 400) i;
"""

STATEMENTS = {
    "doubled": "SELECT id, region AS orders, amount * 2 AS twice, orders_note FROM orders WHERE amount > 20",
    "named": "SELECT o.id AS order_id, c.name, k.name AS country, o.amount FROM orders o "
    "JOIN customers c ON o.customer_id = c.id LEFT JOIN countries k ON k.code = c.country AND c.active",
    "daily": "SELECT date_trunc('day', made) AS day, region, count(*) AS n, sum(amount) AS total, min(id) AS least "
    "FROM orders GROUP BY 1, 2",
    "by_country": "SELECT k.name AS country, count(*) AS n, sum(o.amount) AS total FROM orders o "
    "JOIN customers c ON c.id = o.customer_id LEFT JOIN countries k ON k.code = c.country "
    "WHERE c.active GROUP BY k.name HAVING count(*) > 2",
}
"""Target -> statement that PostgreSQL understands, too."""


def _syncs() -> list[dict[str, object]]:
    shaped: list[dict[str, object]] = [
        {"table": "public.orders", "target": target, "custom_sql": sql} for target, sql in STATEMENTS.items()
    ]
    return [*shaped, {"table": "public.customers"}]


@pytest.mark.jvm
@pytest.mark.both_engines
def test_targets_are_the_statements_results_after_random_changes_and_kills(pipeline: PipelineHarness) -> None:
    """Fixed seed: inserts, updates, key changes, deletes and truncates in all tables, with kills in between."""
    run_random_changes(pipeline, seed=3, rounds=4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_targets_are_the_statements_results_after_many_random_changes(pipeline: PipelineHarness, seed: int) -> None:
    """More rounds under several seeds."""
    pipeline.engine = "pgoutput"
    run_random_changes(pipeline, seed=seed, rounds=25)


def run_random_changes(pipeline: PipelineHarness, seed: int, rounds: int) -> None:
    """Change the source at random, and compare each target with its statement's result."""
    chance = random.Random(seed)
    pipeline.source.execute(SETUP)
    pipeline.configure(syncs=_syncs())
    pipeline.start()
    pipeline.wait_caught_up()
    compare(pipeline, STATEMENTS)
    for number in range(rounds):
        if number % 3 == 1:
            pipeline.kill()
        with closing(pipeline.source.connect()) as connection, connection.cursor() as cursor:
            for _ in range(chance.randint(1, 15)):
                cursor.execute(_random_statement(chance))
        if number % 3 == 1:
            pipeline.ensure_running()
        elif number % 3 == 2:
            pipeline.kill()
            pipeline.ensure_running()
        pipeline.wait_caught_up(timeout=240, revive=True)
        compare(pipeline, STATEMENTS)


def _random_statement(chance: random.Random) -> str:
    low, one = chance.randint(1, 400), chance.randint(0, 45)
    some = f"id BETWEEN {low} AND {low + chance.randint(0, 40)}"
    region = chance.choice(["'EU'", "'US'", "NULL", "'new'"])
    country = chance.choice(["'de'", "'id'", "'xx'", "NULL"])
    fresh = chance.randint(1000, 10**8)
    return chance.choice(
        [
            f"UPDATE orders SET region = {region} WHERE {some}",
            f"UPDATE orders SET amount = amount * {chance.choice(['1.5', '0.5', 'NULL', '-1'])} WHERE {some}",
            f"UPDATE orders SET made = made + interval '{chance.randint(-60, 60)} hours' WHERE {some}",
            f"UPDATE orders SET customer_id = {one} WHERE {some}",
            f"UPDATE orders SET id = id + {fresh} WHERE id = {low}",
            f"DELETE FROM orders WHERE {some} AND id % 3 = 0",
            f"INSERT INTO orders SELECT i, {one}, {region}, i, '2024-02-01', 'new' "
            f"FROM generate_series({low}, {low + 20}) i ON CONFLICT DO NOTHING",
            f"UPDATE customers SET active = NOT active WHERE id % 7 = {one % 7}",
            f"UPDATE customers SET country = {country}, name = name || 'x' WHERE id = {one}",
            f"UPDATE customers SET id = id + {fresh} WHERE id = {one}",
            f"DELETE FROM customers WHERE id = {one}",
            f"INSERT INTO customers VALUES ({one}, 'again', {country}, true) ON CONFLICT DO NOTHING",
            f"UPDATE countries SET name = {chance.choice([repr('Germany'), repr('Other'), 'NULL'])} WHERE code <> 'id'",
            "DELETE FROM countries WHERE code = 'de'",
            "INSERT INTO countries VALUES ('de', 'Germany'), ('xx', 'X') ON CONFLICT DO NOTHING",
            f"BEGIN; UPDATE orders SET amount = 1 WHERE {some}; DELETE FROM customers WHERE id = {one}; "
            f"UPDATE orders SET region = {region} WHERE {some}; COMMIT",
            "TRUNCATE orders" if chance.random() < 0.1 else f"DELETE FROM orders WHERE id = {low}",
            "TRUNCATE countries" if chance.random() < 0.2 else f"UPDATE orders SET orders_note = NULL WHERE {some}",
        ]
    )
