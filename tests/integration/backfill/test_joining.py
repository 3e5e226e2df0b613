"""Tables that join a running pipeline: large ones are loaded beside its stream, which waits for none of their rows."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.pipelines import set_status
from cdc_runner.services.pipeline_edit import add_destination, add_table, remove_destination
from cdc_runner.services.verify import Request, verify_pipeline
from tests.support.backfills import WRITTEN, Backfills, Writer, fill
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

BESIDE: dict[str, object] = {"load_beside_megabytes": 0, "load_chunk_bytes": 1 << 20, "backfill_window_seconds": 3}
FIRST = "CREATE TABLE first (id int PRIMARY KEY, v text); INSERT INTO first VALUES (1, 'a')"


def load_states(pipeline: PipelineHarness) -> dict[str, str]:
    rows = pipeline.config.execute(
        "SELECT d.name || '.' || s.target_table, s.load_state FROM pipelines_destination_table_sync s"
        " JOIN pipeline_destinations pd ON pd.id = s.pipeline_destination_id"
        " JOIN destinations d ON d.id = pd.destination_id WHERE s.origin = 'RESOLVED'"
    )
    return dict(rows)


def wait_state(pipeline: PipelineHarness, table: str, state: str, timeout: float = 120) -> None:
    try:
        wait_for(lambda: load_states(pipeline).get(table) == state, timeout, f"{table} to be {state}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{load_states(pipeline)}\n{pipeline.log_text()[-3000:]}") from error


@pytest.mark.both_engines
def test_the_stream_goes_on_while_a_table_that_joined_is_loaded(pipeline: PipelineHarness) -> None:
    """An old transaction of the source holds up every snapshot, and so the load; it also deletes rows unseen."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(FIRST)
    source.execute(WRITTEN)
    fill(pipeline, 20_000)
    pipeline.configure(syncs=[{"table": "public.first"}], settings=BESIDE)
    pipeline.start()
    pipeline.wait_caught_up(180)
    assert pipeline.stop() == 0
    writer = Writer(pipeline, 11, 20_000)
    with closing(source.connect()) as old:
        old.autocommit = False
        with old.cursor() as cursor:
            # Before the publication knows of the table: its changes are not decoded, or only some of them.
            cursor.execute("DELETE FROM item WHERE id BETWEEN 100 AND 110")
            cursor.execute("UPDATE item SET note = 'unseen' WHERE id = 120")
        with pipeline.catalog() as (engine, keyring), session_scope(engine) as session:
            add_table(session, "shop", "target", {"table": "public.item"}, keyring)
        pipeline.start()
        wait_state(pipeline, "target.item", "LOADING")
        writer.start()
        try:
            source.execute("UPDATE first SET v = 'while item is loaded'")
            wait_for(
                lambda: target.execute("SELECT v FROM first") == [("while item is loaded",)], 60, "the stream to go on"
            )
            assert load_states(pipeline)["target.item"] == "LOADING"
            source.execute("INSERT INTO item VALUES (5000000, 0, 'told', 'told', NULL)")
            with old.cursor() as cursor:
                cursor.execute("DELETE FROM item WHERE id BETWEEN 111 AND 115 OR id = 5000000")
            old.commit()
            wait_state(pipeline, "target.item", "STREAMING", 240)
        finally:
            writer.finish()
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()
    assert writer.changes > 20
    assert pipeline.config.execute("SELECT mode, status, requested_by FROM queue_backfill_data") == [
        ("RESYNC", "COMPLETED", "joins the pipeline")
    ]
    assert verify_of(pipeline) == {"public.first": "EQUAL", "public.item": "EQUAL"}
    # It is a table like any other from now on.
    assert pipeline.stop() == 0
    pipeline.start()
    source.execute("UPDATE item SET note = 'later' WHERE id < 50")
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()
    assert load_states(pipeline)["target.item"] == "STREAMING"


def verify_of(pipeline: PipelineHarness, destination: str = "target") -> dict[str, str]:
    with pipeline.catalog() as (engine, keyring):
        report = verify_pipeline(engine, Request("shop", destinations=(destination,)), keyring)
    assert report.tables, report.problem
    return {str(one.target): one.outcome.value for one in report.tables}


