"""Schema changes in the stream, one pipeline for all of them."""

from __future__ import annotations

import pytest

from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.both_engines, pytest.mark.timeout(600)]

SETUP = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE t (id int PRIMARY KEY, a text, b int NOT NULL, c varchar(5), m mood);
INSERT INTO t SELECT i, 'a' || i, i, 'c', 'ok' FROM generate_series(1, 20) i;
CREATE TABLE volatile_default (id int PRIMARY KEY);
INSERT INTO volatile_default SELECT i FROM generate_series(1, 20) i;
CREATE TABLE again (id int PRIMARY KEY, v text);
INSERT INTO again SELECT i, 'first' FROM generate_series(1, 5) i;
"""

CHANGES = {
    "add with default": "ALTER TABLE t ADD d int DEFAULT 7; INSERT INTO t (id, b) VALUES (101, 1)",
    "add and fill in one transaction": (
        "BEGIN; INSERT INTO t (id, b) VALUES (102, 1); ALTER TABLE t ADD e timestamptz DEFAULT now(); "
        "INSERT INTO t (id, b, e) VALUES (103, 1, 'infinity'); COMMIT"
    ),
    "rename": "ALTER TABLE t RENAME a TO renamed; UPDATE t SET renamed = 'r' WHERE id = 1",
    "swap two names": (
        "BEGIN; ALTER TABLE t RENAME b TO x; ALTER TABLE t RENAME d TO b; ALTER TABLE t RENAME x TO d; COMMIT; "
        "UPDATE t SET b = 1000 WHERE id = 2"
    ),
    "widen a number": "ALTER TABLE t ALTER b TYPE bigint; UPDATE t SET b = 5000000000 WHERE id = 3",
    "widen a text": "ALTER TABLE t ALTER c TYPE varchar(50); UPDATE t SET c = repeat('w', 40) WHERE id = 4",
    "drop not null": "ALTER TABLE t ALTER d DROP NOT NULL; UPDATE t SET d = NULL WHERE id = 5",
    "new enum label": "ALTER TYPE mood ADD VALUE 'great'; UPDATE t SET m = 'great' WHERE id = 6",
    "new enum column": (
        "CREATE TYPE colour AS ENUM ('red', 'blue'); ALTER TABLE t ADD col colour DEFAULT 'red'; "
        "UPDATE t SET col = 'blue' WHERE id = 7"
    ),
    "drop and add the same name": (
        "ALTER TABLE t DROP c; ALTER TABLE t ADD c int[] DEFAULT '{1,2}'; UPDATE t SET c = '{3,NULL}' WHERE id = 8"
    ),
    "volatile default": (
        "ALTER TABLE volatile_default ADD r uuid NOT NULL DEFAULT gen_random_uuid(); "
        "INSERT INTO volatile_default VALUES (99)"
    ),
    "new table": "CREATE TABLE fresh (id int PRIMARY KEY, v text); INSERT INTO fresh VALUES (1, 'before')",
    "write to the new table": "INSERT INTO fresh VALUES (2, 'after'); UPDATE fresh SET v = 'changed' WHERE id = 1",
    "drop and create a table": (
        "DROP TABLE again; CREATE TABLE again (id int PRIMARY KEY, other numeric); INSERT INTO again VALUES (1, 1.10)"
    ),
}


def test_schema_changes_flow_and_are_recorded(pipeline: PipelineHarness) -> None:
    """Under the policy `evolve` the target follows; each change is in the history."""
    source = pipeline.source
    source.execute(SETUP)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    failed = []
    for name, change in CHANGES.items():
        for statement in change.split("; "):
            source.execute(statement) if "BEGIN" not in change else None
        if "BEGIN" in change:
            source.execute(change)
        try:
            # A new table, or one to load again, is noticed within seconds.
            wait_for(lambda: not pipeline.differences(), 60, f"the target after: {name}")
        except AssertionError as error:
            failed.append(f"{error}\n{pipeline.log_text()[-1500:]}")
            break
        pipeline.wait_caught_up(60)
    assert not failed, failed[0]
    history = [
        kind
        for row in pipeline.config.execute("SELECT changes_type FROM history_schema_evolution ORDER BY id")
        for kind in row[0].split(", ")
    ]
    assert {"NEW COLUMN", "RENAME COLUMN", "CHANGES TYPE", "DROP COLUMN"} <= set(history)
    kept = pipeline.targets["target"].execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 't'::regclass AND attname LIKE 'c\\_dropped\\_%'"
    )
    assert len(kept) == 1, "a dropped column is kept under another name when its name comes back"


@pytest.mark.parametrize("policy", ["pause", "freeze"])
def test_other_policies_hold_or_leave_out(pipeline: PipelineHarness, policy: str) -> None:
    """`pause` stops with the change named; `freeze` goes on with the columns it knows."""
    source = pipeline.source
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'x')")
    pipeline.configure(settings={"schema_policy": policy})
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute("ALTER TABLE t ADD b int")
    source.execute("INSERT INTO t VALUES (2, 'y', 3)")
    if policy == "pause":
        assert pipeline.wait_exit(120) == 78
        error = pipeline.config.execute("SELECT status, last_error FROM pipeline_metadata")[0]
        assert error[0] == "ERROR"
        assert "column b" in error[1]
        return
    pipeline.wait_caught_up()
    assert pipeline.targets["target"].execute("SELECT * FROM t ORDER BY id") == [(1, "x"), (2, "y")]
