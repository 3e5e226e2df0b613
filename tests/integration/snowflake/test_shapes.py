"""Filters, chosen and renamed columns, masks, soft deletes and histories of a pipeline into the strict stand-in."""

from __future__ import annotations

import pytest

from tests.support.snowflake_pipeline import SnowflakePipeline

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]

TABLES = """
CREATE TABLE person (id int PRIMARY KEY, region text, name text, email text, phone text, ssn text, note text, day date);
ALTER TABLE person ALTER note SET STORAGE EXTERNAL;
INSERT INTO person SELECT i, CASE WHEN i % 2 = 0 THEN 'EU' ELSE 'US' END, 'name ' || i, 'secret' || i || '@example.org',
    '0049' || i, 'secret' || i, repeat('n' || i % 10, 3000), '2024-01-01' FROM generate_series(1, 40) i;
CREATE TABLE line (at int, what text, secret text);
ALTER TABLE line REPLICA IDENTITY FULL;
INSERT INTO line SELECT i % 3, 'w' || i % 3, 'secret' FROM generate_series(1, 9) i;
CREATE TABLE kept (id int PRIMARY KEY, v text);
INSERT INTO kept VALUES (1, 'a'), (2, 'b');
CREATE TABLE log (id int PRIMARY KEY, v text);
INSERT INTO log VALUES (1, 'a');
"""
SYNCS: list[dict[str, object]] = [
    {
        "table": "public.person",
        "target": "customers",
        "filter": "region = 'EU' AND note LIKE 'n%'",
        "exclude": ["day"],
        "rename": {"name": "full_name"},
        "mask": {"email": "hash", "phone": {"truncate": 4}, "ssn": "null", "id": "hash"},
    },
    {"table": "public.line", "filter": "at > 0", "mask": {"secret": {"constant": "-"}}},
    {"table": "public.kept", "mode": "soft_delete"},
    {"table": "public.log", "mode": "history", "rename": {"v": "value"}},
]
CHANGES = (
    "UPDATE person SET region = 'US' WHERE id = 2; UPDATE person SET region = 'EU' WHERE id IN (3, 5)",
    "UPDATE person SET name = 'new' WHERE id IN (4, 6, 7); UPDATE person SET id = 108 WHERE id = 8",
    "DELETE FROM person WHERE id IN (9, 10); UPDATE person SET note = 'x' WHERE id = 12",
    "INSERT INTO person SELECT 200, region, name, email, phone, ssn, note FROM person WHERE id = 4",
    "DELETE FROM line WHERE ctid IN (SELECT min(ctid) FROM line WHERE at < 2 GROUP BY at)",
    "UPDATE line SET at = 0 WHERE at = 2; INSERT INTO line VALUES (7, 'seven', 'secret')",
    "DELETE FROM kept WHERE id = 1; UPDATE kept SET v = 'c' WHERE id = 2; INSERT INTO kept VALUES (3, 'd')",
    "UPDATE log SET v = 'b'; DELETE FROM log; INSERT INTO log VALUES (1, 'c'); TRUNCATE log",
)


def rows(pipeline: SnowflakePipeline, columns: str, table: str) -> list[tuple[object, ...]]:
    pipeline.server.sql.run_tasks()
    return pipeline.server.sql.query(f'SELECT {columns} FROM "ANALYTICS"."SHOP"."{table}" ORDER BY ALL')


def assert_customers(pipeline: SnowflakePipeline) -> None:
    found = rows(pipeline, '"FULL_NAME", "REGION", "PHONE", "SSN", "NOTE"', "CUSTOMERS")
    wanted = pipeline.source.execute(
        "SELECT name, region, left(phone, 4), NULL, note FROM person WHERE region = 'EU' AND note LIKE 'n%'"
    )
    assert found == sorted(wanted)


def test_shapes_are_the_same_for_load_and_stream(snowflake_pipeline: SnowflakePipeline) -> None:
    pipeline, source = snowflake_pipeline, snowflake_pipeline.source
    source.execute(TABLES)
    pipeline.engine, pipeline.server.keep_bodies = "pgoutput", True
    pipeline.configure(syncs=SYNCS, settings={"heartbeat_seconds": 1})
    pipeline.start()
    pipeline.wait_landed()
    assert_customers(pipeline)
    hashes = rows(pipeline, '"FULL_NAME", "ID", "EMAIL"', "CUSTOMERS")
    assert all(len(str(one)) == 64 for row in hashes for one in row[1:])
    assert rows(pipeline, '"AT", "WHAT", "SECRET"', "LINE") == [(1, "w1", "-")] * 3 + [(2, "w2", "-")] * 3

    for statements in CHANGES:
        source.execute(statements)
    pipeline.wait_landed()
    assert_customers(pipeline)
    before = {str(name): email for name, _, email in hashes}
    after = {str(name): email for name, email in rows(pipeline, '"FULL_NAME", "EMAIL"', "CUSTOMERS")}
    assert {email == after[name] for name, email in before.items() if name in after} == {True}
    assert rows(pipeline, '"AT", "WHAT", "SECRET"', "LINE") == [(1, "w1", "-")] * 2 + [(7, "seven", "-")]
    marked = rows(pipeline, '"ID", "V", "_ROSETTA_DELETED", "_ROSETTA_DELETED_AT" IS NOT NULL', "KEPT")
    assert marked == [(1, "a", True, True), (2, "c", False, False), (3, "d", False, False)]
    history = [row[1:] for row in rows(pipeline, '"_ROSETTA_POSITION", "_ROSETTA_OP", "ID", "VALUE"', "LOG")]
    # The load begins with a truncate.
    assert history == [
        ("t", None, None),
        ("u", 1, "a"),
        ("u", 1, "b"),
        ("d", 1, None),
        ("u", 1, "c"),
        ("t", None, None),
    ]

    sent = pipeline.server.raw_bodies
    assert b"name 4" in sent
    assert b"secret" not in sent and b"2024-01-01" not in sent, "what is masked or left out never leaves the pipeline"

    source.execute("ALTER TABLE person ADD extra int DEFAULT 5; UPDATE person SET extra = 6 WHERE id = 4")
    source.execute("ALTER TABLE person ADD later text; UPDATE person SET name = 'after' WHERE id = 6")
    pipeline.wait_landed()
    ((total, filled, highest),) = rows(pipeline, 'count(*), count("EXTRA"), max("EXTRA")', "CUSTOMERS")
    assert total == filled and highest == 6
    assert_customers(pipeline)
