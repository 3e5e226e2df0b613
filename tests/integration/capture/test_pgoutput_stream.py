"""The engine `pgoutput` against a real server: streamed transactions, acknowledgement, lost links, idle sources."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cdc_runner.capture.assemble import BatchSettings
from cdc_runner.capture.base import ChangeBatch
from cdc_runner.capture.inspect import read_tables
from cdc_runner.capture.pgoutput import link
from cdc_runner.capture.pgoutput.stream import PgoutputStream
from cdc_runner.capture.publication import read_slot
from cdc_runner.capture.registry import SchemaRegistry
from cdc_runner.position import Position, parse_lsn
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.spec import SourceSpec
from tests.support.servers import Database
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.timeout(120)]

MARK = "INSERT INTO mark VALUES (1)"


class Source:
    """A database with a slot, and what its stream has given so far."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self.directory = directory
        self.batches: list[ChangeBatch] = []
        self.rows: list[dict[str, Any]] = []
        self.versions: dict[str, set[int]] = {}
        self.acknowledging = True
        self.taking = threading.Event()
        self.taking.set()
        self.errors: list[BaseException] = []
        self.stream: PgoutputStream | None = None
        self._thread: threading.Thread | None = None

    def begin(self, ddl: str) -> None:
        self.database.execute(f"{ddl}; CREATE TABLE mark (id int); ALTER TABLE mark REPLICA IDENTITY FULL")
        self.database.execute("CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)")
        self.database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (self.database.name,))

    def spec(self) -> SourceSpec:
        return SourceSpec(1, "s", self.database.address(), "p", self.database.name, ("*.*",), "pgoutput")

    def schemas(self) -> list[TableSchema]:
        with closing(self.database.connect()) as connection:
            return read_tables(connection, patterns=["*.*"])

    def read_table(self, table: TableId) -> TableSchema | None:
        with closing(self.database.connect()) as connection:
            return next(iter(read_tables(connection, tables=[table])), None)

    def start(self, **options: Any) -> PgoutputStream:
        schemas = self.schemas()
        settings = options.pop("settings", BatchSettings())
        self.stream = PgoutputStream(
            self.spec(),
            SchemaRegistry(schemas, self.read_table),
            [schema.table for schema in schemas],
            settings=settings,
            spill_directory=self.directory,
            **options,
        )
        self._thread = threading.Thread(target=self._read, args=(self.stream,), daemon=True)
        self._thread.start()
        return self.stream

    def _read(self, stream: PgoutputStream) -> None:
        try:
            for batch in stream.batches():
                for segment in batch.segments():
                    for changes in segment.tables:
                        name = changes.version.schema.table.name
                        self.versions.setdefault(name, set()).add(changes.version.number)
                        self.rows += [{"table": name, **row} for row in changes.rows.to_pylist()]
                batch.release()
                self.batches.append(batch)
                if self.acknowledging:
                    stream.acknowledge(batch.last)
                self.taking.wait(60)
        except BaseException as error:
            self.errors.append(error)

    def wait_marks(self, number: int) -> None:
        def seen() -> bool:
            if self.errors:
                raise self.errors[0]
            return len(self.of("mark")) >= number

        wait_for(seen, 60, f"mark {number}")

    def of(self, table: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["table"] == table]

    def confirmed(self) -> int:
        with closing(self.database.connect()) as connection:
            slot = read_slot(connection, self.database.name)
        assert slot is not None
        return slot.confirmed_lsn or 0

    def walsender(self) -> int | None:
        rows = self.database.execute(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", (self.database.name,)
        )
        return rows[0][0] if rows else None

    def wal(self) -> int:
        return parse_lsn(self.database.execute("SELECT pg_current_wal_lsn()::text")[0][0])

    def close(self) -> None:
        self.taking.set()
        if self.stream is not None:
            self.stream.close()
        if self._thread is not None:
            self._thread.join(20)
        assert not list(self.directory.iterdir()), "every file of a streamed transaction is gone"


@pytest.fixture
def source(source_database: Database, tmp_path: Path) -> Iterator[Source]:
    found = Source(source_database, tmp_path)
    yield found
    found.close()


