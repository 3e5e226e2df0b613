"""Publications that leave something out, from the start or altered later: refused by name, and what was lost comes again."""

from __future__ import annotations

import pytest

from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(400)]

SETUP = """
CREATE TABLE plain (id int PRIMARY KEY, a int, b text);
INSERT INTO plain SELECT i, i, 'b' FROM generate_series(1, 20) i;
CREATE TABLE computed (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
INSERT INTO computed SELECT i, i FROM generate_series(1, 20) i;
CREATE TABLE root (id int PRIMARY KEY, a int) PARTITION BY RANGE (id);
CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (1000);
INSERT INTO root SELECT i, i FROM generate_series(1, 20) i;
"""
WRITE = "; ".join(f"UPDATE {table} SET a = a + 1; DELETE FROM {table} WHERE id = (SELECT min(id) FROM {table})"
                  for table in ("plain", "computed", "root"))  # fmt: skip


def _publication(pipeline: PipelineHarness) -> str:
    return str(pipeline.config.execute("SELECT publication_name FROM sources")[0][0])


def _refused(pipeline: PipelineHarness) -> str:
    """Wait for the process to end because of the publication; return its words."""
    assert pipeline.wait_exit(90) == 78, pipeline.log_text()[-3000:]
    status, error = pipeline.config.execute("SELECT status, last_error FROM pipeline_metadata")[0]
    assert status == "ERROR"
    return str(error)


def test_a_publication_that_leaves_something_out_is_refused_at_the_start(pipeline: PipelineHarness) -> None:
    """Nothing is loaded from it, whichever part of a table it hides."""
    pipeline.engine = "pgoutput"
    pipeline.source.execute(SETUP)
    pipeline.configure()
    name = _publication(pipeline)
    generated = (
        ""
        if int(pipeline.source.execute("SHOW server_version_num")[0][0]) < 180000
        else ", publish_generated_columns = stored"
    )
    for made, named in [
        ("FOR ALL TABLES WITH (publish = 'insert')", "does not publish update, delete, truncate"),
        ("FOR ALL TABLES", "under the names of its partitions"),
        ("FOR TABLE plain (id, a) WITH (publish_via_partition_root = true)", "leaves out b of public.plain"),
        ("FOR TABLE plain WHERE (id > 5) WITH (publish_via_partition_root = true)", "only some rows of public.plain"),
        (f"FOR ALL TABLES WITH (publish_via_partition_root = true{generated})", "sends generated columns"),
    ]:
        if named == "sends generated columns" and not generated:
            continue
        pipeline.source.execute(f'CREATE PUBLICATION "{name}" {made}')
        pipeline.start()
        assert named in _refused(pipeline)
        pipeline.source.execute(f'DROP PUBLICATION "{name}"')
    assert not pipeline.targets["target"].execute("SELECT FROM pg_class WHERE relname = 'plain'")
    assert not pipeline.source.execute("SELECT FROM pg_replication_slots WHERE database = %s", (pipeline.source.name,))
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal()


def test_what_an_altered_publication_left_out_is_loaded_again(pipeline: PipelineHarness) -> None:
    """Altered while the pipeline is down, and while it streams: noticed within a cycle, equal once it is mended."""
    pipeline.engine = "pgoutput"
    source = pipeline.source
    source.execute(SETUP)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    name = _publication(pipeline)
    whole = f"ALTER PUBLICATION \"{name}\" SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)"
    for altered, mended, named in [
        (f"ALTER PUBLICATION \"{name}\" SET (publish = 'insert')", whole, "does not publish update, delete, truncate"),
        (f'ALTER PUBLICATION "{name}" SET (publish_via_partition_root = false)', whole, "the names of its partitions"),
    ]:
        assert pipeline.stop() == 0
        source.execute(altered)
        source.execute(WRITE)
        pipeline.start()
        assert named in _refused(pipeline)
        source.execute(mended)
        pipeline.start()
        pipeline.wait_caught_up()
        pipeline.assert_equal()
    source.execute(
        f'ALTER PUBLICATION "{name}" DROP TABLE plain; ALTER PUBLICATION "{name}" ADD TABLE plain WHERE (id > 5)'
    )
    source.execute(WRITE)
    assert "only some rows of public.plain" in _refused(pipeline)
    source.execute(f'ALTER PUBLICATION "{name}" DROP TABLE plain; ALTER PUBLICATION "{name}" ADD TABLE plain')
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal()


@pytest.mark.both_engines
def test_a_list_of_columns_stops_the_stream_at_once(pipeline: PipelineHarness) -> None:
    """The column is not taken as dropped, and no row arrives without its value."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("CREATE TABLE plain (id int PRIMARY KEY, a int, b text); INSERT INTO plain VALUES (1, 1, 'b')")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    name = _publication(pipeline)
    source.execute(f'ALTER PUBLICATION "{name}" SET TABLE plain (id, a)')
    source.execute("UPDATE plain SET a = 2; INSERT INTO plain VALUES (2, 2, 'b')")
    assert "leaves out b of public.plain" in _refused(pipeline)
    assert target.execute("SELECT id, a, b FROM plain") == [(1, 1, "b")]
    source.execute(f'ALTER PUBLICATION "{name}" SET TABLE plain')
    pipeline.config.execute("UPDATE pipelines SET status = 'REFRESH'")
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal()


def test_a_deferrable_key_is_no_replica_identity(pipeline: PipelineHarness) -> None:
    """Such a table stays out of the publication: in it, the source would refuse the application's updates."""
    pipeline.engine = "pgoutput"
    source = pipeline.source
    source.execute("CREATE TABLE plain (id int PRIMARY KEY)")
    source.execute("CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v int)")
    source.execute("CREATE TABLE late_full (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v int)")
    source.execute("ALTER TABLE late_full REPLICA IDENTITY FULL")
    source.execute("INSERT INTO late VALUES (1, 1), (2, 2); INSERT INTO late_full VALUES (1, 1), (2, 2)")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute("UPDATE late SET v = 5; UPDATE late_full SET id = 3 - id; DELETE FROM late WHERE id = 1")
    pipeline.wait_caught_up()
    left_out = (
        "SELECT source_table, load_state_reason FROM pipelines_destination_table_sync WHERE load_state = 'EXCLUDED'"
    )
    # What the tables are is reported about once a second.
    excluded = wait_for(lambda: pipeline.config.execute(left_out), 60, "the table to be reported as left out")
    assert [table for table, _ in excluded] == ["late"]
    assert "deferrable" in excluded[0][1]
    assert pipeline.targets["target"].execute("SELECT id, v FROM late_full ORDER BY id") == [(1, 2), (2, 1)]
