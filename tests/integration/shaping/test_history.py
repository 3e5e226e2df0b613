"""History mode: every change of a table is a row of the target, once, in the order of the source's commits."""

from __future__ import annotations

import random
from contextlib import closing

import pytest

from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]

SETUP = """
CREATE TABLE account (id int PRIMARY KEY, owner text NOT NULL, balance numeric NOT NULL DEFAULT 0, big text);
ALTER TABLE account ALTER big SET STORAGE EXTERNAL;
INSERT INTO account SELECT i, 'o' || i, i, repeat('b', 5000) FROM generate_series(1, 20) i;
CREATE TABLE bag (a int, b text);
ALTER TABLE bag REPLICA IDENTITY FULL;
INSERT INTO bag VALUES (1, 'x'), (1, 'x'), (2, NULL);
"""
SYNCS: list[dict[str, object]] = [
    {"table": "public.account", "target": "history", "mode": "history", "mask": {"owner": {"truncate": 1}}},
    {
        "table": "public.account", "target": "rich", "mode": "history", "filter": "balance >= 10",
        "columns": ["id", "balance"], "rename": {"balance": "amount"},
    },
    {"table": "public.account"},
    {"table": "public.bag", "mode": "history"},
]  # fmt: skip
TRANSACTIONS = (
    "BEGIN; UPDATE account SET balance = 50 WHERE id = 1; UPDATE account SET balance = 60 WHERE id = 1; COMMIT",
    "UPDATE account SET id = 101 WHERE id = 2; UPDATE account SET balance = 1 WHERE id = 15",
    "INSERT INTO account VALUES (30, 'new', 5, NULL), (31, 'new', 31, 'x'); DELETE FROM account WHERE id = 30",
    "UPDATE bag SET a = 9 WHERE b = 'x'; INSERT INTO bag VALUES (3, 'y'); DELETE FROM bag WHERE b IS NULL",
    "TRUNCATE account; INSERT INTO account VALUES (1, 'last', 100, 'z')",
)
ORDER = "ORDER BY _rosetta_lsn, _rosetta_ordinal"


@pytest.mark.jvm
@pytest.mark.both_engines
def test_every_change_is_a_row(pipeline: PipelineHarness) -> None:
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(SETUP)
    pipeline.configure(syncs=SYNCS)
    pipeline.start()
    pipeline.wait_caught_up()
    first = "SELECT DISTINCT _rosetta_operation, _rosetta_ordinal, _rosetta_committed_at, _rosetta_unchanged FROM {}"
    for table, rows in (("history", 20), ("rich", 11), ("bag", 3)):
        assert target.execute(f"SELECT count(*) FROM {table}") == [(rows,)]
        assert target.execute(first.format(table)) == [("r", 0, None, None)]
    for transaction in TRANSACTIONS:
        source.execute(transaction)
    pipeline.wait_caught_up()
    told = "_rosetta_operation, id, owner, balance::int, _rosetta_unchanged"
    kept = f"SELECT {told} FROM history WHERE _rosetta_ordinal > 0 {ORDER}"
    big = ["big"]
    assert target.execute(kept) == [
        ("u", 1, "o", 50, big), ("u", 1, "o", 60, big),
        ("d", 2, None, None, None), ("c", 101, "o", 2, big),
        ("u", 15, "o", 1, big),
        ("c", 30, "n", 5, None), ("c", 31, "n", 31, None), ("d", 30, None, None, None),
        ("t", None, None, None, None), ("c", 1, "l", 100, None),
    ]  # fmt: skip
    rich = f"SELECT _rosetta_operation, id, amount::int FROM rich WHERE _rosetta_ordinal > 0 {ORDER}"
    assert target.execute(rich) == [
        ("u", 1, 50), ("u", 1, 60), ("d", 2, None), ("d", 15, None), ("c", 31, 31), ("d", 30, None),
        ("t", None, None), ("c", 1, 100),
    ]  # fmt: skip
    bag = f"SELECT _rosetta_operation, a, b FROM bag WHERE _rosetta_ordinal > 0 {ORDER}"
    assert target.execute(bag) == [
        ("d", 1, "x"), ("u", 9, "x"), ("d", 1, "x"), ("u", 9, "x"), ("c", 3, "y"), ("d", 2, None),
    ]  # fmt: skip
    assert target.execute("SELECT count(*) FROM account") == [(1,)]
    times = target.execute(f"SELECT _rosetta_committed_at FROM history WHERE _rosetta_ordinal > 0 {ORDER}")
    assert times == sorted(times) and len(set(times)) == 4

    source.execute(
        "ALTER TABLE account ADD extra int NOT NULL DEFAULT 7; INSERT INTO account VALUES (2, 'e', 1, 'e', 8)"
    )
    pipeline.wait_caught_up()
    assert target.execute("SELECT extra, count(*) FROM history GROUP BY 1 ORDER BY 1") == [(8, 1), (None, 30)]


def test_a_history_is_kept_exactly_once_through_kills_and_loads(pipeline: PipelineHarness) -> None:
    """Replayed, it gives the table; it has as many rows as the source made changes."""
    pipeline.engine = "pgoutput"
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL); INSERT INTO t SELECT i, 0 FROM generate_series(1, 50) i"
    )
    pipeline.configure(syncs=[{"table": "public.t", "mode": "history"}])
    pipeline.start()
    pipeline.wait_caught_up()
    chance, changes = random.Random(1), 0
    for number in range(4):
        with closing(source.connect()) as connection, connection.cursor() as cursor:
            for _ in range(60):
                low = chance.randint(1, 60)
                cursor.execute(
                    chance.choice(
                        [
                            f"UPDATE t SET n = n + 1 WHERE id BETWEEN {low} AND {low + 5}",
                            f"DELETE FROM t WHERE id = {low}",
                            f"INSERT INTO t VALUES ({low}, 1) ON CONFLICT DO NOTHING",
                        ]
                    )
                )
                changes += cursor.rowcount
        if number < 3:
            pipeline.kill()
            pipeline.ensure_running()
    pipeline.wait_caught_up(revive=True)
    assert target.execute("SELECT count(*) FROM t WHERE _rosetta_operation <> 'r'") == [(changes,)]
    _assert_replayed(pipeline)
    pipeline.stop()
    pipeline.config.execute("UPDATE pipelines SET status = 'REFRESH'")
    source.execute("DELETE FROM t WHERE id < 10; UPDATE t SET n = -1 WHERE id < 20")
    pipeline.start()
    pipeline.wait_caught_up()
    loads = target.execute("SELECT DISTINCT _rosetta_lsn FROM t WHERE _rosetta_operation = 'r'")
    assert len(loads) == 2, "a load adds to the history"
    assert target.execute("SELECT count(*) FROM t WHERE _rosetta_operation <> 'r'") == [(changes,)]
    _assert_replayed(pipeline)


def _assert_replayed(pipeline: PipelineHarness) -> None:
    replayed = pipeline.targets["target"].execute(
        "SELECT id, n FROM (SELECT DISTINCT ON (id) * FROM t "
        "WHERE _rosetta_lsn >= (SELECT max(_rosetta_lsn) FROM t WHERE _rosetta_operation = 'r') "
        "ORDER BY id, _rosetta_lsn DESC, _rosetta_ordinal DESC) x WHERE _rosetta_operation <> 'd' ORDER BY 1"
    )
    assert replayed == pipeline.source.execute("SELECT id, n FROM t ORDER BY 1")
