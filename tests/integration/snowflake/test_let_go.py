"""A table that is taken out of a pipeline into the strict stand-in, and comes back; the whole pipeline removed."""

from __future__ import annotations

import pytest

from cdc_runner.catalog.database import session_scope
from cdc_runner.services.pipeline import remove_pipeline
from cdc_runner.services.pipeline_edit import add_table, remove_table
from cdc_runner.services.verify import Request, verify_pipeline
from tests.support.snowflake_pipeline import SnowflakePipeline

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]

SETUP = """
CREATE TABLE stays (id int PRIMARY KEY, v text);
INSERT INTO stays VALUES (1, 'a');
CREATE TABLE goes (id int PRIMARY KEY, v text);
INSERT INTO goes VALUES (1, 'a'), (2, 'b');
"""


def objects(pipeline: SnowflakePipeline) -> set[str]:
    sql = pipeline.server.sql
    found = {name for (name,) in sql.query("SELECT table_name FROM duckdb_tables()")}
    found |= {name.rpartition(".")[2].strip('"') for name in (*sql.tasks, *sql.streams)}
    return {name for name in found if not name.startswith("ROSETTA_") or "GOES" in name or "STAYS" in name}


def test_what_was_made_for_a_table_goes_with_it_and_comes_back(snowflake_pipeline: SnowflakePipeline) -> None:
    pipeline, source = snowflake_pipeline, snowflake_pipeline.source
    source.execute(SETUP)
    pipeline.engine = "pgoutput"
    pipeline.configure(syncs=[{"table": "public.stays"}, {"table": "public.goes"}], settings={"heartbeat_seconds": 1})
    pipeline.start()
    pipeline.wait_landed()
    source.execute("UPDATE goes SET v = 'landed, not merged' WHERE id = 2")
    pipeline.wait_landed()
    assert pipeline.stop() == 0
    rest = {"STAYS", "LANDING_STAYS", "ROSETTA_STREAM_STAYS", "ROSETTA_MERGE_STAYS"}
    made = {"LANDING_GOES", "ROSETTA_STREAM_GOES", "ROSETTA_MERGE_GOES"}
    assert objects(pipeline) == rest | made | {"GOES"}
    with pipeline.catalog() as (engine, keyring):
        with session_scope(engine) as session:
            remove_table(session, "shop", "lake", "public.goes", None, keyring)
        pipeline.start()
        source.execute("INSERT INTO goes VALUES (3, 'missed'); INSERT INTO stays VALUES (2, 'b')")
        pipeline.wait_landed()
        assert objects(pipeline) == rest | {"GOES"}
        rows = pipeline.server.sql.query('SELECT * FROM "ANALYTICS"."SHOP"."GOES" ORDER BY 1')
        assert rows == [(1, "a"), (2, "landed, not merged")]
        report = verify_pipeline(engine, Request("shop"), keyring)
        assert {one.source.name: one.outcome.value for one in report.tables} == {"stays": "EQUAL", "goes": "SKIPPED"}
        assert pipeline.stop() == 0
        with session_scope(engine) as session:
            add_table(session, "shop", "lake", {"table": "public.goes"}, keyring)
        pipeline.start()
        pipeline.wait_landed()
        assert objects(pipeline) == rest | made | {"GOES"}
        pipeline.assert_same()
        source.execute("DELETE FROM goes WHERE id = 1")
        pipeline.wait_landed()
        assert pipeline.stop() == 0
        with session_scope(engine) as session:
            pipeline.config.execute("UPDATE pipelines SET status = 'PAUSE'")
            removal = remove_pipeline(session, "shop", keyring)
    assert not removal.left_over
    assert any("LANDING_GOES" in one for one in removal.removed)
    assert objects(pipeline) == {"STAYS", "GOES"}
    rows = pipeline.server.sql.query('SELECT "ID" FROM "ANALYTICS"."SHOP"."GOES" ORDER BY 1')
    assert rows == [(2,), (3,)]
