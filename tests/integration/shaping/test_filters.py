"""Row filters from end to end: after each quiesce the target is `SELECT … WHERE filter` of the source."""

from __future__ import annotations

import random
from contextlib import closing

import pytest

from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]

BIG = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 400) i)"

SETUP = f"""
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE EXTENSION citext;
CREATE TABLE orders (
    id int PRIMARY KEY, region text, amount numeric, at timestamptz, feeling mood, name citext,
    code char(5), big text, note text);
ALTER TABLE orders ALTER big SET STORAGE EXTERNAL;
INSERT INTO orders
SELECT i, (ARRAY['EU', 'US', NULL])[i % 3 + 1], i / 3.0, '2024-01-01 00:00+00'::timestamptz + i * interval '1 day',
       (ARRAY['sad', 'ok', 'happy', NULL])[i % 4 + 1]::mood, (ARRAY['Ann', 'ANN', 'bob'])[i % 3 + 1], 'c' || i % 3,
       (ARRAY['keep ', 'drop '])[i % 2 + 1] || {BIG}, 'n'
FROM generate_series(1, 300) i;
CREATE TABLE bag (a int, b text);
ALTER TABLE bag REPLICA IDENTITY FULL;
INSERT INTO bag SELECT i % 5, NULLIF('t' || i % 3, 't0') FROM generate_series(1, 60) i;
"""

FILTERS = {
    "by_region": "region = 'EU'",
    "by_amount": "amount > 33.34 AND NOT amount BETWEEN 50 AND 60",
    "by_time": "at >= '2024-03-01 00:00+00' OR region IS NULL",
    "by_enum": "feeling > 'sad' AND feeling IN ('ok', 'happy')",
    "by_citext": "name = 'ann'",
    "by_padding": "code = 'c1'",
    "by_big": "big LIKE 'keep%'",
    "by_both": "region <> 'US' OR big LIKE 'keep%' AND length(note) < 3",
}
"""Target -> condition: types whose comparison only their server knows, and a value that updates leave out."""


def _syncs() -> list[dict[str, object]]:
    syncs: list[dict[str, object]] = [
        {"table": "public.orders", "target": target, "filter": condition} for target, condition in FILTERS.items()
    ]
    return [*syncs, {"table": "public.bag", "filter": "a > 1 OR b = 't1'"}]


def test_targets_are_the_filtered_source_after_random_changes_and_kills(pipeline: PipelineHarness) -> None:
    """Fixed seed: inserts, updates, key changes, deletes and truncates, with kills in between."""
    run_random_changes(pipeline, seed=6, rounds=4)


@pytest.mark.slow
@pytest.mark.jvm
@pytest.mark.parametrize("seed", range(3))
def test_targets_are_the_filtered_source_after_many_random_changes(pipeline: PipelineHarness, seed: int) -> None:
    """More rounds under several seeds."""
    run_random_changes(pipeline, seed=seed, rounds=25)


def run_random_changes(pipeline: PipelineHarness, seed: int, rounds: int) -> None:
    """Change the source at random, and compare each target with the filtered source."""
    chance = random.Random(seed)
    pipeline.engine = "debezium" if seed == 1 else "pgoutput"
    pipeline.source.execute(SETUP)
    pipeline.configure(syncs=_syncs())
    pipeline.start()
    pipeline.wait_caught_up()
    _compare(pipeline)
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
        pipeline.wait_caught_up(revive=True)
        _compare(pipeline)


def _random_statement(chance: random.Random) -> str:
    low = chance.randint(1, 300)
    some = f"id BETWEEN {low} AND {low + chance.randint(0, 40)}"
    region = chance.choice(["'EU'", "'US'", "NULL", "'eu'"])
    fresh = chance.randint(1000, 10**9)
    return chance.choice(
        [
            f"UPDATE orders SET region = {region} WHERE {some}",
            f"UPDATE orders SET amount = amount * {chance.choice(['1.5', '0.5', 'NULL', '-1'])} WHERE {some}",
            f"UPDATE orders SET at = at + interval '{chance.randint(-60, 60)} days' WHERE {some}",
            f"UPDATE orders SET feeling = {chance.choice(['NULL', repr('sad'), repr('happy')])} WHERE {some}",
            f"UPDATE orders SET name = {chance.choice([repr('aNN'), repr('Bob'), 'NULL'])} WHERE {some}",
            f"UPDATE orders SET big = '{chance.choice(['keep ', 'drop '])}' || {BIG} WHERE {some}",
            f"UPDATE orders SET note = {chance.choice([repr('n'), repr('long'), 'NULL'])} WHERE {some}",
            f"UPDATE orders SET id = id + {fresh} WHERE id = {low}",
            f"BEGIN; UPDATE orders SET note = 'm' WHERE {some}; UPDATE orders SET id = id + {fresh} WHERE {some}; "
            f"UPDATE orders SET region = {region} WHERE id > {fresh}; COMMIT",
            f"DELETE FROM orders WHERE {some} AND id % 3 = 0",
            f"INSERT INTO orders SELECT i, {region}, i, now(), 'ok', 'Ann', 'c1', 'keep ' || {BIG}, 'new' "
            f"FROM generate_series({low}, {low + 20}) i ON CONFLICT DO NOTHING",
            f"INSERT INTO bag SELECT {chance.randint(0, 4)}, 't1' FROM generate_series(1, 3)",
            f"UPDATE bag SET a = a + 1 WHERE b = 't{chance.randint(0, 3)}' AND a < 9",
            f"DELETE FROM bag WHERE a = {chance.randint(0, 5)} AND b IS NULL",
            "TRUNCATE bag" if chance.random() < 0.2 else "UPDATE bag SET b = 't1' WHERE a = 1",
            "TRUNCATE orders" if chance.random() < 0.1 else f"DELETE FROM orders WHERE id = {low}",
        ]
    )


def _compare(pipeline: PipelineHarness) -> None:
    different = {}
    for target, condition in [*FILTERS.items(), ("bag", "a > 1 OR b = 't1'")]:
        source = "bag" if target == "bag" else "orders"
        wanted = pipeline.source.execute(f"SELECT t::text FROM {source} t WHERE {condition} ORDER BY 1")
        found = pipeline.targets["target"].execute(f"SELECT t::text FROM {target} t ORDER BY 1")
        if wanted != found:
            lost, extra = set(wanted) - set(found), set(found) - set(wanted)
            different[target] = (
                len(wanted),
                len(found),
                [row[0][:60] for row in [*lost][:3]],
                [row[0][:60] for row in [*extra][:3]],
            )
    assert not different, f"{different}\n{pipeline.log_text()[-1500:]}"
