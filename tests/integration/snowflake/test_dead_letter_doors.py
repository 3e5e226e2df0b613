"""Dead letters of a Snowflake pipeline through the doors: while it runs, and while it is paused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis

from cdc_runner.destinations.letters import key_hash
from cdc_runner.services import dead_letters
from cdc_runner.services.dead_letters import Scope
from tests.support.dead_letters import operator, replay, status_of
from tests.support.servers import RedisServer
from tests.support.snowflake_pipeline import SnowflakePipeline
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.timeout(600)]

TABLES = """
CREATE TABLE visit (id int PRIMARY KEY, day date, note text);
INSERT INTO visit SELECT i, '2024-01-01'::date + i, 'n' || i FROM generate_series(1, 500) i;
INSERT INTO visit VALUES (501, 'infinity', 'for ever'), (502, '0044-03-15 BC', E'"ides"\\n\\\\');
CREATE TABLE note (at time, line text);
ALTER TABLE note REPLICA IDENTITY FULL;
INSERT INTO note VALUES ('12:00', 'noon'), ('24:00', 'midnight'), ('24:00', 'midnight');
"""


def days(pipeline: SnowflakePipeline) -> dict[int, str]:
    pipeline.server.sql.run_tasks()
    rows = pipeline.server.sql.query('SELECT "ID", CAST("DAY" AS VARCHAR) FROM "ANALYTICS"."SHOP"."VISIT"')
    return {int(key): day for key, day in rows}


def test_refused_rows_of_load_and_stream_go_through_the_doors(
    snowflake_pipeline: SnowflakePipeline, redis_client: redis.Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    pipeline, source = snowflake_pipeline, snowflake_pipeline.source
    source.execute(TABLES)
    pipeline.engine = "pgoutput"
    pipeline.configure(settings={"heartbeat_seconds": 1, "dead_letter_retry_seconds": 0})
    pipeline.environment["REDIS_URL"] = redis_server.url
    pipeline.start()
    pipeline.wait_landed()
    assert len(days(pipeline)) == 500
    wait_for(lambda: sorted(status_of(pipeline)) == [("note", 1, 2, 0), ("visit", 2, 2, 0)], 30, "the counts")

    source.execute("UPDATE visit SET note = 'later' WHERE id = 501; UPDATE visit SET day = 'infinity' WHERE id = 7")
    source.execute("UPDATE visit SET note = 'flows' WHERE id = 8; DELETE FROM note WHERE line = 'midnight'")
    pipeline.wait_landed()
    assert len(days(pipeline)) == 500
    with operator(pipeline) as engine:
        found = dead_letters.list_letters(engine, Scope("shop"))
        assert {(one["table"], one["operation"]) for one in found} == {("SHOP.visit", "put"), ("SHOP.note", "count")}
        assert "for ever" not in json.dumps(found) and len(found) == 8
        (ides,) = [one for one in found if one["reason"].startswith("column") and one["key_hash"] == key_hash(["502"])]
        one = dead_letters.inspect_letter(engine, Scope("shop", entry=ides["entry"]))
        assert one["values"] == {"id": "502", "day": "0044-03-15 BC", "note": '"ides"\n\\'}
        dead_letters.edit_letter(engine, Scope("shop", entry=ides["entry"]), {"day": "0044-03-15"})
        assert dead_letters.export_letters(engine, Scope("shop"), tmp_path / "letters.jsonl") == 8
        # The pipeline runs: it is asked.
        done = dead_letters.replay_letters(engine, Scope("shop", entry=ides["entry"]))[0]
        assert (done["keys_replayed"], done["keys_refused"]) == (1, 0)
        done = dead_letters.replay_letters(engine, Scope("shop", table="SHOP.note"))[0]
        assert (done["keys_replayed"], done["entries_replayed"]) == (1, 4)
    assert days(pipeline)[502] == "0044-03-15"
    wait_for(lambda: list(status_of(pipeline)) == [("visit", 2, 3, 0)], 30, "the counts to follow")

    source.execute("UPDATE visit SET day = '2030-01-01' WHERE id = 501")
    pipeline.wait_landed()
    assert pipeline.stop() == 0
    # Nobody runs the pipeline: the lease is taken for the time of the replay.
    result = replay(pipeline)
    assert (result["keys_replayed"], result["keys_refused"]) == (1, 1)
    assert days(pipeline)[501] == "2030-01-01"
    with operator(pipeline) as engine:
        assert dead_letters.purge_letters(engine, Scope("shop"), dry_run=False)[0]["entries"] == 1
    assert list(status_of(pipeline)) == []
    source.execute("UPDATE visit SET day = '2031-01-01' WHERE id = 7; DELETE FROM visit WHERE id = 502")
    pipeline.start()
    pipeline.wait_landed()
    pipeline.assert_landed_once()
    pipeline.assert_same()
