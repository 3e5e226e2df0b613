"""Comparisons while batches of a destination are parked: at an exact position, or with the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cdc_runner.reconcile.result import Outcome, Report, TableOutcome
from cdc_runner.services.verify import RepairReport, Request, repair_pipeline, verify_pipeline
from tests.support.parked import begin, cut_off, parked, wait_passed
from tests.support.pipelines import PipelineHarness
from tests.support.proxy import TcpProxy
from tests.support.servers import RedisServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

SETUP = """
CREATE TABLE account (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO account SELECT i, 0 FROM generate_series(1, 50) i;
CREATE TABLE entry (at int, n int);
ALTER TABLE entry REPLICA IDENTITY FULL;
"""


def verify(pipeline: PipelineHarness, wait_seconds: float = 60.0) -> Report:
    with pipeline.catalog() as (engine, keyring):
        return verify_pipeline(engine, Request("shop", wait_seconds=wait_seconds), keyring)


def repair(pipeline: PipelineHarness, wait_seconds: float) -> RepairReport:
    with pipeline.catalog() as (engine, keyring):
        request = Request("shop", wait_seconds=wait_seconds)
        return repair_pipeline(engine, request, keyring, dry_run=False)


def write(pipeline: PipelineHarness, times: int) -> None:
    """Commit transactions, each with a row for table `entry`; account 50 is left alone."""
    for number in range(times):
        pipeline.source.execute(
            "BEGIN; UPDATE account SET n = n + 1 WHERE id <= 20; "
            f"UPDATE account SET id = -id WHERE id = {21 + number}; "
            f"INSERT INTO entry VALUES ({number % 2}, 0); COMMIT"
        )


@pytest.mark.both_engines(slow="debezium")
def test_a_fence_between_parked_batches_compares_and_repairs_exactly_there(
    pipeline: PipelineHarness, tcp_proxy: Callable[[str, int], TcpProxy], redis_server: RedisServer
) -> None:
    target = pipeline.targets["target"]
    link = tcp_proxy(target.server.host, target.server.port)
    begin(pipeline, SETUP, link, redis_server.url)
    target.execute("UPDATE account SET n = -1 WHERE id = 50")
    cut_off(pipeline, link)
    write(pipeline, 5)
    wait_passed(pipeline)
    report = verify(pipeline, wait_seconds=1)
    assert (report.outcome, report.tables) == (Outcome.INCOMPLETE, []), report.as_json()
    assert "destination target: it did not reach the fence within 1 s: cannot connect" in (report.problem or "")
    with ThreadPoolExecutor(1) as threads:
        repairing = threads.submit(repair, pipeline, 240)
        fence = "SELECT lsn FROM reconcile_fences WHERE state = 'SET'"
        ((lsn,),) = wait_for(lambda: pipeline.config.execute(fence), 60, "the fence to be set")
        write(pipeline, 7)
        wait_passed(pipeline)
        assert pipeline.position("target") < lsn and not repairing.done()
        link.heal()
        repaired = repairing.result(300)
    assert (repaired.before.lsn, repaired.outcome) == (lsn, Outcome.EQUAL), repaired.as_json()
    before = {one.source.name: one for one in repaired.before.tables}
    assert before["account"].keys.all == [("50",)]
    assert (before["entry"].outcome, before["entry"].source_rows) == (TableOutcome.EQUAL, 5), "not what came later"
    assert repaired.upserted_rows == 1
    pipeline.wait_caught_up()
    pipeline.assert_equal()
    assert verify(pipeline).outcome is Outcome.EQUAL
    wait_for(lambda: parked(pipeline) == (0, 0), 60, "nothing to be parked any more")


def test_what_is_parked_is_no_difference_and_holds_up_no_other_comparison(
    two_target_pipeline: PipelineHarness, tcp_proxy: Callable[[str, int], TcpProxy], redis_server: RedisServer
) -> None:
    """While the pipeline runs, and while it is paused: the slot tells nothing of what it has passed."""
    pipeline = two_target_pipeline
    pipeline.engine = "pgoutput"
    second = pipeline.targets["second"]
    link = tcp_proxy(second.server.host, second.server.port)
    begin(pipeline, SETUP, link, redis_server.url, behind_link="second")
    cut_off(pipeline, link, "second")
    write(pipeline, 3)
    wait_passed(pipeline)
    report = verify(pipeline, wait_seconds=1)
    assert {(one.destination, one.outcome) for one in report.tables} == {("target", TableOutcome.EQUAL)}
    assert "destination second: it did not reach the fence" in (report.problem or "")
    assert pipeline.stop() == 0
    link.heal()
    report = verify(pipeline)
    assert {(one.destination, one.outcome) for one in report.tables} == {("target", TableOutcome.EQUAL)}
    assert "destination second: the slot has passed it" in (report.problem or "")
    assert report.outcome is Outcome.INCOMPLETE
    pipeline.start()
    pipeline.wait_caught_up()
    assert verify(pipeline).outcome is Outcome.EQUAL
