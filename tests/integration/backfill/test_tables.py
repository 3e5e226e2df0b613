"""Backfills of tables of every sort: keys of any type, leaves, shapes, filters, no key, changes meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.backfills import Backfills
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]

SORTS = """
CREATE EXTENSION citext;
CREATE TYPE colour AS ENUM ('red', 'green');
CREATE TABLE composite (a text, "B b" numeric(10, 2), c timestamptz, v json, w point, PRIMARY KEY (c, a, "B b"));
INSERT INTO composite SELECT 'a' || i % 7, i / 3.0, '2024-01-01'::timestamptz + i * interval '1 hour',
    json_build_object('i', i), point(i, -i) FROM generate_series(1, 500) i;
CREATE TABLE named (n citext PRIMARY KEY, c colour, code char(6), xs int[],
    g int GENERATED ALWAYS AS (length(code)) STORED);
INSERT INTO named SELECT 'Name' || i, 'red', 'c' || i, ARRAY[i, NULL] FROM generate_series(1, 500) i;
CREATE TABLE parts (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
INSERT INTO parts SELECT i, '2024-01-01'::date + i % 60, 'v' FROM generate_series(1, 600) i;
CREATE TABLE keys_only (a uuid, b bytea, PRIMARY KEY (a, b));
INSERT INTO keys_only SELECT md5(i::text)::uuid, int4send(i) FROM generate_series(1, 300) i;
"""
DAMAGE = """
SET session_replication_role = replica;
UPDATE composite SET v = '{}', w = point(0, 0) WHERE a = 'a1'; DELETE FROM composite WHERE a = 'a2';
INSERT INTO composite VALUES ('extra', 0, now(), NULL, NULL);
UPDATE named SET code = 'x', xs = NULL WHERE n < 'name3'; DELETE FROM named WHERE n > 'name4';
INSERT INTO named VALUES ('extra', 'green', 'e', NULL);
UPDATE parts SET v = 'wrong' WHERE id % 3 = 0; DELETE FROM parts WHERE id % 5 = 0;
INSERT INTO parts VALUES (9999, '2024-01-05', 'e');
DELETE FROM keys_only WHERE b < '\\x00000064'; INSERT INTO keys_only VALUES (md5('e')::uuid, '\\x00');
"""


def _ready(pipeline: PipelineHarness, setup: str, **fields: Any) -> Backfills:
    pipeline.source.execute(setup)
    pipeline.configure(**fields)
    pipeline.start()
    pipeline.wait_caught_up(180)
    return Backfills(pipeline)


@pytest.mark.both_engines
def test_resync_of_every_sort_of_key(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, SORTS)
    pipeline.targets["target"].execute(DAMAGE)
    tables = ("composite", "named", "parts", "keys_only")
    started = [backfills.start(f"public.{name}", mode="resync") for name in tables]
    for one in started:
        assert backfills.wait(one)["deleted"] == 1
    pipeline.wait_caught_up()
    pipeline.assert_equal()


def test_a_filter_says_which_rows_are_copied(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, "CREATE TABLE t (id int PRIMARY KEY, r text, v int);"
                       "INSERT INTO t SELECT i, (ARRAY['EU', 'US'])[i % 2 + 1], i "
                       "FROM generate_series(1, 100) i")  # fmt: skip
    target = pipeline.targets["target"]
    target.execute("UPDATE t SET v = -1")
    form = {"all": [{"column": "r", "op": "=", "value": "EU"}, {"any": [
        {"column": "id", "op": "<=", "value": 10}, {"column": "id", "op": "between", "value": [20, 29]}]}]}  # fmt: skip
    done = backfills.wait(backfills.start("public.t", filter=form))
    assert (done["rows"], done["changed"]) == (10, 10)
    fixed = target.execute("SELECT array_agg(id ORDER BY id) FROM t WHERE v <> -1")[0][0]
    assert fixed == [2, 4, 6, 8, 10, 20, 22, 24, 26, 28]
    # What looks like SQL in a value is a value.
    evil = {"column": "r", "op": "=", "value": "' OR 1=1 --"}
    assert backfills.wait(backfills.start("public.t", filter=evil))["rows"] == 0


SHAPED = """
CREATE TABLE person (id int PRIMARY KEY, email text, region text, note text);
INSERT INTO person SELECT i, 'p' || i || '@example.com', (ARRAY['EU', 'US'])[i % 2 + 1], 'n' || i
FROM generate_series(1, 200) i;
"""
SHAPES: list[dict[str, object]] = [
    {"table": "public.person", "target": "eu", "filter": "region = 'EU'", "exclude": ["note"],
     "rename": {"email": "mail"}, "mask": {"email": "hash"}},
    {"table": "public.person", "target": "hashed", "mask": {"id": "hash", "note": "null"}},
    {"table": "public.person", "target": "kept", "mode": "soft_delete"},
]  # fmt: skip


def test_shapes_apply_to_backfills_as_they_do_to_the_stream(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, SHAPED, syncs=SHAPES)
    target = pipeline.targets["target"]
    pipeline.source.execute("DELETE FROM person WHERE id = 7")
    pipeline.wait_caught_up()

    def content() -> list[object]:
        names = ("eu", "hashed", "kept")
        return [target.execute(f"SELECT t::text FROM {name} t ORDER BY 1") for name in names]

    right = content()
    assert all(right)
    target.execute(
        "UPDATE eu SET mail = 'x'; DELETE FROM eu WHERE id < 50; INSERT INTO eu VALUES (900, 'x', 'EU');"
        "UPDATE hashed SET region = 'x'; INSERT INTO hashed VALUES ('extra', 'e', 'EU', NULL);"
        "UPDATE kept SET note = 'x' WHERE id <> 7; DELETE FROM kept WHERE id = 8"
    )
    for name in ("eu", "hashed", "kept"):
        backfills.wait(backfills.start(f"public.{name}", mode="resync"))
    assert content() == right
    # What the source does not have is marked there, not deleted.
    target.execute("INSERT INTO kept VALUES (901, 'e', 'EU', 'e', false, NULL)")
    assert backfills.wait(backfills.start("public.kept", mode="resync"))["deleted"] == 1
    assert target.execute("SELECT _rosetta_deleted, _rosetta_deleted_at IS NOT NULL FROM kept WHERE id = 901") == [
        (True, True)
    ]


def test_a_table_without_a_key_is_loaded_again(pipeline: PipelineHarness) -> None:
    backfills = _ready(pipeline, "CREATE TABLE bag (a int, b text); ALTER TABLE bag REPLICA IDENTITY FULL;"
                       "INSERT INTO bag SELECT i % 5, 'x' FROM generate_series(1, 500) i")  # fmt: skip
    pipeline.targets["target"].execute("DELETE FROM bag WHERE a = 1")
    one = backfills.start("public.bag", mode="resync")
    pipeline.source.execute("INSERT INTO bag SELECT 9, 'later' FROM generate_series(1, 50)")
    done = backfills.wait(one)
    assert done["mode"] == "RELOAD"
    pipeline.wait_caught_up()
    pipeline.assert_equal()
    assert done["rows"] in (500, 550)


def test_a_change_of_the_table_meanwhile_is_followed(pipeline: PipelineHarness) -> None:
    """A TRUNCATE, a rewrite and a new column while rows are read: what was read before them is not written."""
    settings = {"load_chunk_bytes": 1 << 20, "backfill_megabytes_per_second": 1, "backfill_workers": 1}
    setup = (
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat('v', 200) "
        "FROM generate_series(1, 20000) i"
    )
    backfills = _ready(pipeline, setup, settings=settings)
    target = pipeline.targets["target"]
    target.execute("UPDATE t SET v = 'wrong'; INSERT INTO t VALUES (99999, 'extra')")
    one = backfills.start("public.t", mode="resync")
    wait_for(lambda: backfills.show(one)["chunks_done"] >= 1, 120, "a chunk")
    pipeline.source.execute("ALTER TABLE t ADD w int DEFAULT 7; UPDATE t SET v = 'u' WHERE id = 20000")
    pipeline.source.execute("TRUNCATE t; INSERT INTO t SELECT i, repeat('w', 100) FROM generate_series(1, 3000) i")
    pipeline.source.execute("ALTER TABLE t ALTER id TYPE bigint; UPDATE t SET v = 'z' WHERE id = 1")
    pipeline.source.execute("INSERT INTO t VALUES (5000, 'n')")
    pipeline.wait_caught_up(120)
    target.execute("UPDATE t SET v = 'wrong' WHERE id BETWEEN 100 AND 200")
    shown = backfills.wait(one)
    backfills.wait(backfills.start("public.t", mode="resync"))
    pipeline.wait_caught_up()
    pipeline.assert_equal()
    assert shown["status"] == "COMPLETED"
