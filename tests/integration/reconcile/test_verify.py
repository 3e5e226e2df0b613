"""Reconciliation and repair of running pipelines."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from cdc_runner.catalog import fences
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.pipelines import load_pipeline
from cdc_runner.errors import RosettaError
from cdc_runner.reconcile.fenced import fenced
from cdc_runner.reconcile.result import Outcome, Report, TableOutcome
from cdc_runner.reconcile.session import Settings
from cdc_runner.reconcile.tables import by_patterns
from cdc_runner.services.verify import Request, compare_at, repair_pipeline, verify_pipeline
from rosetta_dagster.cli.main import main
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

SETUP = """
CREATE TABLE orders (id bigint PRIMARY KEY, customer int, amount numeric, note text, at timestamptz DEFAULT now());
INSERT INTO orders SELECT i, i % 100, i / 7.0, md5(i::text) FROM generate_series(1, 100000) i;
CREATE TABLE pair (a text COLLATE "C", b uuid, v jsonb, PRIMARY KEY (b, a));
INSERT INTO pair SELECT 'k' || i, md5(i::text)::uuid, jsonb_build_object('n', i) FROM generate_series(1, 2000) i;
CREATE TABLE part (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
CREATE TABLE part_us PARTITION OF part FOR VALUES IN ('us');
INSERT INTO part SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, i FROM generate_series(1, 1000) i;
CREATE TABLE log (line text, n int);
ALTER TABLE log REPLICA IDENTITY FULL;
INSERT INTO log SELECT 'line ' || i % 50, NULLIF(i % 3, 0) FROM generate_series(1, 500) i;
CREATE TABLE empty (id int PRIMARY KEY);
"""


def verify(harness: PipelineHarness, *tables: str, **options: object) -> Report:
    with harness.catalog() as (engine, keyring):
        return verify_pipeline(engine, Request("shop", tables, **options), keyring)  # type: ignore[arg-type]


def assert_equal(report: Report) -> None:
    assert report.outcome is Outcome.EQUAL, report.as_json()


@contextmanager
def write_load(harness: PipelineHarness, rows: int) -> Iterator[None]:
    """Keep writing to the source: updates, deletes, inserts and key changes, in transactions over several tables.

    Rows that a test damages are left alone: the stream would bring them right.
    """
    stopping = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with closing(harness.source.connect()) as connection, connection.cursor() as cursor:
                number = 0
                while not stopping.is_set():
                    number += 1
                    cursor.execute(
                        "BEGIN; UPDATE orders SET amount = amount + 1 WHERE id = ANY (%s); "
                        "DELETE FROM orders WHERE id = %s; UPDATE orders SET id = -id WHERE id = %s; "
                        "INSERT INTO pair VALUES (%s, gen_random_uuid(), NULL); "
                        "UPDATE part SET region = CASE region WHEN 'eu' THEN 'us' ELSE 'eu' END WHERE id = %s; "
                        "INSERT INTO log VALUES ('more', %s); COMMIT",
                        (
                            [place for place in range(number % 500, 50_000, 500)],
                            number,
                            rows - number,
                            f"n{number}",
                            100 + number % 900,
                            number % 5,
                        ),
                    )
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(30)
    assert not failures, failures


@pytest.mark.parametrize(
    ("capture", "rows", "verifies"),
    [
        ("debezium", 100_000, 4),
        ("pgoutput", 100_000, 8),
        pytest.param("pgoutput", 5_000_000, 20, marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
    ],
)
def test_corrupted_rows_are_named_and_repaired_while_the_stream_flows(
    pipeline: PipelineHarness, capture: str, rows: int, verifies: int
) -> None:
    pipeline.engine = capture
    pipeline.source.execute(SETUP.replace("100000", str(rows)))
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(900)
    assert_equal(verify(pipeline))
    with write_load(pipeline, rows):
        for _ in range(verifies):
            assert_equal(verify(pipeline))
    pipeline.wait_caught_up()
    target = pipeline.targets["target"]
    target.execute("UPDATE orders SET note = note || '!' WHERE id BETWEEN 50001 AND 50030")
    target.execute("DELETE FROM orders WHERE id BETWEEN 60001 AND 60010")
    target.execute("INSERT INTO orders SELECT 9000000 + i, 1, 1, 'x' FROM generate_series(1, 10) i")
    target.execute("UPDATE part SET v = NULL WHERE id IN (7, 8)")
    with write_load(pipeline, rows):
        report = verify(pipeline)
        found = {str(one.target): one for one in report.tables}
        assert report.outcome is Outcome.DIFFERENT
        orders = found["public.orders"]
        assert [key[0] for key in orders.keys.changed] == [str(50000 + i) for i in range(1, 31)]
        assert [key[0] for key in orders.keys.missing] == [str(60000 + i) for i in range(1, 11)]
        assert [key[0] for key in orders.keys.extra] == [str(9000000 + i) for i in range(1, 11)]
        assert [one["keys"] for one in orders.details(5)["ranges"]] == [30, 10, 10]
        assert len(found["public.part"].keys.changed) == 2
        assert {one.outcome for name, one in found.items() if name not in ("public.orders", "public.part")} == {
            TableOutcome.EQUAL
        }
        with pipeline.catalog() as (engine, keyring):
            dry = repair_pipeline(engine, Request("shop"), keyring)
            assert (dry.dry_run, dry.after, dry.outcome) == (True, None, Outcome.DIFFERENT)
            repaired = repair_pipeline(engine, Request("shop"), keyring, dry_run=False)
        assert repaired.outcome is Outcome.EQUAL, repaired.as_json()
        assert (repaired.upserted_rows, repaired.deleted_rows) == (42, 10)
        assert_equal(verify(pipeline))
    pipeline.wait_caught_up()
    pipeline.assert_equal()
    slots = pipeline.source.execute("SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE '%fence%'")
    assert slots == []
    assert pipeline.config.execute("SELECT count(*) FROM reconcile_fence_keys") == [(0,)]


def test_a_paused_pipeline_is_compared_but_for_what_waits_in_its_slot(
    two_target_pipeline: PipelineHarness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = two_target_pipeline
    pipeline.source.execute(SETUP.replace("100000", "1000"))
    pipeline.configure(schema="Copy")
    pipeline.start()
    pipeline.wait_caught_up()
    assert_equal(verify(pipeline))
    assert_a_truncate_behind_the_fence_is_no_difference(pipeline)
    assert_a_forgotten_fence_holds_nothing_up(pipeline)
    pipeline.stop()
    pipeline.source.execute("INSERT INTO empty VALUES (1)")
    target = pipeline.targets["second"]
    target.execute("UPDATE \"Copy\".orders SET note = '' WHERE id = 7; INSERT INTO \"Copy\".log VALUES ('extra', 1)")
    report = verify(pipeline)
    outcomes = {(one.destination, one.source.name): one for one in report.tables}
    assert {name for name, one in outcomes.items() if one.outcome is TableOutcome.BEHIND} == {
        ("target", "empty"),
        ("second", "empty"),
    }
    different = {name for name, one in outcomes.items() if one.outcome is TableOutcome.DIFFERENT}
    assert different == {("second", "orders"), ("second", "log")}
    assert outcomes["second", "orders"].keys.changed == [("7",)]
    assert len(outcomes["second", "log"].keys.extra) == 1
    assert_commands_say_so(pipeline, monkeypatch, capsys)
    with pipeline.catalog() as (engine, keyring):
        with pytest.raises(RosettaError, match="does not run"):
            repair_pipeline(engine, Request("shop"), keyring, dry_run=False)
        pipeline.start()
        pipeline.wait_caught_up()
        repaired = repair_pipeline(engine, Request("shop"), keyring, dry_run=False)
        assert list(repaired.refused) == ["second: Copy.log"]
        assert repaired.outcome is Outcome.DIFFERENT
        assert (repaired.upserted_rows, repaired.deleted_rows) == (1, 0)
    assert_equal(verify(pipeline, destinations=("target",)))
    assert_equal(verify(pipeline, "public.orders", "public.empty"))
    slots = pipeline.source.execute("SELECT count(*) FROM pg_replication_slots WHERE temporary")
    assert slots == [(0,)]


def assert_a_truncate_behind_the_fence_is_no_difference(pipeline: PipelineHarness) -> None:
    with pipeline.catalog() as (engine, keyring):
        with session_scope(engine) as session:
            spec = load_pipeline(session, pipeline.pipeline_id, keyring)
        with fenced(engine, spec, spec.destinations, Settings(), wait_seconds=60) as fence:
            pipeline.source.execute("TRUNCATE part; UPDATE orders SET note = 'late'; DELETE FROM pair")
            pipeline.wait_caught_up()
            results, problem = compare_at(spec, spec.destinations, fence, by_patterns(()))
    assert problem is None
    outcomes = {(one.destination, one.source.name): one for one in results}
    assert len(outcomes) == 10
    for (_, table), one in outcomes.items():
        assert one.outcome is (TableOutcome.FAILED if table == "part" else TableOutcome.EQUAL), one
    assert "truncated" in (outcomes["target", "part"].reason or "")
    assert_equal(verify(pipeline))


def assert_a_forgotten_fence_holds_nothing_up(pipeline: PipelineHarness) -> None:
    temporary = "SELECT count(*) FROM pg_replication_slots WHERE temporary"
    with pipeline.catalog() as (engine, _):
        with session_scope(engine) as session:
            identifier = fences.request(session, pipeline.pipeline_id)
        wait_for(lambda: pipeline.source.execute(temporary) == [(1,)], 60, "the fence to be set")
        pipeline.source.execute("INSERT INTO orders (id) VALUES (-5)")
        pipeline.wait_caught_up()
        pipeline.config.execute("UPDATE reconcile_fences SET expires_at = now() WHERE id = %s", (identifier,))
        wait_for(lambda: pipeline.source.execute(temporary) == [(0,)], 60, "the fence to be given up")


def assert_commands_say_so(
    pipeline: PipelineHarness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in pipeline.environment.items():
        monkeypatch.setenv(name, value)
    assert main(["verify", "shop", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["outcome"] == "DIFFERENT"
    assert main(["verify", "shop", "--table", "public.orders", "--destination", "target"]) == 0
    assert "EQUAL at " in capsys.readouterr().out
    assert main(["verify", "shop", "--table", "public.empty"]) == 3
    assert "wait in the slot" in capsys.readouterr().out
    assert main(["repair", "shop"]) == 1
    assert "1 rows to be fetched again" in capsys.readouterr().out
    assert main(["verify", "shop", "--destination", "nowhere"]) == 2
    assert main(["verify", "nothing"]) == 2
