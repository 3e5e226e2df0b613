"""Types, keys and generated columns that change while the stream runs, one pipeline for all of them."""

from __future__ import annotations

import pytest

from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.slow, pytest.mark.timeout(420)]

SETUP = """
CREATE SCHEMA "Odd.types";
CREATE TYPE "Odd.types".mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (x int, m "Odd.types".mood);
CREATE DOMAIN small AS int NOT NULL CHECK (VALUE < 10);
CREATE TABLE t (id int PRIMARY KEY, m "Odd.types".mood, p pair, s small);
INSERT INTO t SELECT i, 'ok', ROW(i, 'sad')::pair, 5 FROM generate_series(1, 20) i;
CREATE TABLE keyed (id int PRIMARY KEY, a int NOT NULL, b text);
INSERT INTO keyed SELECT i, i * 10, 'b' FROM generate_series(1, 5) i;
"""

CHANGES = {
    "label, and a column that uses it": [
        """ALTER TYPE "Odd.types".mood ADD VALUE 'best'""",
        """ALTER TABLE t ADD m2 "Odd.types".mood DEFAULT 'best'""",
        "UPDATE t SET m2 = 'sad' WHERE id = 1",
    ],
    "renamed label": [
        """ALTER TYPE "Odd.types".mood RENAME VALUE 'sad' TO 'unhappy'""",
        "UPDATE t SET m = 'unhappy' WHERE id = 2",
    ],
    "attribute of a composite": ["ALTER TYPE pair ADD ATTRIBUTE note text", "UPDATE t SET p.note = 'n' WHERE id = 3"],
    "looser domain": [
        "ALTER DOMAIN small DROP CONSTRAINT small_check",
        "ALTER DOMAIN small DROP NOT NULL",
        "UPDATE t SET s = 50 WHERE id = 4",
        "UPDATE t SET s = NULL WHERE id = 5",
    ],
    "type of an extension": [
        'CREATE EXTENSION citext SCHEMA "Odd.types"',
        """ALTER TABLE t ADD ci "Odd.types".citext DEFAULT 'MiXed'""",
        "UPDATE t SET ci = 'Other' WHERE id = 6",
    ],
    "range over a new type": [
        "CREATE TYPE span AS RANGE (subtype = numeric)",
        "ALTER TABLE t ADD r span, ADD rs span_multirange[]",
        "UPDATE t SET r = '[1.5,2)' WHERE id = 7",
    ],
    "generated column": [
        "ALTER TABLE t ADD twice bigint GENERATED ALWAYS AS (id * 2) STORED",
        "INSERT INTO t (id, s) VALUES (101, 1)",
    ],
    "generated no more": ["ALTER TABLE t ALTER twice DROP EXPRESSION", "UPDATE t SET twice = -1 WHERE id = 8"],
    "other primary key": [
        "ALTER TABLE keyed DROP CONSTRAINT keyed_pkey, ADD PRIMARY KEY (a)",
        "UPDATE keyed SET id = 1 WHERE a = 50",
        "DELETE FROM keyed WHERE a = 10",
    ],
    "key column dropped": [
        "ALTER TABLE keyed DROP a, ADD c serial PRIMARY KEY",
        "UPDATE keyed SET b = 'c' WHERE c = 1",
    ],
    "no key any more": [
        "ALTER TABLE keyed DROP CONSTRAINT keyed_pkey",
        "ALTER TABLE keyed REPLICA IDENTITY FULL",
        "INSERT INTO keyed SELECT * FROM keyed",
        "DELETE FROM keyed WHERE ctid = (SELECT min(ctid) FROM keyed)",
    ],
}  # fmt: skip


def test_types_keys_and_generated_columns_follow(pipeline: PipelineHarness) -> None:
    source = pipeline.source
    source.execute(SETUP)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    for name, statements in CHANGES.items():
        for statement in statements:
            source.execute(statement)
        try:
            wait_for(lambda: not pipeline.differences(), 60, f"the target after: {name}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{pipeline.log_text()[-2500:]}") from None
        pipeline.wait_caught_up(60)