def test_a_new_destination_is_filled_while_the_first_goes_on(two_target_pipeline: PipelineHarness) -> None:
    """A killed process goes on where it was, and a cancelled request is made again."""
    pipeline = two_target_pipeline
    pipeline.source.execute(FIRST)
    pipeline.source.execute(WRITTEN)
    fill(pipeline, 20_000)
    # Slow enough to be met at work.
    pipeline.configure(settings={**BESIDE, "backfill_megabytes_per_second": 1})
    with pipeline.catalog() as (engine, keyring):
        with session_scope(engine) as session:
            set_status(session, pipeline.pipeline_id, "PAUSE")
            remove_destination(session, "shop", "second", keyring)
            set_status(session, pipeline.pipeline_id, "START")
        pipeline.start()
        pipeline.wait_caught_up(180, ["target"])
        assert pipeline.stop() == 0
        with session_scope(engine) as session:
            add_destination(session, "shop", "second", keyring)
    writer = Writer(pipeline, 12, 20_000)
    pipeline.start()
    wait_state(pipeline, "second.item", "LOADING")
    writer.start()
    try:
        pipeline.source.execute("UPDATE first SET v = 'while the second is filled'")
        pipeline.wait_caught_up(60, ["target"])
        assert load_states(pipeline)["second.item"] == "LOADING"
        assert verify_of(pipeline, "second")["public.item"] == "BEHIND"
        pipeline.kill()
        pipeline.config.execute("UPDATE queue_backfill_data SET status = 'CANCELLED' WHERE status <> 'COMPLETED'")
        pipeline.start()
        wait_state(pipeline, "second.item", "STREAMING", 240)
        wait_state(pipeline, "second.first", "STREAMING", 240)
    finally:
        writer.finish()
    pipeline.wait_caught_up(120)
    for target in ("target", "second"):
        pipeline.assert_equal(target)
    asked = pipeline.config.execute("SELECT table_name FROM queue_backfill_data WHERE status = 'CANCELLED'")
    assert ("item",) in asked


def test_only_what_is_above_the_limit_is_loaded_beside(pipeline: PipelineHarness) -> None:
    """The smallest tables first, up to a megabyte in all; a table without a key is always waited for."""
    source = pipeline.source
    source.execute(FIRST)
    pipeline.configure(settings={**BESIDE, "load_beside_megabytes": 1})
    pipeline.start()
    pipeline.wait_caught_up(180)
    wide = "SELECT i, repeat('x', 100) FROM generate_series(1, %s) i"
    with closing(source.connect()) as connection, connection, connection.cursor() as cursor:
        for name, rows in (("medium", 5_000), ("small", 50), ("large", 20_000)):
            cursor.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
            cursor.execute(f"INSERT INTO {name} {wide}", (rows,))
        cursor.execute("CREATE TABLE keyless (id int, v text)")
        cursor.execute("ALTER TABLE keyless REPLICA IDENTITY FULL")
        cursor.execute(f"INSERT INTO keyless {wide}", (20_000,))
    for name in ("medium", "small", "large", "keyless"):
        wait_state(pipeline, f"target.{name}", "STREAMING")
    pipeline.wait_caught_up(60)
    pipeline.assert_equal()
    events = [json.loads(line) for line in pipeline.log_text().splitlines() if "load.beside" in line]
    assert [one["table"] for one in events] == ["public.large"]


def test_a_reload_of_a_large_table_does_not_stop_the_stream(pipeline: PipelineHarness) -> None:
    """It is emptied, as asked for, and filled beside the stream; what the source does not have is gone."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(FIRST)
    source.execute(WRITTEN)
    fill(pipeline, 5_000)
    pipeline.configure(settings=BESIDE)
    pipeline.start()
    pipeline.wait_caught_up(180)
    target.execute("INSERT INTO item VALUES (1000000, 0, 'extra', 'extra', NULL)")
    backfills = Backfills(pipeline)
    done = backfills.wait(backfills.start("public.item", mode="reload"))
    wait_state(pipeline, "target.item", "STREAMING")
    pipeline.wait_caught_up(60)
    pipeline.assert_equal()
    assert (done["mode"], done["changed"]) == ("RESYNC", 5_000)
    assert "load.beside" in pipeline.log_text()


def test_a_shaped_table_joins_beside_the_stream(pipeline: PipelineHarness) -> None:
    """Filter, names, chosen columns and soft deletes apply to what the stream writes and to what is loaded."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(FIRST)
    source.execute(WRITTEN)
    fill(pipeline, 5_000)
    pipeline.engine = "pgoutput"
    pipeline.configure(syncs=[{"table": "public.first"}], settings=BESIDE)
    pipeline.start()
    pipeline.wait_caught_up(180)
    writer = Writer(pipeline, 13, 5_000)
    writer.start()
    try:
        entry = {"table": "public.item", "target": "even", "filter": "id % 2 = 0", "exclude": ["code"],
                 "rename": {"note": "remark"}, "mode": "soft_delete"}  # fmt: skip
        assert pipeline.stop() == 0
        with pipeline.catalog() as (engine, keyring), session_scope(engine) as session:
            add_table(session, "shop", "target", entry, keyring)
        pipeline.start()
        wait_state(pipeline, "target.even", "STREAMING", 240)
        assert "load.beside" in pipeline.log_text()
    finally:
        writer.finish()
    pipeline.wait_caught_up(120)
    wanted = source.execute("SELECT id, v, note, big FROM item WHERE id % 2 = 0 ORDER BY id")
    assert target.execute("SELECT id, v, remark, big FROM even WHERE NOT _rosetta_deleted ORDER BY id") == wanted
    assert writer.changes > 20
