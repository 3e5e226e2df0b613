"""The engine `pgoutput` and transactions that the server sends while they are open."""

from __future__ import annotations

from contextlib import closing

import pytest

from cdc_runner.capture.assemble import BatchSettings
from tests.integration.capture.conftest import MARK, Source
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.timeout(120)]


def streamed(source: Source) -> int:
    rows = source.database.execute(
        "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = %s", (source.database.name,)
    )
    return int(rows[0][0])


def test_streamed_transactions_are_applied_at_commit_or_not_at_all(streaming_source: Source) -> None:
    """Aborted whole, rolled back to savepoints, interleaved with small ones: only what was committed arrives."""
    source = streaming_source
    source.begin("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text)")
    source.start()
    with closing(source.database.connect()) as one, closing(source.database.connect()) as two:
        first, second = one.cursor(), two.cursor()
        first.execute("BEGIN")
        first.execute("INSERT INTO t SELECT i, repeat('a', 100) FROM generate_series(1, 3000) i")
        second.execute("BEGIN; INSERT INTO t SELECT i, repeat('b', 100) FROM generate_series(10001, 13000) i")
        first.execute("SAVEPOINT s; INSERT INTO u SELECT i, repeat('c', 100) FROM generate_series(1, 3000) i")
        first.execute("UPDATE t SET v = 'gone' WHERE id <= 3000; ROLLBACK TO SAVEPOINT s")
        source.database.execute("INSERT INTO u VALUES (-1, 'small')")
        first.execute("INSERT INTO u SELECT i, repeat('d', 100) FROM generate_series(5001, 8000) i")
        wait_for(lambda: len(list(source.directory.iterdir())) == 2, 20, "both transactions to be kept")
        second.execute("ROLLBACK")
        source.database.execute(MARK)
        source.wait_marks(1)
        assert len(list(source.directory.iterdir())) == 1
        assert [(row["table"], row["c0"]) for row in source.rows] == [("u", "-1"), ("mark", "1")], (
            "nothing open arrives"
        )
        first.execute("UPDATE t SET v = 'kept' WHERE id = 7; COMMIT")
    source.database.execute(MARK)
    source.wait_marks(2)
    final = {row["c0"]: row["c1"] for row in source.of("t")}
    assert len(final) == 3000
    assert final["7"] == "kept"
    assert set(final.values()) == {"a" * 100, "kept"}
    assert {row["c0"] for row in source.of("u")} == {"-1", *(str(number) for number in range(5001, 8001))}
    assert {row["c1"] for row in source.of("u")} == {"small", "d" * 100}
    whole = [batch for batch in source.batches if batch.events > 6000]
    assert len(whole) == 1, "the large transaction is in one batch"


def test_ten_thousand_savepoints_of_a_streamed_transaction(streaming_source: Source) -> None:
    source = streaming_source
    source.begin("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.start()
    source.database.execute(
        """DO $$ BEGIN
             FOR i IN 1..10000 LOOP
               BEGIN
                 INSERT INTO t VALUES (i, repeat('x', 50));
                 IF i % 3 = 0 THEN RAISE 'undone'; END IF;
               EXCEPTION WHEN raise_exception THEN NULL;
               END;
             END LOOP;
           END $$"""
    )
    source.database.execute(MARK)
    source.wait_marks(1)
    wait_for(lambda: streamed(source) >= 1, 10, "the statistics of the slot")
    assert [int(row["c0"]) for row in source.of("t")] == [number for number in range(1, 10001) if number % 3]


def test_a_table_altered_within_a_streamed_transaction(streaming_source: Source) -> None:
    """Rows before and after are of different versions; an aborted change of the table is none."""
    source = streaming_source
    source.begin("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.start()
    fill = "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({0}, {1}) i"
    with closing(source.database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; ALTER TABLE t ADD gone int; " + fill.format(1, 3000))
        cursor.execute("ROLLBACK; BEGIN; " + fill.format(1, 3000))
        cursor.execute("ALTER TABLE t ADD added int; UPDATE t SET added = 5; " + fill.format(5001, 8000) + "; COMMIT")
    source.database.execute("INSERT INTO t VALUES (9000, 'after', 6)")
    source.database.execute(MARK)
    source.wait_marks(1)
    rows = source.of("t")
    assert len(rows) == 9001
    assert sum("c2" not in row for row in rows) == 3000
    assert rows[-1]["c2"] == "6"
    assert len(source.versions["t"]) == 2


def test_prepared_transactions_come_when_they_are_committed(streaming_source: Source) -> None:
    source = streaming_source
    if source.database.execute("SHOW max_prepared_transactions")[0][0] == "0":
        pytest.skip("the server has max_prepared_transactions = 0")
    source.begin("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.start()
    name = source.database.name
    for number, size in enumerate((5, 5000)):
        low = number * 100_000
        source.database.execute(
            f"BEGIN; INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series({low + 1}, {low + size}) i; "
            f"PREPARE TRANSACTION '{name}_kept_{number}'"
        )
        source.database.execute(f"BEGIN; INSERT INTO t VALUES ({-1 - number}); PREPARE TRANSACTION '{name}_{number}'")
    source.database.execute(MARK)
    source.wait_marks(1)
    assert not source.of("t")
    for number in range(2):
        source.database.execute(f"ROLLBACK PREPARED '{name}_{number}'")
        source.database.execute(f"COMMIT PREPARED '{name}_kept_{number}'")
    source.database.execute(MARK)
    source.wait_marks(2)
    assert len(source.of("t")) == 5005
    assert all(int(row["c0"]) > 0 for row in source.of("t"))


def test_stamps_say_where_events_belong_and_are_the_same_at_each_replay(streaming_source: Source) -> None:
    source = streaming_source
    source.begin("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)")
    source.acknowledging = False
    source.start(settings=BatchSettings(stamped=True))
    database, numbers = source.database, []
    for low, size in ((0, 3), (100, 20), (10_000, 3000)):
        with closing(database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN; SELECT txid_current()")
            numbers.append(cursor.fetchall()[0][0])
            cursor.execute(
                f"INSERT INTO u VALUES ({low}); SAVEPOINT s; INSERT INTO u VALUES ({low + 1}); ROLLBACK TO s"
            )
            cursor.execute(f"INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({low}, {low + size - 1}) i")
            cursor.execute(f"UPDATE t SET id = id + 50000 WHERE id = {low}; INSERT INTO u VALUES ({low + 2}); COMMIT")
    source.database.execute(MARK)
    source.wait_marks(1)
    first, names = list(source.rows), ("table", "lsn", "seq", "op", "c0", "xid", "at")
    places = [tuple(row[name] for name in ("lsn", "table", "seq")) for row in first]
    assert len(set(places)) == len(places)
    for table in ("t", "u"):
        mine = [(row["lsn"], row["seq"]) for row in first if row["table"] == table]
        assert mine == sorted(mine)
    assert list(dict.fromkeys(row["xid"] for row in source.of("u"))) == numbers
    assert [row["seq"] for row in source.of("u")] == [3, 5] * 3
    assert {row["lsn"] for row in source.of("mark")} == {source.batches[-1].last.lsn}
    assert all(abs(row["at"] - source.batches[-1].last_commit_time) < 100 for row in first)
    source.close()
    source.rows = []
    source.start(settings=BatchSettings(stamped=True))
    source.wait_marks(1)
    again, before = (sorted(tuple(row[name] for name in names) for row in rows) for rows in (source.rows, first))
    assert again == before
