"""Several destinations and targets, and destinations that fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cdc_runner.catalog.database import session_scope
from cdc_runner.schema import TableId
from cdc_runner.services.pipeline_edit import add_table, remove_table
from cdc_runner.services.verify import Request, verify_pipeline
from tests.support.pipelines import PipelineHarness
from tests.support.proxy import TcpProxy
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]


def test_one_slot_feeds_two_destinations_and_a_dead_one_holds_up_nobody(
    two_target_pipeline: PipelineHarness, tcp_proxy: Callable[[str, int], TcpProxy]
) -> None:
    """The second destination goes away under load: the first one goes on; later both are equal again."""
    pipeline = two_target_pipeline
    source = pipeline.source
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i"
    )
    link = tcp_proxy("127.0.0.1", pipeline.targets["second"].server.port)
    pipeline.ports["second"] = link.port
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal("target")
    pipeline.assert_equal("second")
    link.refuse()
    link.reset()
    source.execute("UPDATE t SET v = 'while it was away'")
    pipeline.wait_caught_up(60, ["target"])
    for number in range(60):
        source.execute("INSERT INTO t VALUES (%s, 'more')", (1000 + number,))
    pipeline.wait_caught_up(60, ["target"])
    pipeline.assert_equal("target")
    wait_for(
        lambda: pipeline.config.execute("SELECT count(*) FROM pipeline_destinations WHERE is_error")[0][0] == 1,
        30,
        "the error of the second destination",
    )
    # Beyond the time after which it is detached, the first one still goes on.
    wait_for(lambda: "apply.detached" in pipeline.log_text(), 60, "the second destination to be detached")
    source.execute("DELETE FROM t WHERE id % 2 = 0")
    pipeline.wait_caught_up(60, ["target"])
    slot = source.execute(
        "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE database = %s", (source.name,)
    )
    assert slot[0][0] <= pipeline.position("second"), "the slot keeps what the absent destination needs"
    link.heal()
    pipeline.wait_caught_up(90)
    pipeline.assert_equal("target")
    pipeline.assert_equal("second")


def test_a_late_report_of_an_absent_destination_is_no_loss(
    two_target_pipeline: PipelineHarness, tcp_proxy: Callable[[str, int], TcpProxy]
) -> None:
    """Killed between the acknowledgement and the report: the next start, without it, must not take the gap for a loss."""
    pipeline = two_target_pipeline
    pipeline.engine = "pgoutput"
    source = pipeline.source
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    link = tcp_proxy("127.0.0.1", pipeline.targets["second"].server.port)
    pipeline.ports["second"] = link.port
    pipeline.configure(settings={"heartbeat_seconds": 1})
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute("INSERT INTO t VALUES (2)")
    pipeline.wait_caught_up()
    pipeline.kill()
    # As the process left it when it died within the second before its next report.
    late = "UPDATE stream_offsets SET applied_lsn = applied_lsn - 100000 WHERE applied_lsn > 100000 RETURNING 1"
    assert len(pipeline.config.execute(late)) == 2, "each destination is known from the start of the stream"
    link.refuse()
    source.execute("INSERT INTO t VALUES (3)")
    pipeline.start()
    pipeline.wait_caught_up(60, ["target"])
    pipeline.assert_equal("target")
    link.heal()
    pipeline.wait_caught_up(90)
    pipeline.assert_equal("second")


def test_one_table_feeds_several_targets_in_one_schema(pipeline: PipelineHarness) -> None:
    """Explicit targets, a pattern, and a fixed target schema."""
    source = pipeline.source
    source.execute("CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'a')")
    source.execute(
        "CREATE SCHEMA sales; CREATE TABLE sales.line (id int PRIMARY KEY); INSERT INTO sales.line VALUES (1)"
    )
    pipeline.configure(
        schema="copy",
        syncs=[{"table": "public.orders", "target": "one"}, {"table": "public.orders", "target": "two"},
               {"table": "sales.*"}],
    )  # fmt: skip
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute(
        "INSERT INTO orders VALUES (2, 'b'); UPDATE orders SET v = 'c' WHERE id = 1; INSERT INTO sales.line VALUES (2)"
    )
    pipeline.wait_caught_up()
    for target in ("one", "two"):
        pipeline.assert_equal(tables={TableId("public", "orders"): TableId("copy", target)})
    pipeline.assert_equal(tables={TableId("sales", "line"): TableId("copy", "line")})


def test_a_target_with_foreign_keys_and_triggers_takes_parents_and_children(pipeline: PipelineHarness) -> None:
    """Triggers do not fire and keys are not checked in between; the end state is the source's."""
    ddl = """
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE);
    """
    pipeline.source.execute(ddl)
    pipeline.targets["target"].execute(
        ddl
        + """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'fired'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON child FOR EACH ROW EXECUTE FUNCTION refuse();
    """
    )
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.source.execute(
        "BEGIN; INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (10, 1), (20, 2); "
        "DELETE FROM parent WHERE id = 1; COMMIT"
    )
    pipeline.source.execute("TRUNCATE parent CASCADE; INSERT INTO parent VALUES (3); INSERT INTO child VALUES (30, 3)")
    pipeline.wait_caught_up()
    pipeline.assert_equal()


