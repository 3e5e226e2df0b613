"""Reconciliation and repair of targets at Snowflake's stand-ins, while the stream flows."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from cdc_runner.reconcile.result import Outcome, Report, TableOutcome, TableResult
from cdc_runner.services.verify import RepairReport, Request, repair_pipeline, verify_pipeline
from tests.integration.snowflake.test_snowflake_pipeline import SETUP
from tests.support.snowduck_pipeline import DuckPipeline
from tests.support.snowflake_pipeline import SnowflakePipeline

pytestmark = [pytest.mark.pg, pytest.mark.timeout(900)]

Run = Callable[[str], object]

MORE = """
CREATE TABLE keys (flag bool, code char(5), price numeric(10,2), at timestamptz, moment timestamp, day date, clock time,
                   raw bytea, name text, v int, PRIMARY KEY (flag, code, price, at, moment, day, clock, raw, name));
INSERT INTO keys SELECT i % 2 = 0, 'c' || i, i / 4.0, timestamptz '1999-12-31 23:59:59.5+02' + make_interval(hours => i),
    timestamp '2000-02-29' + make_interval(secs => i / 10.0), date '2024-02-28' + i, time '23:59:00' + make_interval(secs => i),
    decode(md5(i::text), 'hex'), E'é😀|\\\\' || i, i FROM generate_series(1, 40) i;
CREATE TABLE wide (id int PRIMARY KEY, a text, b text);
INSERT INTO wide VALUES (1, NULL, '!'), (2, '!', NULL), (3, '', repeat('x', 100000)), (4, repeat('é', 3000), '1:a'), (5, '|', '');
"""


def verify(pipeline: SnowflakePipeline, *tables: str) -> Report:
    with pipeline.catalog() as (engine, keyring):
        return verify_pipeline(engine, Request("shop", tables), keyring)


def repair(pipeline: SnowflakePipeline, *tables: str) -> RepairReport:
    with pipeline.catalog() as (engine, keyring):
        return repair_pipeline(engine, Request("shop", tables), keyring, dry_run=False)


def by_table(report: Report) -> Mapping[str, TableResult]:
    return {one.source.name: one for one in report.tables}


def assert_equal(report: Report) -> None:
    assert report.outcome is Outcome.EQUAL, json.dumps(report.as_json(), indent=1)


@contextmanager
def repeating(work: Callable[[int], object], seconds: float) -> Iterator[None]:
    """Do something again and again beside whoever compares."""
    stopping = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        number = 0
        try:
            while not stopping.wait(seconds):
                number += 1
                work(number)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(120)
    assert not failures, failures


@contextmanager
def under_load(pipeline: SnowflakePipeline, run_tasks: Callable[[], None]) -> Iterator[None]:
    """Write at the source, in rows that no test damages, and let the tasks merge."""

    def write(number: int) -> None:
        pipeline.source.execute(
            "UPDATE item SET price = price + 1 WHERE id %% 50 = %s; DELETE FROM item WHERE id = 10 + %s;"
            "INSERT INTO log VALUES (%s, 'same'); UPDATE item SET id = -id WHERE id = 3000 - %s;"
            "DELETE FROM log WHERE ctid IN (SELECT ctid FROM log WHERE at = %s LIMIT 1);"
            "UPDATE toast SET n = n + 1; INSERT INTO emptied VALUES (%s, 0, 'bulk')",
            (20 + number % 20, number, number % 4, number, number % 7, 1000 + number),
        )

    with repeating(write, 0.05), repeating(lambda _: run_tasks(), 0.3):
        yield


def start(pipeline: SnowflakePipeline, setup: str, engine: str = "pgoutput", **options: Any) -> None:
    pipeline.engine = engine
    pipeline.source.execute(setup)
    pipeline.configure(settings={"heartbeat_seconds": 1}, **options)
    pipeline.start()
    pipeline.wait_landed(300)


def assert_damage_is_named_and_repaired(pipeline: SnowflakePipeline, run: Run, rows: int) -> None:
    item, log, keys = (f'"ANALYTICS"."SHOP"."{name}"' for name in ("ITEM", "LOG", "KEYS"))
    run(f'UPDATE {item} SET "NAME" = \'secret value\' WHERE "ID" IN (2, 4)')
    run(f'DELETE FROM {item} WHERE "ID" = 6')
    run(f'INSERT INTO {item} ("ID", "NAME") SELECT {rows + 1000}, \'secret value\'')
    run(f'INSERT INTO {log} ("AT", "LINE", "_ROSETTA_ROW") SELECT 77, \'secret value\', \'damage\'')
    run(f'UPDATE {keys} SET "V" = -1 WHERE "V" = 5')
    run(f'DELETE FROM {keys} WHERE "V" = 7')
    report = verify(pipeline)
    found = by_table(report)
    assert report.outcome is Outcome.DIFFERENT
    keyed = found["item"].keys
    assert (keyed.changed, keyed.missing, keyed.extra) == ([("2",), ("4",)], [("6",)], [(str(rows + 1000),)])
    assert len(found["log"].keys.extra) == 1
    assert not found["log"].keys.missing
    assert [len(one) for one in (found["keys"].keys.changed, found["keys"].keys.missing)] == [1, 1]
    assert "secret value" not in json.dumps(report.as_json())
    others = {name for name, one in found.items() if one.outcome is TableOutcome.EQUAL}
    assert others == found.keys() - {"item", "log", "keys"}
    repaired = repair(pipeline)
    assert (repaired.upserted_rows, repaired.deleted_rows) == (5, 1), repaired.as_json()
    assert list(repaired.refused) == ["lake: SHOP.log"]
    assert repaired.after is not None
    assert repaired.after.outcome is Outcome.EQUAL, repaired.as_json()
    run(f"DELETE FROM {log} WHERE \"_ROSETTA_ROW\" = 'damage'")
    assert_equal(verify(pipeline))


def test_damage_is_named_and_repaired_without_a_false_alarm_under_load(snowflake_pipeline: SnowflakePipeline) -> None:
    pipeline, server = snowflake_pipeline, snowflake_pipeline.server
    start(pipeline, SETUP + MORE)
    report = verify(pipeline)
    assert_equal(report)
    found = by_table(report)
    assert set(found["item"].left_out) == {"ratio", "data", "tags"}
    assert {name: one.source_rows for name, one in found.items()} == {
        "item": 3000, "log": 100, "emptied": 100, "toast": 20, "keys": 40, "wide": 5,
    }  # fmt: skip
    with under_load(pipeline, server.sql.run_tasks):
        for _ in range(3):
            assert_equal(verify(pipeline))
    pipeline.wait_landed()
    assert_damage_is_named_and_repaired(pipeline, server.sql.query, 3000)
    held = server.sql.query('SELECT count(*) FROM "ANALYTICS"."SHOP"."ROSETTA_TABLE" WHERE "HOLD" IS NOT NULL')
    assert held == [(0,)]
    pipeline.assert_same()

    assert pipeline.stop() == 0
    pipeline.source.execute("INSERT INTO emptied VALUES (-1, -1, 'waits')")
    server.sql.query('DELETE FROM "ANALYTICS"."SHOP"."WIDE" WHERE "ID" = 3')
    paused = by_table(verify(pipeline))
    assert paused["emptied"].outcome is TableOutcome.BEHIND
    assert paused["wide"].keys.missing == [("3",)]
    assert {paused[name].outcome for name in ("item", "log", "keys", "toast")} == {TableOutcome.EQUAL}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_independent_stand_in_compares_alike(duck_pipeline: DuckPipeline) -> None:
    pipeline, duck = duck_pipeline, duck_pipeline.duck
    few = "DELETE FROM item WHERE id > 20; DELETE FROM emptied WHERE a > 10; DELETE FROM toast WHERE id > 6;"
    start(pipeline, SETUP + few + MORE)
    report = verify(pipeline)
    assert_equal(report)
    assert set(by_table(report)["item"].left_out) == {"ratio", "data", "tags"}
    with under_load(pipeline, duck.run_tasks):
        assert_equal(verify(pipeline))
    pipeline.wait_landed(600)
    assert_damage_is_named_and_repaired(pipeline, duck.run, 20)


SYNCS: list[dict[str, object]] = [
    {
        "table": "public.person",
        "target": "customers",
        "filter": "region = 'EU'",
        "exclude": ["day"],
        "rename": {"name": "full_name"},
        "mask": {"email": "hash", "ssn": "null", "note": {"constant": "-"}},
    },
    {"table": "public.kept", "mode": "soft_delete"},
    {"table": "public.log", "mode": "history"},
]
SHAPED = """
CREATE TABLE person (id int PRIMARY KEY, region text, name text, email text, ssn text, note text, day date);
INSERT INTO person SELECT i, CASE WHEN i % 2 = 0 THEN 'EU' ELSE 'US' END, 'n' || i, 'e' || i, 's', 'n', '2024-01-01'
    FROM generate_series(1, 40) i;
