"""Rebuilds: a target is built anew beside the stream and takes the old one's place, with all that belongs to it."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from tests.support.backfills import WRITTEN, Backfills, Writer, fill
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

SMALL: dict[str, object] = {"load_chunk_bytes": 1 << 20, "backfill_window_seconds": 3}

CORRUPT = """
SET session_replication_role = replica;
UPDATE item SET note = 'wrong', big = 'wrong' WHERE id % 7 = 0;
DELETE FROM item WHERE id % 11 = 0;
INSERT INTO item SELECT 1000000 + i, 0, 'extra', 'extra', NULL FROM generate_series(1, 500) i;
"""


def _ready(pipeline: PipelineHarness, rows: int, settings: dict[str, object] | None = None) -> Backfills:
    pipeline.source.execute(WRITTEN)
    fill(pipeline, rows)
    pipeline.configure(settings={**SMALL, **(settings or {})})
    pipeline.start()
    pipeline.wait_caught_up(180)
    return Backfills(pipeline)


class Reader(threading.Thread):
    """Counts the rows of a target all the time, each time in a statement of its own."""

    def __init__(self, pipeline: PipelineHarness, least: int) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.counts = 0
        self.bad: list[object] = []
        self._pipeline = pipeline
        self._least = least

    def run(self) -> None:
        with closing(self._pipeline.targets["target"].connect()) as connection, connection.cursor() as cursor:
            while not self.stopping.wait(0.005):
                try:
                    cursor.execute("SELECT count(*) FROM item")
                    row = cursor.fetchone()
                    if row is None or row[0] < self._least:
                        self.bad.append(row)
                except Exception as error:
                    self.bad.append(error)
                self.counts += 1

    def finish(self) -> None:
        """End it."""
        self.stopping.set()
        self.join(30)


@pytest.mark.both_engines
def test_a_corrupted_table_is_replaced_while_it_is_written_to_and_read(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, 20_000)
    target = pipeline.targets["target"]
    target.execute(CORRUPT)
    old = target.execute("SELECT 'item'::regclass::oid")
    writer, reader = Writer(pipeline, 5, 20_000), Reader(pipeline, 15_000)
    writer.start()
    reader.start()
    try:
        done = backfills.wait(backfills.start("public.item", mode="rebuild"))
    finally:
        writer.finish()
        reader.finish()
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()
    assert reader.counts > 20
    assert reader.bad == []
    assert writer.changes > 20
    assert target.execute("SELECT 'item'::regclass::oid") != old
    # The old one is kept, as it was.
    kept = str(done["kept"])
    assert target.execute(f"SELECT '{kept}'::regclass::oid") == old
    assert target.execute(f"SELECT count(*) FROM {kept} WHERE id > 1000000") == [(500,)]
    assert target.execute("SELECT count(*) FROM pg_namespace WHERE nspname LIKE '\\_rosetta\\_new%'") == [(0,)]


def test_a_shaped_table_is_rebuilt_confirmed_and_rebuilt_again(
    pipeline: PipelineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.source.execute(WRITTEN)
    fill(pipeline, 2_000)
    shape: dict[str, object] = {
        "table": "public.item",
        "target": "thing",
        "filter": "id % 2 = 0",
        "exclude": ["code"],
        "rename": {"note": "remark"},
    }
    pipeline.configure(syncs=[shape], settings=SMALL, schema="copy")
    pipeline.start()
    pipeline.wait_caught_up(180)
    target = pipeline.targets["target"]
    target.execute("UPDATE copy.thing SET remark = 'wrong' WHERE id < 100; DELETE FROM copy.thing WHERE id = 200")
    target.execute("GRANT SELECT ON copy.thing TO public; COMMENT ON TABLE copy.thing IS 'things'")
    backfills = Backfills(pipeline)
    # What people ask needs the key by which passwords are read.
    monkeypatch.setenv("CREDENTIAL_ENCRYPTION_KEY", pipeline.environment["CREDENTIAL_ENCRYPTION_KEY"])
    target.execute("CREATE VIEW copy.seen AS SELECT id FROM copy.thing")
    with pytest.raises(AssertionError, match=r"view copy\.seen depends on it"):
        backfills.start("public.item", mode="rebuild")
    target.execute("DROP VIEW copy.seen")
    done = backfills.wait(backfills.start("public.item", mode="rebuild"))
    right = "SELECT count(*), count(*) FILTER (WHERE remark = 'n' || id) FROM copy.thing"
    assert target.execute(right) == [(1_000, 1_000)]
    kept = "SELECT has_table_privilege('public', 'copy.thing', 'SELECT'), obj_description('copy.thing'::regclass)"
    assert target.execute(kept) == [(True, "things")]
    with pytest.raises(AssertionError, match="is still kept"):
        backfills.start("public.item", mode="rebuild")
    assert [one["dropped"] for one in backfills.confirm()] == [done["kept"]]
    assert target.execute(f"SELECT to_regclass('{done['kept']}')") == [(None,)]
    again = backfills.wait(backfills.start("public.item", mode="rebuild"))
    assert again["kept"] is not None


SLOW: dict[str, object] = {"backfill_megabytes_per_second": 1}


def _at_work(pipeline: PipelineHarness, backfills: Backfills) -> tuple[int, str]:
    """Begin a rebuild that takes its time; return its number and the new table's name once it holds rows."""
    one = backfills.start("public.item", mode="rebuild")
    aside = f"_rosetta_new_{one}.item"

    def filling() -> bool:
        target = pipeline.targets["target"]
        if target.execute(f"SELECT to_regclass('{aside}') IS NULL")[0][0]:
            return False
        return bool(target.execute(f"SELECT EXISTS (SELECT FROM {aside})")[0][0])

    wait_for(filling, 120, "rows in the new table")
    return one, aside


