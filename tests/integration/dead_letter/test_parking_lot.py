"""Parked batches in a real Redis: whole or not at all, in order, bounded, and a loss is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import redis
from pydantic import SecretStr

from cdc_runner.capture.base import TableVersion
from cdc_runner.dead_letter import parking
from cdc_runner.dead_letter.parking import ParkingLot
from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.destinations.postgres.divert import merge_rows
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.pipeline.parking import Parking
from cdc_runner.position import Position
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import ResolvedSync
from tests.support.servers import RedisServer

SCHEMA = TableSchema(
    TableId("public", "t"),
    (Column("id", "integer", "int4", number=1), Column("v", "text", "text", number=2)),
    ("id",),
    ("id",),
    ReplicaIdentity.DEFAULT,
)
SYNC = ResolvedSync(None, SCHEMA.table, TableId("copy", "t"))
Batch = list[list[tuple[ResolvedSync, NetChange]]]


@pytest.fixture
def lots(redis_client: redis.Redis, redis_server: RedisServer) -> Iterator[list[ParkingLot]]:
    """Three lots of the same name, as of three processes one after the other; the last one takes 20 kB."""
    sizes = (1 << 24, 1 << 24, 20_000)
    made = [ParkingLot(LetterStore(SecretStr(redis_server.url), binary=True), 1, 2, most_bytes=size) for size in sizes]
    yield made
    for one in made:
        one.store.close()


def change(first: int, count: int, *, truncate: bool = False) -> NetChange:
    rows = [
        {"d": key % 7 == 0, "x": "01" if key % 5 == 0 else None, "c0": str(key), "c1": f"é{key}" if key % 3 else None}
        for key in range(first, first + count)
    ]
    table = merge_rows(rows, 2)
    return NetChange(NetKind.MERGE, TableVersion(SCHEMA, 3), truncate, table, True, True, count, updates=True)


def taken(lot: ParkingLot) -> list[tuple[Position, list[list[tuple[TableId, pa.Table, bool]]]]]:
    """Take everything out, each batch read twice as a retry does."""
    found = []
    while (batch := lot.first()) is not None:
        assert [len(one) for one in batch.segments()] == [len(one) for one in batch.segments()]
        segments = [[(one.target, one.change.rows, one.change.truncate) for one in part] for part in batch.segments()]
        assert all(one.change.version.schema == SCHEMA for part in batch.segments() for one in part)
        found.append((batch.last, segments))
        lot.remove(batch)
    return found


def test_batches_come_out_as_they_went_in(lots: list[ParkingLot], monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into pieces, over a restart, with an attempt that was broken off, and one that nobody read through."""
    monkeypatch.setattr(parking, "PIECE_BYTES", 2000)
    lot, later, _ = lots
    batches: list[Batch] = [
        [[(SYNC, change(0, 500)), (SYNC, change(1000, 3))], [(SYNC, change(2000, 100, truncate=True))]],
        [],
        [[(SYNC, change(5, 1))]],
    ]
    for number, batch in enumerate(batches):
        lot.append(batch, Position(10 + number), Position(11 + number), 5.0)

    def broken() -> Iterator[list[tuple[ResolvedSync, NetChange]]]:
        yield [(SYNC, change(0, 500))]
        raise RosettaError(ErrorKind.SOURCE_UNAVAILABLE, "the source is away")

    for one in (lot, later):
        one.load()
        with pytest.raises(RosettaError, match="away"):
            one.append(broken(), Position(13), Position(14), 5.0)
        span = one.load()
        assert span is not None
        assert (span.after, span.through, span.batches) == (Position(10), Position(13), 3)
    later.append([[(SYNC, change(7, 1))]], Position(13), Position(14), 5.0)
    found = taken(lots[1])
    assert [position.lsn for position, _ in found] == [11, 12, 13, 14]
    for (_, segments), batch in zip(found, [*batches, [[(SYNC, change(7, 1))]]], strict=True):
        assert len(segments) == len(batch)
        for part, wanted in zip(segments, batch, strict=True):
            assert [one[2] for one in part] == [one.truncate for _, one in wanted]
            assert all(
                one[1].equals(net.rows) and one[0] == SYNC.target for one, (_, net) in zip(part, wanted, strict=True)
            )
    assert later.span is None
    later.append([[(SYNC, change(0, 500))]], Position(14), Position(15), 5.0)
    later.append([], Position(15), Position(16), 5.0)
    passed_over = later.first()
    assert passed_over is not None
    later.remove(passed_over)
    assert [position.lsn for position, _ in taken(later)] == [16]
    assert later.load() is None


