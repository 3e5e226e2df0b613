"""Reconciliation and repair of tables whose sync filters, chooses, renames, masks or marks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import open_catalog
from cdc_runner.catalog.environment import read_environment
from cdc_runner.reconcile.result import Outcome, Report, TableOutcome
from cdc_runner.services.verify import RepairReport, Request, repair_pipeline, verify_pipeline
from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]

CANARY = "canary"

SETUP = """
CREATE TABLE person (id int PRIMARY KEY, region text, name text, email text, phone text, city text, note text,
    k0 numeric, secret text, vip boolean);
INSERT INTO person SELECT i, CASE WHEN i % 4 = 0 THEN 'US' WHEN i % 5 = 0 THEN NULL ELSE 'EU' END, 'name ' || i,
    'canary' || i, '0123 canary' || i, 'canary city', 'canary note', i / 7.0, 'canary secret', i % 2 = 0
    FROM generate_series(1, 400) i;
CREATE TABLE bag (a int, b text, email text);
ALTER TABLE bag REPLICA IDENTITY FULL;
INSERT INTO bag SELECT i % 5, 'b' || i % 3, 'canary' || i FROM generate_series(1, 60) i;
CREATE TABLE login (email text PRIMARY KEY);
INSERT INTO login VALUES ('canary1');
CREATE TABLE story (id int PRIMARY KEY, line text);
INSERT INTO story VALUES (1, 'once');
"""


def _syncs(mode: str) -> list[dict[str, object]]:
    return [
        {
            "table": "public.person",
            "target": "people",
            "filter": "region = 'EU' AND k0 >= 0",
            "exclude": ["secret"],
            "rename": {"name": "full_name", "phone": "phone_start", "id": "number"},
            "mask": {"email": "hash", "phone": {"truncate": 4}, "city": {"constant": "it's"}, "note": "null"},
            "mode": mode,
        },
        {"table": "public.bag", "filter": "a < 4", "columns": ["b", "email"], "mask": {"email": "hash"}},
        {"table": "public.login", "mask": {"email": "hash"}},
        {"table": "public.story", "mode": "history"},
    ]


@contextmanager
def _asking(pipeline: PipelineHarness) -> Iterator[tuple[object, Request, Keyring]]:
    engine = open_catalog(pipeline.config.url())
    try:
        yield engine, Request("shop"), Keyring.from_environment(read_environment(pipeline.environment))
    finally:
        engine.dispose()


def _verify(pipeline: PipelineHarness) -> Report:
    with _asking(pipeline) as (engine, request, keyring):
        report = verify_pipeline(engine, request, keyring)  # type: ignore[arg-type]
    assert CANARY not in json.dumps(report.as_json()), "a masked value is told"
    return report


def _repair(pipeline: PipelineHarness) -> RepairReport:
    with _asking(pipeline) as (engine, request, keyring):
        report = repair_pipeline(engine, request, keyring, dry_run=False)  # type: ignore[arg-type]
    assert CANARY not in json.dumps(report.as_json()), "a masked value is told"
    return report


@contextmanager
def _writes(pipeline: PipelineHarness) -> Iterator[None]:
    """Keep writing to the source: rows enter and leave the filter, change their keys and go, each soon left alone."""
    stopping = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with closing(pipeline.source.connect()) as connection, connection.cursor() as cursor:
                number = 10_000
                while not stopping.is_set():
                    number += 1
                    cursor.execute(
                        "BEGIN; INSERT INTO person (id, region, name, email, k0) VALUES (%s, %s, 'n', 'canary', 1);"
                        "UPDATE person SET region = CASE region WHEN 'EU' THEN 'US' ELSE 'EU' END, email = 'canary2' "
                        "WHERE id = %s; UPDATE person SET id = -id WHERE id = %s; DELETE FROM person WHERE id = %s;"
                        "INSERT INTO bag VALUES (%s, 'more', 'canary'); COMMIT",
                        (number, "EU" if number % 2 else "US", number - 1, number - 2, 7 - number, number % 5),
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


def _outcomes(report: Report) -> dict[str, TableOutcome]:
    return {one.target.name: one.outcome for one in report.tables}


@pytest.mark.parametrize("mode", ["mirror", "soft_delete"])
def test_a_shaped_table_is_compared_as_its_sync_shapes_it(pipeline: PipelineHarness, mode: str) -> None:
    source = pipeline.source
    source.execute(SETUP)
    pipeline.engine = "pgoutput"
    pipeline.configure(syncs=_syncs(mode))
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute(
        "UPDATE person SET region = 'US' WHERE id <= 20; UPDATE person SET region = 'EU' WHERE id BETWEEN 100 AND 120;"
        "DELETE FROM person WHERE id BETWEEN 30 AND 40; UPDATE person SET id = -id WHERE id BETWEEN 50 AND 55;"
        "UPDATE person SET email = 'canary new', secret = 'canary' WHERE id = 61; UPDATE bag SET a = a + 1;"
        "INSERT INTO person (id, region) VALUES (1000, 'US'), (1001, 'EU'); UPDATE story SET line = 'twice'"
    )
    pipeline.wait_caught_up()
    with _writes(pipeline):
        for _ in range(3):
            report = _verify(pipeline)
            assert report.outcome is Outcome.EQUAL, report.as_json()
    pipeline.wait_caught_up()
    report = _verify(pipeline)
    skipped = TableOutcome.SKIPPED
    equal = {"people": TableOutcome.EQUAL, "bag": TableOutcome.EQUAL, "login": skipped, "story": skipped}
    assert (report.outcome, _outcomes(report)) == (Outcome.EQUAL, equal), report.as_json()
    found = {one.target.name: one for one in report.tables}
    people = found["people"]
    assert set(people.left_out) == {"email", "phone_start"}
    rows = source.execute("SELECT count(*) FROM person WHERE region = 'EU' AND k0 >= 0")[0][0]
    assert (people.source_rows, people.target_rows) == (rows, rows)
    assert "masked" in (found["login"].reason or "") and "history" in (found["story"].reason or "")

    _damage(pipeline, mode)
    report = _verify(pipeline)
    people = next(one for one in report.tables if one.target.name == "people")
    assert [[key[0] for key in keys] for keys in (people.keys.changed, people.keys.missing, people.keys.extra)] == [
        ["69", "71", "73"],
        ["101", "103"] if mode == "mirror" else ["101", "102", "103"],
        ["4", "9000"],
    ], report.as_json()
    assert _outcomes(report) == {**equal, "people": TableOutcome.DIFFERENT, "bag": TableOutcome.DIFFERENT}
    _assert_repaired(pipeline, mode)


def _damage(pipeline: PipelineHarness, mode: str) -> None:
    """Change what is compared, and what is not."""
    target = pipeline.targets["target"]
    target.execute("UPDATE people SET full_name = 'other' WHERE number = 69")
    target.execute("UPDATE people SET city = 'other' WHERE number = 71")
    target.execute("UPDATE people SET email = 'not seen', phone_start = NULL WHERE number = 79")
    target.execute("UPDATE people SET note = 'unmasked' WHERE number = 73")
    target.execute("DELETE FROM people WHERE number IN (101, 103)")
    # 4 is at the source, outside of the filter; of 9000 the source has nothing.
    flag, value = (", _rosetta_deleted", ", false") if mode == "soft_delete" else ("", "")
    target.execute("DELETE FROM people WHERE number = 4")
    target.execute(f"INSERT INTO people (number, region{flag}) VALUES (4, 'EU'{value}), (9000, 'EU'{value})")
    target.execute("DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag)")
    if mode == "soft_delete":
        target.execute("UPDATE people SET _rosetta_deleted = true WHERE number = 102")


def _assert_repaired(pipeline: PipelineHarness, mode: str) -> None:
    target = pipeline.targets["target"]
    repaired = _repair(pipeline)
    assert list(repaired.refused) == ["target: public.bag"] and "no key" in repaired.refused["target: public.bag"]
    assert (repaired.upserted_rows, repaired.deleted_rows) == (5 if mode == "mirror" else 6, 2), repaired.as_json()
    assert repaired.after is not None and repaired.after.outcome is Outcome.EQUAL, repaired.as_json()
    assert _outcomes(_verify(pipeline))["people"] is TableOutcome.EQUAL
    assert target.execute(f"SELECT count(*) FROM people p WHERE p::text LIKE '%{CANARY}%'") == [(0,)]
    hashes = dict(target.execute("SELECT number, email FROM people WHERE number IN (69, 70, 101)"))
    assert all(len(one) == 64 for one in hashes.values()) and set(hashes) == {69, 101}
    masked = "SELECT full_name, phone_start, city, note FROM people WHERE number = 101"
    assert target.execute(masked) == [("name 101", "0123", "it's", None)]
    if mode == "soft_delete":
        gone = (
            "SELECT number, _rosetta_deleted_at IS NOT NULL FROM people WHERE _rosetta_deleted AND number IN (4, 9000)"
        )
        assert sorted(target.execute(gone)) == [(4, True), (9000, True)]
        back = "SELECT _rosetta_deleted, _rosetta_deleted_at FROM people WHERE number = 102"
        assert target.execute(back) == [(False, None)]
    # The stream goes on with the same rows.
    pipeline.source.execute("UPDATE person SET email = 'canary again', region = 'EU' WHERE id IN (4, 69, 102)")
    pipeline.wait_caught_up()
    assert _outcomes(_verify(pipeline))["people"] is TableOutcome.EQUAL