CREATE TABLE kept (id int PRIMARY KEY, v text);
INSERT INTO kept VALUES (1, 'a'), (2, 'b'), (3, 'c');
CREATE TABLE log (id int PRIMARY KEY, v text);
INSERT INTO log VALUES (1, 'a');
"""


def test_shaped_targets_are_compared_and_repaired_with_what_their_syncs_make(
    snowflake_pipeline: SnowflakePipeline,
) -> None:
    pipeline, sql = snowflake_pipeline, snowflake_pipeline.server.sql
    start(pipeline, SHAPED, syncs=SYNCS)
    sql.run_tasks()
    pipeline.source.execute("DELETE FROM kept WHERE id = 1; UPDATE person SET region = 'US' WHERE id = 2")
    pipeline.wait_landed()
    report = verify(pipeline)
    found = by_table(report)
    assert_equal(report)
    assert found["log"].outcome is TableOutcome.SKIPPED
    assert set(found["person"].left_out) == {"email"}
    assert found["person"].target_rows == 19
    assert found["kept"].target_rows == 2
    sql.query('UPDATE "ANALYTICS"."SHOP"."CUSTOMERS" SET "FULL_NAME" = \'x\' WHERE "ID" = 4')
    sql.query('UPDATE "ANALYTICS"."SHOP"."CUSTOMERS" SET "SSN" = \'x\' WHERE "ID" = 6')
    sql.query('UPDATE "ANALYTICS"."SHOP"."KEPT" SET "_ROSETTA_DELETED" = TRUE WHERE "ID" = 2')
    sql.query('UPDATE "ANALYTICS"."SHOP"."KEPT" SET "_ROSETTA_DELETED" = FALSE WHERE "ID" = 1')
    found = by_table(verify(pipeline))
    assert found["person"].keys.changed == [("4",), ("6",)]
    assert (found["kept"].keys.missing, found["kept"].keys.extra) == ([("2",)], [("1",)])
    repaired = repair(pipeline)
    assert repaired.outcome is Outcome.EQUAL, repaired.as_json()
    assert sql.query(
        'SELECT "FULL_NAME", "SSN", length("EMAIL") FROM "ANALYTICS"."SHOP"."CUSTOMERS" WHERE "ID" = 4'
    ) == [("n4", None, 64)]
    marked = sql.query('SELECT "ID", "_ROSETTA_DELETED" FROM "ANALYTICS"."SHOP"."KEPT" ORDER BY 1')
    assert marked == [(1, True), (2, False), (3, False)]
