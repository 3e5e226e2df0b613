"""A pipeline into the strict stand-in: initial load, every operation, schema changes, restart, kills."""

from __future__ import annotations

import random
import threading

import pytest

from tests.support.snowflake_pipeline import SnowflakePipeline
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(900)]

SETUP = """
CREATE TABLE item (id int PRIMARY KEY, name text, price numeric(10,2), tags text[], big numeric, data jsonb,
                   raw bytea, at timestamptz, day date, clock time, moment timestamp, ratio float8, flag bool, code char(5),
                   net inet, span int4range);
INSERT INTO item SELECT i, 'item ' || i || E'\\n"\\\\é😀', i / 7.0, ARRAY['a', NULL, 'b,c'], 12345678901234567890123456789012345678901234.5,
    '{"a": [1, 2.5, null], "b": "x\\"y"}', '\\x00ff10', '2024-02-29 23:59:59.123456+05:30', '2024-02-29', '23:59:59.5',
    '1999-12-31 12:00:00', i / 3.0, i % 2 = 0, 'ab', '10.0.0.0/8', '[1,5)' FROM generate_series(1, 3000) i;
CREATE TABLE log (at int, line text);
ALTER TABLE log REPLICA IDENTITY FULL;
INSERT INTO log SELECT i % 10, 'line ' || i % 10 FROM generate_series(1, 100) i;
CREATE TABLE emptied (a int, b int, c text, PRIMARY KEY (a, b));
INSERT INTO emptied SELECT i, i % 3, repeat('x', 10) FROM generate_series(1, 100) i;
CREATE TABLE toast (id int PRIMARY KEY, long text, n int);
ALTER TABLE toast ALTER long SET STORAGE EXTERNAL;
INSERT INTO toast SELECT i, repeat(chr(64 + i), 9000), 0 FROM generate_series(1, 20) i;
"""


@pytest.mark.parametrize("engine", ["debezium", pytest.param("pgoutput", marks=pytest.mark.slow)])
def test_load_every_operation_and_schema_changes_end_equal(snowflake_pipeline: SnowflakePipeline, engine: str) -> None:
    """Rows from before, and everything that can happen to them after the start."""
    pipeline, source = snowflake_pipeline, snowflake_pipeline.source
    pipeline.engine = engine
    source.execute(SETUP)
    pipeline.configure(settings={"heartbeat_seconds": 1, "load_chunk_bytes": 1 << 20, "load_workers": 2})
    pipeline.start()
    pipeline.wait_landed()
    pipeline.assert_landed_once()
    pipeline.assert_same()
    flags = "is_exists_table_landing AND is_exists_stream AND is_exists_task AND is_exists_table_destination"
    count = f"SELECT count(*) FROM pipelines_destination_table_sync WHERE {flags}"
    wait_for(lambda: pipeline.config.execute(count) == [(4,)], 10, "the flags of the tables")

    source.execute("INSERT INTO item (id, name) VALUES (6001, 'new'), (6002, NULL)")
    source.execute("UPDATE item SET price = price + 1, data = '[]', raw = '\\x', net = '::1' WHERE id % 2 = 0")
    source.execute("DELETE FROM item WHERE id % 5 = 0")
    source.execute("UPDATE item SET id = id + 100000 WHERE id BETWEEN 11 AND 13")
    source.execute("DELETE FROM log WHERE line = 'line 3'")
    source.execute("INSERT INTO log SELECT 1, 'line 1' FROM generate_series(1, 3)")
    source.execute("UPDATE log SET line = NULL WHERE line = 'line 4'")
    source.execute("TRUNCATE emptied; INSERT INTO emptied VALUES (1, 2, 'after')")
    source.execute("UPDATE toast SET n = 1 WHERE id < 10; UPDATE toast SET id = id + 100 WHERE id IN (3, 4)")
    source.execute("UPDATE toast SET long = 'short', n = 2 WHERE id = 5; UPDATE toast SET n = 3 WHERE id = 5")
    pipeline.wait_landed()
    pipeline.assert_landed_once()
    pipeline.assert_same()

    source.execute("ALTER TABLE emptied ADD d int DEFAULT 5; INSERT INTO emptied VALUES (7, 7, 'with', 8)")
    source.execute("ALTER TABLE emptied RENAME c TO named; UPDATE emptied SET named = 'n' WHERE a = 7")
    source.execute("ALTER TABLE log ALTER at TYPE text; INSERT INTO log VALUES ('text', 'now')")
    pipeline.wait_landed()
    wait_for(lambda: _same(pipeline), 60, "the table that changed its type to be loaded again")
    assert pipeline.stop() == 0
    source.execute("DELETE FROM item WHERE id < 50; INSERT INTO log VALUES ('down', 'down')")
    pipeline.start()
    pipeline.wait_landed()
    pipeline.assert_same()


def _same(pipeline: SnowflakePipeline) -> bool:
    pipeline.assert_same()
    return True


class Load(threading.Thread):
    """Updates, inserts, deletes, equal rows without a key."""

    def __init__(self, pipeline: SnowflakePipeline) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self._pipeline = pipeline
        self._random = random.Random(3)

    def run(self) -> None:
        connection = self._pipeline.source.connect()
        try:
            with connection.cursor() as cursor:
                while not self.stopping.wait(0.02):
                    one = self._random.randint(1, 300)
                    cursor.execute("UPDATE item SET price = %s WHERE id = %s", (one, one))
                    cursor.execute("INSERT INTO log VALUES (%s, 'same')", (one % 4,))
                    cursor.execute(
                        "DELETE FROM log WHERE ctid IN (SELECT ctid FROM log WHERE at = %s LIMIT 1)", (one % 7,)
                    )
                    if one < 15:
                        cursor.execute("TRUNCATE emptied")
                    elif one < 60:
                        cursor.execute("INSERT INTO emptied SELECT i, %s, 'bulk' FROM generate_series(1, 200) i "
                                       "ON CONFLICT DO NOTHING", (one,))  # fmt: skip
        finally:
            connection.close()


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)], ids=["three-kills", "thirty-kills"])
def test_kills_and_faults_lose_and_repeat_nothing(snowflake_pipeline: SnowflakePipeline, kills: int) -> None:
    """The process dies again and again while the service fails in every way it can."""
    pipeline, server = snowflake_pipeline, snowflake_pipeline.server
    pipeline.source.execute(SETUP)
    pipeline.engine = "pgoutput"
    pipeline.configure(settings={"heartbeat_seconds": 1})
    pipeline.start()
    pipeline.wait_landed()
    server.chaos, server.commit_seconds = 0.2, 0.05
    chance = random.Random(kills)
    load = Load(pipeline)
    load.start()
    try:
        for _ in range(kills):
            before = pipeline.reached()

            def moved(before: int = before) -> bool:
                pipeline.ensure_running()
                return pipeline.reached() > before

            wait_for(moved, 180, "the stream to move")
            threading.Event().wait(chance.uniform(0.0, 2.0))
            pipeline.kill()
            pipeline.start()
            if chance.random() < 0.5:
                server.sql.run_tasks()
    finally:
        load.stopping.set()
    load.join(30)
    pipeline.wait_landed(300, revive=True)
    pipeline.assert_landed_once()
    pipeline.assert_same()
    assert sum(server.seen.values()) >= kills