@pytest.fixture
def streaming_source(source: Source) -> Source:
    """A source whose transactions are sent while they are open, as soon as they have 64 kB of changes."""
    source.database.execute(f"ALTER DATABASE \"{source.database.name}\" SET logical_decoding_work_mem = '64kB'")
    return source


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


def test_only_what_was_acknowledged_is_confirmed(source: Source) -> None:
    """However often the server tells how far it is: it says so with every keepalive."""
    source.begin("CREATE TABLE t (id int PRIMARY KEY)")
    stream = source.start()
    source.database.execute(MARK)
    source.wait_marks(1)
    first = source.batches[-1].last
    wait_for(lambda: source.confirmed() == first.lsn, 20, "the slot to be confirmed")
    source.acknowledging = False
    source.database.execute(MARK)
    source.wait_marks(2)
    for _ in range(20):
        source.database.execute("SELECT pg_switch_wal()")
        source.database.execute("SELECT txid_current()")
    _ask_for_keepalive(source)
    assert source.confirmed() == first.lsn
    stream.acknowledge(source.batches[-1].last)
    wait_for(lambda: source.confirmed() == source.batches[-1].last.lsn, 20, "the slot to be confirmed")


def _ask_for_keepalive(source: Source) -> None:
    """Wait for two rounds of status messages, whose replies are keepalives."""
    query = "SELECT reply_time FROM pg_stat_replication WHERE pid = %s"
    for _ in range(2):
        before = source.database.execute(query, (source.walsender(),))
        wait_for(lambda: source.database.execute(query, (source.walsender(),)) != before, 10, "a status")  # noqa: B023


