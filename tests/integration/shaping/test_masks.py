"""Masks, columns, soft deletes: what arrives, and that a masked value is nowhere."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]

CANARY = "canary"

SETUP = """
CREATE TABLE person (id int PRIMARY KEY, email text, phone text, ssn text, city varchar(20), note text, vip boolean);
ALTER TABLE person ALTER note SET STORAGE EXTERNAL;
INSERT INTO person SELECT i, 'canary' || i || '@example.com', '0123 canary' || i, 'canary ssn', 'canary city',
    repeat('canary', 1000), i % 2 = 0 FROM generate_series(1, 50) i;
CREATE TABLE login (email text PRIMARY KEY, at timestamptz, note text);
ALTER TABLE login ALTER note SET STORAGE EXTERNAL;
INSERT INTO login SELECT 'canary' || i || '@example.com', now(), repeat('n', 5000) FROM generate_series(1, 20) i;
"""

SYNCS: list[dict[str, object]] = [
    {
        "table": "public.person",
        "target": "people",
        "exclude": ["ssn"],
        "rename": {"phone": "phone_start"},
        "mask": {"email": "hash", "phone": {"truncate": 4}, "city": {"constant": "-"}, "note": "null"},
        "filter": {"column": "email", "op": "like", "value": "canary%"},
    },
    {"table": "public.login", "mask": {"email": "hash"}, "filter": "email NOT LIKE '%ry2%'", "mode": "soft_delete"},
]


def test_masked_values_reach_nothing(pipeline: PipelineHarness) -> None:
    """The values are searched for in the whole target database, the config database and every file of the home."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(SETUP)
    pipeline.engine = "pgoutput"
    pipeline.configure(syncs=SYNCS)
    pipeline.start()
    pipeline.wait_caught_up()
    first = dict(target.execute("SELECT id, email FROM people"))
    assert len(first) == 50 and len(set(first.values())) == 50 and all(len(one) == 64 for one in first.values())
    assert target.execute("SELECT DISTINCT phone_start, city, note FROM people") == [("0123", "-", None)]
    joined = target.execute("SELECT count(*) FROM people JOIN login USING (email) WHERE NOT _rosetta_deleted")
    assert joined == [(19 - 1,)], "equal values have equal hashes, also in a key"

    source.execute("UPDATE person SET vip = NOT vip, email = email || '.org' WHERE id <= 10")
    source.execute("UPDATE person SET email = 'gone' WHERE id = 11; UPDATE person SET note = 'canary' WHERE id = 12")
    source.execute("UPDATE person SET email = 'canary1@example.com' WHERE id = 1")
    source.execute("UPDATE login SET at = '2024-01-01' WHERE email = 'canary2@example.com'")
    source.execute("UPDATE login SET email = 'canary30@example.com' WHERE email = 'canary3@example.com'")
    source.execute("DELETE FROM login WHERE email = 'canary5@example.com'")
    source.execute("INSERT INTO person VALUES (100, 'canary100', 'canary', 'canary', 'canary', 'canary', true)")
    pipeline.wait_caught_up()
    later = dict(target.execute("SELECT id, email FROM people"))
    assert 11 not in later and later[1] == first[1] and later[2] != first[2] and later[20] == first[20]
    deleted = target.execute(
        "SELECT _rosetta_deleted, _rosetta_deleted_at IS NOT NULL, count(*) FROM login GROUP BY 1, 2"
    )
    assert sorted(deleted) == [(False, False, 17), (True, True, 2)]
    source.execute("TRUNCATE login; INSERT INTO login VALUES ('canary1@example.com', now(), 'back')")
    pipeline.wait_caught_up()
    assert target.execute("SELECT count(*), count(*) FILTER (WHERE _rosetta_deleted) FROM login") == [(19, 18)]

    pipeline.stop()
    _assert_nowhere(pipeline)


