"""A pipeline into Snowflake and its destination get other names: channels, offsets and tables stay theirs."""

from __future__ import annotations

import pytest

from cdc_runner.catalog.database import session_scope
from cdc_runner.services.pipeline import change_status, remove_pipeline
from cdc_runner.services.rename import rename_destination, rename_pipeline
from tests.support.dead_letters import operator
from tests.support.snowflake_pipeline import SnowflakePipeline

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]


def test_a_renamed_pipeline_goes_on_in_its_channels(snowflake_pipeline: SnowflakePipeline) -> None:
    pipeline = snowflake_pipeline
    pipeline.source.execute("CREATE TABLE item (id int PRIMARY KEY, name text)")
    pipeline.source.execute("INSERT INTO item SELECT i, 'n' || i FROM generate_series(1, 500) i")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_landed()
    assert pipeline.stop() == 0
    channels = set(pipeline.server.channels)
    pipeline.source.execute("UPDATE item SET name = 'later' WHERE id < 50; DELETE FROM item WHERE id = 100")
    with operator(pipeline) as engine, session_scope(engine) as session:
        rename_pipeline(session, "shop", "store")
        told = rename_destination(session, "lake", "pond")
        assert (told["identity"], told["pipelines"]) == ("lake", ["store"])
    pipeline.start()
    pipeline.wait_landed()
    pipeline.assert_landed_once()
    pipeline.assert_same()
    assert set(pipeline.server.channels) == channels
    assert pipeline.log_text().count('"load.snapshot"') == 1
    assert pipeline.stop() == 0
    with operator(pipeline) as engine, session_scope(engine) as session:
        change_status(session, "store", "PAUSE")
        removal = remove_pipeline(session, "store")
    assert removal.left_over == []
    assert not pipeline.server.channels
    assert pipeline.server.sql.query("SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'LANDING_%'") == []