def _nothing_is_left(pipeline: PipelineHarness, one: int) -> None:
    gone = f"SELECT to_regnamespace('_rosetta_new_{one}') IS NULL AND NOT EXISTS (SELECT FROM _rosetta.table_rebuild)"
    wait_for(lambda: pipeline.targets["target"].execute(gone) == [(True,)], 60, "the new table to be dropped")


def test_a_rebuild_that_is_cancelled_or_refused_leaves_the_old_table_and_the_stream(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, 8_000, SLOW)
    target = pipeline.targets["target"]
    old = target.execute("SELECT 'item'::regclass::oid")
    one, _ = _at_work(pipeline, backfills)
    backfills.cancel(one)
    _nothing_is_left(pipeline, one)
    two, aside = _at_work(pipeline, backfills)
    # Only the new table refuses what comes now.
    target.execute(f"ALTER TABLE {aside} ADD CHECK (id < 500000)")
    pipeline.source.execute("INSERT INTO item VALUES (600000, 0, 'new', 'b', NULL)")
    assert "23514" in backfills.wait(two, "FAILED")["error"]
    _nothing_is_left(pipeline, two)
    pipeline.wait_caught_up()
    pipeline.assert_equal()
    assert target.execute("SELECT 'item'::regclass::oid") == old


def test_a_schema_change_and_a_truncate_while_it_is_built(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, 8_000, SLOW)
    one, aside = _at_work(pipeline, backfills)
    pipeline.source.execute("ALTER TABLE item ADD extra int")
    pipeline.source.execute("UPDATE item SET extra = id WHERE id <= 50; DELETE FROM item WHERE id > 7990")
    target = pipeline.targets["target"]
    again = f"SELECT FROM pg_attribute WHERE attrelid = to_regclass('{aside}') AND attname = 'extra'"
    wait_for(lambda: target.execute(f"SELECT EXISTS ({again})") == [(True,)], 120, "the new table to be begun anew")
    pipeline.source.execute("TRUNCATE item")
    pipeline.source.execute("INSERT INTO item SELECT i, 7, 'after', 'b', i, i FROM generate_series(1, 300) i")
    backfills.wait(one)
    pipeline.wait_caught_up()
    pipeline.assert_equal()
    assert target.execute("SELECT count(extra), min(v) FROM item") == [(300, 7)]


def test_readers_with_an_old_snapshot_are_waited_for(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, 5_000)
    target = pipeline.targets["target"]
    with closing(target.connect()) as reader, closing(target.connect()) as holder:
        reader.autocommit = holder.autocommit = False
        reader.set_session(isolation_level="REPEATABLE READ")
        with reader.cursor() as cursor:
            # It has a snapshot, and has not looked at the table yet.
            cursor.execute("SELECT 1")
            one = backfills.start("public.item", mode="rebuild")
            wait_for(lambda: "began before" in str(backfills.show(one)["note"]), 120, "the rebuild to wait")
            pipeline.source.execute("UPDATE item SET v = v + 1 WHERE id = 1")
            cursor.execute("SELECT count(*) FROM item")
            assert cursor.fetchone() == (5_000,)
        with holder.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM item")
        reader.rollback()
        wait_for(lambda: "readers" in str(backfills.show(one)["note"]), 60, "the rebuild to wait for the lock")
        # The stream is not held up for longer than a try lasts.
        pipeline.wait_caught_up()
        holder.rollback()
        backfills.wait(one)
    pipeline.assert_equal()