def _assert_nowhere(pipeline: PipelineHarness) -> None:
    for database in (pipeline.targets["target"], pipeline.config):
        with closing(database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
                "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
            for (table,) in cursor.fetchall():
                cursor.execute(
                    f"SELECT count(*) FROM {table} t WHERE t::text ~ %s", (CANARY + r"\d|canary (ssn|city)",)
                )
                assert cursor.fetchall() == [(0,)], table
    for file in pipeline.home.rglob("*"):
        if file.is_file():
            assert CANARY.encode() + b"1" not in file.read_bytes(), file


def test_a_changed_shape_loads_the_table_again(pipeline: PipelineHarness) -> None:
    """A filter that lets more through, then one less masked column, then a plain copy."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text);"
        "INSERT INTO t SELECT i, 'a', 'b' FROM generate_series(1, 20) i"
    )
    pipeline.engine = "pgoutput"
    pipeline.configure(syncs=[{"table": "public.t", "filter": "id > 15", "columns": ["id", "a"]}])
    pipeline.start()
    pipeline.wait_caught_up()
    assert target.execute("SELECT count(*) FROM t") == [(5,)]
    pipeline.stop()
    source.execute("INSERT INTO t VALUES (100, 'x', 'y')")
    _change_shape(pipeline, """filter_sql = '("id" > 10)'""", {"filter_columns": ["id"], "exclude": ["a"]})
    pipeline.start()
    pipeline.wait_caught_up()
    assert target.execute("SELECT count(*), min(b) FROM t") == [(11, "b")]
    assert target.execute("SELECT column_name FROM information_schema.columns WHERE table_name = 't'") == [
        ("id",),
        ("b",),
    ]
    pipeline.stop()
    _change_shape(pipeline, "filter_sql = NULL", {})
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal()
    source.execute("ALTER TABLE t RENAME b TO c; INSERT INTO t VALUES (101, 'x', 'z')")
    pipeline.wait_caught_up()
    pipeline.assert_equal()


def _change_shape(pipeline: PipelineHarness, assignment: str, shape: dict[str, object]) -> None:
    pipeline.config.execute(
        f"UPDATE pipelines_destination_table_sync SET {assignment}, shape = %s WHERE origin = 'DECLARED'",
        (json.dumps(shape),),
    )


def test_a_masked_column_that_is_renamed_stops_the_sync(pipeline: PipelineHarness) -> None:
    """Its values must not go over under the new name."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("CREATE TABLE t (id int PRIMARY KEY, email text); INSERT INTO t VALUES (1, 'canary1')")
    pipeline.engine = "pgoutput"
    pipeline.configure(syncs=[{"table": "public.t", "mask": {"email": "hash"}}])
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute("ALTER TABLE t RENAME email TO mail; INSERT INTO t VALUES (2, 'canary2')")
    assert pipeline.wait_exit(60) == 78
    assert "mask names email" in pipeline.config.execute("SELECT last_error FROM pipeline_metadata")[0][0]
    assert target.execute("SELECT count(*) FROM t WHERE t::text LIKE '%canary%'") == [(0,)]


@pytest.mark.both_engines
def test_rows_outside_the_filter_cost_a_soft_delete_nothing(pipeline: PipelineHarness) -> None:
    """What leaves or never meets the filter is a mark; for rows that the target never had, nothing is asked for."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("CREATE TABLE t (id int PRIMARY KEY, inside boolean, v int)")
    source.execute("INSERT INTO t SELECT i, i <= 100, 0 FROM generate_series(1, 20000) i")
    pipeline.configure(syncs=[{"table": "public.t", "filter": "inside", "mode": "soft_delete"}])
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute("UPDATE t SET v = 1; DELETE FROM t WHERE id > 15000; UPDATE t SET inside = false WHERE id <= 10")
    source.execute("UPDATE t SET inside = true WHERE id BETWEEN 201 AND 210; DELETE FROM t WHERE id = 50")
    pipeline.wait_caught_up()
    held = "SELECT id FROM t WHERE inside ORDER BY 1"
    assert target.execute("SELECT id FROM t WHERE NOT _rosetta_deleted ORDER BY 1") == source.execute(held)
    assert target.execute("SELECT count(*) FROM t WHERE _rosetta_deleted") == [(11,)]
    assert "apply.rows_fetched" not in pipeline.log_text()