def test_what_is_full_takes_nothing_and_what_redis_loses_is_noticed(
    lots: list[ParkingLot], redis_client: redis.Redis
) -> None:
    lot, _, small = lots
    with pytest.raises(RosettaError, match="park_max_megabytes") as caught:
        small.append([[(SYNC, change(0, 50_000))]], Position(1), Position(2), 5.0)
    assert caught.value.kind is ErrorKind.DEAD_LETTER_FULL
    assert small.load() is None
    lot.append([[(SYNC, change(0, 9))]], Position(1), Position(2), 5.0)
    lot.append([[(SYNC, change(0, 9))]], Position(2), Position(3), 5.0)
    batch = lot.first()
    assert batch is not None
    redis_client.flushall()
    for act in (
        lambda: lot.append([[(SYNC, change(0, 9))]], Position(3), Position(4), 5.0),
        lot.first,
        lambda: list(batch.segments()),
    ):
        with pytest.raises(RosettaError, match="lost changes that were parked between") as caught:
            act()
        assert caught.value.kind is ErrorKind.PARKED_LOST


def test_small_batches_come_out_together_and_what_was_taken_is_gone_at_once(
    lots: list[ParkingLot], redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "GROUP_BATCHES", 20)
    lot = lots[0]
    for number in range(50):
        lot.append([[(SYNC, change(number, 1))]], Position(number), Position(number + 1), float(number))
    found: list[list[int]] = []
    while group := lot.oldest(Position(30)):
        rows = [one.change.rows for batch in group for part in batch.segments() for one in part]
        assert [table.column("c0").to_pylist() for table in rows] == [[str(batch.last.lsn - 1)] for batch in group]
        assert group[-1].commit_time == group[-1].last.lsn - 1
        found.append([batch.last.lsn for batch in group])
        lot.remove(group[-1])
        assert lot.span == lots[1].load()
    # Nothing spans position 30, at which the destination is to be held for a moment.
    assert found == [[*range(1, 21)], [*range(21, 31)], [*range(31, 51)]]
    assert lot.span is None
    assert redis_client.keys("park:*") == []


def test_a_large_batch_is_read_piece_by_piece_and_a_gap_ends_what_comes_together(
    lots: list[ParkingLot], redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    lot = lots[0]
    lot.append([[(SYNC, change(0, 2000))]], Position(0), Position(1), 5.0)
    for number in range(1, 6):
        lot.append([[(SYNC, change(number, 1))]], Position(number), Position(number + 1), 5.0)
    monkeypatch.setattr(parking, "GROUP_BYTES", 1000)
    assert [batch.last.lsn for batch in lot.oldest()] == [1]
    lot.remove(lot.oldest()[0])
    monkeypatch.setattr(parking, "GROUP_BYTES", 1 << 20)
    entries: Any = redis_client.xrange("park:1:2")
    # The batch that ends at 4 goes missing.
    redis_client.xdel("park:1:2", entries[4][0], entries[5][0])
    group = lot.oldest()
    assert [batch.last.lsn for batch in group] == [2, 3]
    for batch in group:
        assert [len(part) for part in batch.segments()] == [1]
    lot.remove(group[-1])
    with pytest.raises(RosettaError) as caught:
        lot.oldest()
    assert caught.value.kind is ErrorKind.PARKED_LOST


def test_what_nobody_has_read_through_is_removed_as_well(lots: list[ParkingLot]) -> None:
    """The destination holds a part of it already, and the caller did not look at the rest."""
    lot = lots[0]
    for number in range(6):
        lot.append([[(SYNC, change(number, 1))]], Position(number), Position(number + 1), 5.0)
    told: list[tuple[int, int]] = []
    parked = Parking(lot, 1.0, [SYNC], {SYNC.target: Position(5)}, {}, lambda *now: told.append(now))
    (batch,) = parked.batches(Position(3), lambda: None)
    assert batch.last == Position(6)
    assert told[-1] == (0, 0)
    assert lots[1].load() is None


def test_rows_behind_the_position_or_a_new_load_are_left_out(lots: list[ParkingLot]) -> None:
    lot = lots[0]
    for number in range(6):
        lot.append([[(SYNC, change(number, 1))]], Position(number), Position(number + 1), 5.0)
    for held, loaded, wanted in ((None, 0, "012345"), (3, 0, "345"), (3, 5, "5")):
        snapshots = {SYNC.target: Position(loaded)}
        parked = Parking(lot, 1.0, [SYNC], snapshots, {}, lambda *_: None)
        batch = next(parked.batches(None if held is None else Position(held), lambda: None))
        keys = [key for part in batch.ready() for _, one in part for key in one.rows.column("c0").to_pylist()]
        assert "".join(keys) == wanted