def test_a_target_that_does_not_fit_is_refused_before_anything_is_written(pipeline: PipelineHarness) -> None:
    """A missing column is named; the exit code asks for a person."""
    pipeline.source.execute("CREATE TABLE t (id int PRIMARY KEY, missing text); INSERT INTO t VALUES (1, 'x')")
    pipeline.targets["target"].execute("CREATE TABLE t (id int PRIMARY KEY)")
    pipeline.configure()
    pipeline.start()
    assert pipeline.wait_exit(120) == 78
    status, error = pipeline.config.execute("SELECT status, last_error FROM pipeline_metadata")[0]
    assert status == "ERROR"
    assert "missing" in error
    assert pipeline.targets["target"].execute("SELECT count(*) FROM t") == [(0,)]


def test_a_slot_that_was_dropped_or_advanced_is_named_and_a_refresh_recovers(pipeline: PipelineHarness) -> None:
    """Lost changes are never passed over; a refresh copies everything again."""
    source = pipeline.source
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 50) i"
    )
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    assert pipeline.stop() == 0
    source.execute("DELETE FROM t WHERE id < 10")
    (slot,) = source.execute("SELECT slot_name FROM pg_replication_slots WHERE database = %s", (source.name,))[0]
    source.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", (slot,))
    pipeline.start()
    assert pipeline.wait_exit(120) == 78
    assert "are lost" in pipeline.config.execute("SELECT last_error FROM pipeline_metadata")[0][0]
    source.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    pipeline.start()
    assert pipeline.wait_exit(120) == 78
    assert "is gone" in pipeline.config.execute("SELECT last_error FROM pipeline_metadata")[0][0]
    pipeline.config.execute("UPDATE pipelines SET status = 'REFRESH'")
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal()
    assert pipeline.config.execute("SELECT status FROM pipelines") == [("START",)]


def test_a_target_that_is_taken_out_and_comes_back_is_loaded_anew(pipeline: PipelineHarness) -> None:
    """Its table is published all the time, for another target; what changed meanwhile is not in the stream again."""
    source = pipeline.source
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    pipeline.engine = "pgoutput"
    pipeline.configure(syncs=[{"table": "public.t", "target": "one"}, {"table": "public.t", "target": "two"}])
    pipeline.start()
    pipeline.wait_caught_up()
    assert pipeline.stop() == 0
    with pipeline.catalog() as (engine, keyring):
        with session_scope(engine) as session:
            remove_table(session, "shop", "target", "public.t", "two", keyring)
        pipeline.start()
        source.execute("UPDATE t SET v = 'while it was out' WHERE id = 1; DELETE FROM t WHERE id = 2")
        pipeline.wait_caught_up()
        report = verify_pipeline(engine, Request("shop"), keyring)
        assert {str(one.target): one.outcome.value for one in report.tables} == {
            "public.one": "EQUAL",
            "public.two": "SKIPPED",
        }
        assert pipeline.stop() == 0
        assert pipeline.targets["target"].execute("SELECT * FROM two ORDER BY 1") == [(1, "a"), (2, "b")]
        with session_scope(engine) as session:
            add_table(session, "shop", "target", {"table": "public.t", "target": "two"}, keyring)
    pipeline.start()
    pipeline.wait_caught_up()
    for target in ("one", "two"):
        assert pipeline.targets["target"].execute(f"SELECT * FROM {target}") == [(1, "while it was out")]
