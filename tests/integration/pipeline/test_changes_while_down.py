"""Schema changes that a pipeline meets when the source's catalog is far ahead of the stream."""

from __future__ import annotations

import pytest

from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.slow, pytest.mark.timeout(420)]

SETUP = """
CREATE TABLE short_lived (id int PRIMARY KEY, a int);
CREATE TABLE renamed (id int PRIMARY KEY, a int, b text);
CREATE TABLE retyped (id int PRIMARY KEY, a int);
CREATE TABLE filled (id int PRIMARY KEY, a int);
CREATE TABLE again (id int PRIMARY KEY, a int);
INSERT INTO short_lived VALUES (1, 1); INSERT INTO renamed VALUES (1, 1, 'b'); INSERT INTO retyped VALUES (1, 1);
INSERT INTO filled VALUES (1, 1), (2, 2); INSERT INTO again VALUES (1, 1), (2, 2);
"""

WHILE_DOWN = """
CREATE TYPE mood AS ENUM ('sad');
ALTER TABLE short_lived ADD m mood;
INSERT INTO short_lived VALUES (2, 2, 'sad');
ALTER TABLE short_lived ADD n int[];
INSERT INTO short_lived VALUES (3, 3, 'sad', '{1,NULL}');
ALTER TABLE short_lived DROP m, DROP n;
DROP TYPE mood;
INSERT INTO short_lived VALUES (4, 4);
ALTER TABLE renamed ADD c int DEFAULT 5;
INSERT INTO renamed VALUES (2, 2, 'b', 2);
ALTER TABLE renamed RENAME c TO d;
INSERT INTO renamed VALUES (3, 3, 'b', 3);
ALTER TABLE renamed RENAME a TO c;
ALTER TABLE renamed RENAME d TO a;
INSERT INTO renamed VALUES (4, 4, 'b', 4);
ALTER TABLE retyped ALTER a TYPE bigint;
INSERT INTO retyped VALUES (2, 5000000000);
ALTER TABLE retyped ALTER a TYPE text;
INSERT INTO retyped VALUES (3, 'text');
ALTER TABLE filled ADD r uuid DEFAULT gen_random_uuid();
ALTER TABLE filled ALTER r DROP DEFAULT;
INSERT INTO filled VALUES (3, 3);
UPDATE again SET a = 3 WHERE id = 2;
DROP TABLE again;
CREATE TABLE again (id int PRIMARY KEY, b text);
INSERT INTO again VALUES (7, 'new');
"""


def test_changes_made_while_the_pipeline_was_down(pipeline: PipelineHarness) -> None:
    source = pipeline.source
    source.execute(SETUP)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    wait_for(lambda: not pipeline.differences(), 60, "the first load")
    pipeline.stop()
    for statement in WHILE_DOWN.strip().split("\n"):
        source.execute(statement)
    pipeline.start()
    try:
        wait_for(lambda: not pipeline.differences(), 120, "the target after the changes")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{pipeline.log_text()[-3000:]}") from None