def test_the_server_does_not_give_up_while_nothing_is_taken(source: Source) -> None:
    """The buffer is full and nobody reads from it for longer than the server waits for a sign of life."""
    source.database.execute(f"ALTER DATABASE \"{source.database.name}\" SET wal_sender_timeout = '2s'")
    source.begin("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.taking.clear()
    source.start(settings=BatchSettings(max_bytes=1 << 20, memory_bytes=1 << 20))
    pid = wait_for(source.walsender, 20, "the stream to begin")
    for low in range(0, 60_000, 1000):
        source.database.execute(
            f"INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({low + 1}, {low + 1000}) i"
        )
    query = "SELECT reply_time - backend_start > '6 seconds' FROM pg_stat_replication WHERE pid = %s"
    wait_for(lambda: source.database.execute(query, (pid,)) == [(True,)], 30, "status messages for three time-outs")
    source.database.execute(MARK)
    source.taking.set()
    source.wait_marks(1)
    assert source.walsender() == pid
    assert len(source.of("t")) == 60_000


def test_a_lost_connection_is_opened_again_and_nothing_comes_twice(source: Source) -> None:
    """Between transactions, and within one of which a part is in the buffer already."""
    source.begin("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.acknowledging = False
    source.start(settings=BatchSettings(memory_bytes=1 << 20))
    for round_ in range(3):
        low = round_ * 100_000
        source.database.execute(f"INSERT INTO t SELECT i, '' FROM generate_series({low + 1}, {low + 20}) i")
        source.database.execute(
            f"INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series({low + 21}, {low + 30000}) i"
        )
        pid = source.walsender()
        if pid is not None:
            source.database.execute("SELECT pg_terminate_backend(%s)", (pid,))
        source.database.execute(MARK)
    source.wait_marks(3)
    numbers = [int(row["c0"]) for row in source.of("t")]
    assert numbers == [low + number for low in (0, 100_000, 200_000) for number in range(1, 30001)]
    positions = [batch.last for batch in source.batches]
    assert positions == sorted(set(positions))


def test_a_slot_that_moved_while_the_connection_was_lost_ends_the_stream(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody dropped the slot and made it anew: changes are lost, so nothing goes on as if they were not."""
    source.begin("CREATE TABLE t (id int PRIMARY KEY)")
    source.start()
    source.database.execute(MARK)
    source.wait_marks(1)
    source.acknowledging = False
    name = source.database.name
    held = threading.Event()
    original = link.Link.__init__

    def wait_first(*arguments: Any, **named: Any) -> None:
        held.wait(20)
        original(*arguments, **named)

    monkeypatch.setattr(link.Link, "__init__", wait_first)
    source.database.execute("SELECT pg_terminate_backend(%s)", (source.walsender(),))
    wait_for(lambda: source.walsender() is None, 10, "the walsender to end")
    source.database.execute("SELECT pg_drop_replication_slot(%s)", (name,))
    source.database.execute("INSERT INTO t VALUES (1)")
    source.database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
    held.set()
    wait_for(lambda: bool(source.errors), 20, "the stream to end")
    assert "has moved" in str(source.errors[0])


def test_an_idle_source_gives_empty_batches(source: Source) -> None:
    """The way for servers to which no heartbeat can be written: PostgreSQL 12 and 13, standbys."""
    source.begin("CREATE TABLE t (id int PRIMARY KEY)")
    source.start(idle_seconds=0.5)
    other = source.database.server.create_database(f"{source.database.name}_other")
    try:
        other.execute("CREATE TABLE noise AS SELECT i FROM generate_series(1, 10000) i")
        reached = source.wal()
        wait_for(lambda: source.confirmed() >= reached, 30, "the slot to pass the other database's WAL")
        assert source.confirmed() <= source.batches[-1].last.lsn
        assert not source.rows
    finally:
        source.database.server.drop_database(other.name)


def test_a_barrier_is_never_spanned(source: Source) -> None:
    source.begin("CREATE TABLE t (id int PRIMARY KEY)")
    ends = []
    for number in range(30):
        source.database.execute("INSERT INTO t VALUES (%s)", (number,))
        ends.append(source.wal())
    barriers = [Position(ends[9]), Position(ends[19])]
    source.database.execute(MARK)
    source.start(barriers=barriers)
    source.wait_marks(1)
    lasts = [batch.last for batch in source.batches]
    for barrier, inside in zip(barriers, (10, 20), strict=True):
        events = sum(batch.events for batch in source.batches if batch.last <= barrier)
        assert events == inside, f"{lasts} {barrier}"


def test_unusual_columns_do_not_make_new_versions(source: Source) -> None:
    """Domains, enums, arrays, generated and identity columns: the stream and the catalog describe the same table."""
    source.begin(
        """CREATE DOMAIN short AS varchar(10); CREATE DOMAIN shorter AS short CHECK (length(VALUE) < 5);
        CREATE TYPE mood AS ENUM ('sad'); CREATE TYPE pair AS (a int, b short);
        CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, d shorter, m mood, ms mood[], p pair,
                        ds short[],
                        g int GENERATED ALWAYS AS (1) STORED, "A" int, a int, "odd ""name" text)"""
    )
    source.start()
    source.database.execute("INSERT INTO t (d, m, ms, p, ds) VALUES ('d', 'sad', '{sad}', '(1,x)', '{a,b}')")
    source.database.execute('ANALYZE t; UPDATE t SET a = 1, "A" = 2')
    source.database.execute(MARK)
    source.wait_marks(1)
    assert source.versions["t"] == {1}
    last = source.of("t")[-1]
    values = [last[f"c{number}"] for number in range(9)]
    assert values == ["1", "d", "sad", "{sad}", "(1,x)", "{a,b}", "2", "1", None]


def test_changes_that_came_by_replication_can_be_left_out(source: Source) -> None:
    if source.database.execute("SHOW server_version_num")[0][0] < "160000":
        pytest.skip("the origin filter needs PostgreSQL 16")
    source.begin("CREATE TABLE t (id int PRIMARY KEY)")
    source.start(origin="none")
    origin = f"{source.database.name}_elsewhere"
    source.database.execute("SELECT pg_replication_origin_create(%s)", (origin,))
    try:
        with closing(source.database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_replication_origin_session_setup(%s)", (origin,))
            cursor.execute("INSERT INTO t VALUES (1)")
        source.database.execute("INSERT INTO t VALUES (2)")
        source.database.execute(MARK)
        source.wait_marks(1)
        assert [row["c0"] for row in source.of("t")] == ["2"]
    finally:
        source.close()
        source.database.execute("SELECT pg_replication_origin_drop(%s)", (origin,))


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
