"""Rows that Snowflake does not take: put aside with their reason, their keys wait in order, replayed exactly once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.dead_letter.snowflake_room import SnowflakeRoom
from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.destinations.base import ApplyMode, ReloadNeeded
from cdc_runner.destinations.marks import Selection
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import Column
from cdc_runner.shaping.net import NetChange
from tests.support.servers import RedisServer
from tests.support.snowflake_events import destination_of, events, ready, sync_of, table
from tests.support.snowflake_server import SnowflakeServer

DAY = table(
    Column("id", "integer", "int4", number=1),
    Column("day", "date", "date", number=2),
    Column("note", "text", "text", number=3),
    name="day",
)
NOTE = table(Column("at", "integer", "int4", number=1), Column("day", "date", "date", number=2), key=(), name="note")
TARGET, NOTES = '"ANALYTICS"."SHOP"."DAY"', '"ANALYTICS"."SHOP"."NOTE"'


class Bench:
    """A destination on the strict stand-in, with its queue in Redis."""

    def __init__(self, server: SnowflakeServer, store: LetterStore) -> None:
        self.server = server
        self._made: list[SnowflakeDestination] = []
        self.source: dict[tuple[str, ...], tuple[str | None, ...]] = {}
        self.queue = DeadLetterQueue(store, "shop", 1, 1)
        self.destination = self.opened()
        ready(self.destination, DAY, NOTE)

    def opened(self) -> SnowflakeDestination:
        made = destination_of(self.server)
        made.open()
        self._made.append(made)
        self.destination = made
        self.room = SnowflakeRoom(made, self.queue, lambda schema, keys, told=b"", /: self.source, "test")
        return made

    def close(self) -> None:
        for made in self._made:
            made.close()

    def apply(self, lsn: int, *changes: NetChange) -> None:
        segment = [(sync_of(change.version.schema), change) for change in changes]
        self.room.apply([segment], Position(lsn), 1_700_000_000.0, ApplyMode())

    def day(self, lsn: int, *rows: tuple[Any, ...]) -> None:
        self.apply(lsn, events(DAY, lsn, rows))

    def merged(self, target: str = TARGET) -> list[tuple[str | None, ...]]:
        self.server.sql.run_tasks()
        rows = self.server.sql.query(f"SELECT * FROM {target} ORDER BY ALL")
        return [tuple(None if value is None else str(value) for value in row) for row in rows]

    def marks(self) -> list[tuple[str, str | None]]:
        return [(one.operation, one.reason) for one in self.room.marks(Selection(), 100)]

    def replay(self, **selection: Any) -> dict[str, Any]:
        return self.room.replay(Selection(**selection), lambda: False).as_json()

    def edit(self, **values: str | None) -> None:
        for one in self.room.marks(Selection(), 100):
            letter = self.queue.read(one.source, [one.stream_id])[one.stream_id]
            self.queue.edit(letter.with_values(values))


@pytest.fixture
def bench(snowflake: SnowflakeServer, redis_client: redis.Redis, redis_server: RedisServer) -> Iterator[Bench]:
    store = LetterStore(SecretStr(redis_server.url))
    made = Bench(snowflake, store)
    yield made
    made.close()
    store.close()


def test_a_refused_row_waits_with_the_later_changes_of_its_key(bench: Bench) -> None:
    bench.day(10, ("u", None, "1", "2024-01-01", "a"), ("u", None, "2", "infinity", "b"), ("u", None, "2", None, "c"))
    bench.day(20, ("u", None, "3", "2024-01-03", "d"), ("u", "010", "2", None, "e"))
    assert bench.merged() == [("1", "2024-01-01", "a"), ("3", "2024-01-03", "d")]
    why = "column day: infinity, years BC and years after 9999 do not exist there"
    assert bench.marks() == [("put", why), ("put", None), ("put", None)]
    assert (bench.destination.position() or Position(0)) >= Position(10)
    assert bench.replay()["keys_replayed"] == 1  # the later changes of the key have no infinity any more
    assert bench.merged() == [("1", "2024-01-01", "a"), ("2", None, "e"), ("3", "2024-01-03", "d")]
    assert bench.marks() == [] and bench.queue.length(DAY.table) == 0
    bench.day(30, ("u", "010", "2", None, "f"), ("d", None, "1"))
    assert bench.merged() == [("2", None, "f"), ("3", "2024-01-03", "d")]


def test_an_edited_entry_is_taken_and_an_unedited_one_is_refused_again(bench: Bench) -> None:
    bench.day(10, ("u", None, "1", "0044-03-15 BC", "ides"))
    result = bench.replay()
    assert (result["keys_replayed"], result["keys_refused"]) == (0, 1)
    assert bench.room.marks(Selection(), 1)[0].attempts == 1
    assert bench.replay(retry_seconds=300.0)["keys_refused"] == 0, "the next attempt is not due"
    bench.edit(day="0044-03-15")
    assert bench.replay()["keys_replayed"] == 1
    assert bench.merged() == [("1", "0044-03-15", "ides")]


def test_what_waits_survives_a_restart_and_a_batch_that_comes_again(bench: Bench) -> None:
    rows = [("u", None, "1", "infinity", "a"), ("u", None, "2", "2024-01-01", "b"), ("d", None, "1")]
    bench.destination._position_at = float("inf")  # it dies before it notes how far it is
    bench.day(10, *rows)
    bench.opened()
    assert bench.destination.position() == Position(1)
    bench.day(10, *rows)
    assert [one for one, _ in bench.marks()] == ["put", "delete"]
    assert bench.queue.length(DAY.table) == 2
    assert bench.replay()["entries_replayed"] == 2
    assert bench.merged() == [("2", "2024-01-01", "b")]


def test_a_truncate_and_a_new_load_make_void_what_waits(bench: Bench) -> None:
    bench.day(10, ("u", None, "1", "infinity", "a"))
    bench.day(20, ("u", None, "1", None, "b"), ("t", None), ("u", None, "1", "2024-01-01", "c"))
    assert bench.marks() == [] and bench.room.superseded == 2 - 1
    assert bench.merged() == [("1", "2024-01-01", "c")]
    assert bench.room.take_stock(thorough=True).removed == {DAY.table: 1}
    bench.day(30, ("u", None, "2", "infinity", "d"))
    bench.destination.reset()
    assert bench.marks() == [] and bench.room.superseded == 2


def test_rows_without_a_key_are_counted_and_brought_back_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("i", None, "1", "infinity"), ("i", None, "1", "infinity"), ("d", None, "1", "infinity"),
            ("i", None, "2", "2024-01-01")]  # fmt: skip
    bench.apply(10, events(NOTE, 10, rows))
    assert [row[:2] for row in bench.merged(NOTES)] == [("2", "2024-01-01")]
    assert len(bench.marks()) == 3
    bench.edit(day="2024-02-02")
    # The process dies when the rows have landed, before their marks are taken away.
    monkeypatch.setattr(bench.room, "_finish", lambda marks: None)
    assert bench.replay()["keys_replayed"] == 1
    bench.opened()
    assert bench.marks() == [] and bench.replay()["keys_replayed"] == 0
    assert [row[:2] for row in bench.merged(NOTES)] == [("1", "2024-02-02"), ("2", "2024-01-01")]


def test_rows_that_the_service_rejects_are_found_and_put_aside(bench: Bench) -> None:
    bench.server.reject = "poison"
    bench.day(10, ("u", None, "1", None, "fine"), ("u", None, "2", None, "poison"), ("u", None, "3", None, "poison"),
              ("u", "010", "3", None, "partial"))  # fmt: skip
    assert [reason is not None and "rejected by the service" in reason for _, reason in bench.marks()] == [True, True]
    assert bench.destination.position() == Position(10)
    assert bench.replay()["keys_refused"] == 1, "the other one is read from the source, which has no such row"
    bench.server.reject = None
    bench.source = {("3",): ("3", "2024-03-03", "whole")}
    assert bench.replay()["keys_refused"] == 0
    bench.day(20, ("u", None, "3", "2024-03-03", "whole"))
    assert bench.merged()[:2] == [("1", None, "fine"), ("2", None, "poison")]
    bench.opened()
    assert all(one.ready for one in bench.destination.table_states())


def test_rows_rejected_while_nobody_looked_have_their_table_loaded_again(bench: Bench) -> None:
    bench.server.reject = "poison"
    bench.server.commit_seconds = 0.3
    channel = bench.destination._table_channel(sync_of(DAY))
    shape = bench.destination._shape(sync_of(DAY), DAY)
    rows = events(DAY, 10, [("u", None, "1", None, "poison")]).rows
    for request in bench.destination._writer.requests(shape, rows, None):
        channel.send(request)  # the process dies before it asks what became of it
    bench.opened()
    assert {one.sync.target.name for one in bench.destination.table_states() if not one.ready} == {"day"}
    with pytest.raises(ReloadNeeded):
        bench.day(20, ("u", None, "2", None, "b"))


def test_a_row_above_the_limits_is_put_aside_by_size(bench: Bench) -> None:
    noise = random.Random(3).randbytes(5_000_000).hex()
    bench.day(10, ("u", None, "1", None, noise), ("u", None, "2", None, "x" * (17 << 20)), ("u", None, "3", None, "c"))
    reasons = [reason for _, reason in bench.marks()]
    assert ["after compression" in (reasons[0] or ""), "16 MB" in (reasons[1] or "")] == [True, True]
    assert bench.merged() == [("3", None, "c")]


def test_entries_that_redis_lost_are_read_from_the_source(bench: Bench, redis_client: redis.Redis) -> None:
    bench.day(10, ("u", None, "1", "infinity", "a"), ("u", None, "2", "infinity", "b"))
    redis_client.flushall()
    assert bench.room.take_stock(thorough=True).lost == {sync_of(DAY).target: 2}
    bench.source = {("1",): ("1", "2024-01-01", "present")}
    result = bench.replay()
    assert (result["keys_replayed"], result["keys_fetched_from_source"]) == (2, 2)
    assert bench.merged() == [("1", "2024-01-01", "present")]


def test_a_purge_lets_the_key_flow_again(bench: Bench) -> None:
    bench.day(10, ("u", None, "1", "infinity", "a"))
    assert bench.room.purge(Selection()) == {sync_of(DAY).target: 1}
    bench.day(20, ("u", None, "1", "2024-01-01", "b"))
    assert bench.merged() == [("1", "2024-01-01", "b")]


def test_without_a_queue_a_refused_row_ends_the_batch(bench: Bench) -> None:
    made = bench.destination
    change = events(DAY, 10, [("u", None, "1", "infinity", "a")])
    with pytest.raises(RosettaError, match="column day: infinity") as caught:
        made.apply([[(sync_of(DAY), change)]], Position(10))
    assert caught.value.kind is ErrorKind.DESTINATION_ROW_REJECTED
