"""What a stream may bring, each in a small table of its own; one pipeline, so that the engine starts once."""

from __future__ import annotations

import re

import pytest

from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.both_engines, pytest.mark.timeout(600)]

BIG = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 400) i)"

SETUP = f"""
CREATE TABLE toast (id int PRIMARY KEY, note text, big text, doc jsonb, bin bytea, list text[]);
ALTER TABLE toast ALTER big SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL, ALTER bin SET STORAGE EXTERNAL,
    ALTER list SET STORAGE EXTERNAL;
INSERT INTO toast SELECT i, 'n', {BIG} || i, jsonb_build_object('k', {BIG}), {BIG}::bytea, ARRAY[{BIG}, NULL]
    FROM generate_series(1, 20) i;
CREATE TABLE toast_full (id int PRIMARY KEY, note text, big text);
ALTER TABLE toast_full ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
INSERT INTO toast_full SELECT i, 'n', {BIG} || i FROM generate_series(1, 5) i;
CREATE TABLE uniq (id int PRIMARY KEY, code text UNIQUE);
INSERT INTO uniq SELECT i, 'c' || i FROM generate_series(1, 10) i;
CREATE TABLE pair (a int, b int, v text, PRIMARY KEY (b, a));
INSERT INTO pair SELECT i, i, 'v' FROM generate_series(1, 10) i;
CREATE TABLE by_index (id int NOT NULL, other text);
CREATE UNIQUE INDEX by_index_id ON by_index (id);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id;
INSERT INTO by_index SELECT i, 'x' FROM generate_series(1, 10) i;
CREATE TABLE part (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
CREATE TABLE part_us PARTITION OF part FOR VALUES IN ('us');
INSERT INTO part SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, i FROM generate_series(1, 100) i;
CREATE TABLE gen (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
INSERT INTO gen (a) SELECT i FROM generate_series(1, 10) i;
CREATE SCHEMA "Odd Schema;--";
CREATE TABLE "Odd Schema;--"."a.b" ("select" int PRIMARY KEY, "Wei""rd ~/ç" text, "日本" text, "$1" text);
INSERT INTO "Odd Schema;--"."a.b" VALUES (1, 'x', 'ü', NULL);
CREATE TABLE "Odd Schema;--"."a_b" (id int PRIMARY KEY);
CREATE TABLE "UPPER" (id int PRIMARY KEY, v text);
CREATE TABLE upper (id int PRIMARY KEY, v text);
CREATE TABLE ci (name text COLLATE "C" PRIMARY KEY, v int);
CREATE TABLE nulls (id int PRIMARY KEY, a int, b text);
CREATE TABLE no_key (a int, b text);
ALTER TABLE no_key REPLICA IDENTITY FULL;
INSERT INTO no_key SELECT i % 3, NULLIF('t' || i % 2, 't0') FROM generate_series(1, 30) i;
CREATE TABLE unsafe (a int);
"""

CHANGES = [
    # TOAST: untouched values stay, also through a key change and through several events of one batch.
    "UPDATE toast SET note = 'changed' WHERE id <= 10",
    "UPDATE toast SET id = id + 1000 WHERE id BETWEEN 5 AND 7",
    "UPDATE toast SET big = 'small', note = 'a' WHERE id = 11; UPDATE toast SET note = 'b' WHERE id = 11",
    "BEGIN; UPDATE toast SET note = 'x' WHERE id = 12; UPDATE toast SET id = 2012 WHERE id = 12; "
    "UPDATE toast SET note = 'y' WHERE id = 2012; COMMIT",
    "BEGIN; DELETE FROM toast WHERE id = 13; UPDATE toast SET id = 13 WHERE id = 14; COMMIT",
    "UPDATE toast_full SET note = 'f'; UPDATE toast_full SET id = id + 50 WHERE id = 2; DELETE FROM toast_full WHERE id = 3",
    # Unique values that change places.
    "BEGIN; UPDATE uniq SET code = 'tmp' WHERE id = 1; UPDATE uniq SET code = 'c1' WHERE id = 2; "
    "UPDATE uniq SET code = 'c2' WHERE id = 1; COMMIT",
    # Keys: swap, part of a composite one.
    "BEGIN; UPDATE pair SET a = -1 WHERE a = 1 AND b = 1; UPDATE pair SET a = 1, b = 1 WHERE a = 2; "
    "UPDATE pair SET a = 2, b = 2 WHERE a = -1; COMMIT; UPDATE pair SET b = b + 100 WHERE b > 5 AND b < 50",
    "UPDATE by_index SET other = 'y' WHERE id < 5; UPDATE by_index SET id = id + 100 WHERE id > 8; "
    "DELETE FROM by_index WHERE id = 6",
    # Partitions: rows that move between leaves.
    "UPDATE part SET region = 'us' WHERE id = 2; UPDATE part SET v = v + 1; DELETE FROM part WHERE id % 7 = 0",
    "UPDATE gen SET a = a + 5 WHERE id > 3; INSERT INTO gen (a) VALUES (77)",
    """UPDATE "Odd Schema;--"."a.b" SET "Wei""rd ~/ç" = E'tab\\t, line\\n, \\\\N, \\\\. , "q" \\'q\\' 😀';
       INSERT INTO "Odd Schema;--"."a.b" VALUES (2, '', NULL, '\\N'); INSERT INTO "Odd Schema;--"."a_b" VALUES (7)""",
    """INSERT INTO "UPPER" VALUES (1, 'U'); INSERT INTO upper VALUES (1, 'u')""",
    "INSERT INTO nulls VALUES (1, NULL, NULL), (2, 0, ''); UPDATE nulls SET a = NULL WHERE id = 2",
    # The same key several times in one transaction and over several.
    "BEGIN; INSERT INTO ci VALUES ('k', 1); UPDATE ci SET v = 2; DELETE FROM ci; INSERT INTO ci VALUES ('k', 3); COMMIT",
    "BEGIN; INSERT INTO ci VALUES ('gone', 1); DELETE FROM ci WHERE name = 'gone'; COMMIT",
    # Aborted parts never arrive.
    "BEGIN; INSERT INTO ci VALUES ('s1', 1); SAVEPOINT a; INSERT INTO ci VALUES ('s2', 2); ROLLBACK TO a; "
    "INSERT INTO ci VALUES ('s3', 3); COMMIT",
    "BEGIN; INSERT INTO ci VALUES ('rolled back', 1); ROLLBACK",
    "BEGIN; INSERT INTO ci VALUES ('prepared', 1); PREPARE TRANSACTION 'p1'",
    "COMMIT PREPARED 'p1'",
    # A table without a key: equal rows are counted.
    "DELETE FROM no_key WHERE ctid IN (SELECT ctid FROM no_key WHERE a = 1 LIMIT 3)",
    "UPDATE no_key SET b = 'u' WHERE a = 2 AND b IS NULL; INSERT INTO no_key VALUES (NULL, NULL), (NULL, NULL), (1, '')",
    "TRUNCATE uniq, pair; INSERT INTO pair VALUES (9, 9, 'after')",
]


def test_every_kind_of_change_ends_equal(pipeline: PipelineHarness) -> None:
    """Each change alone, then all of them between two stops, so that they come in one batch."""
    source = pipeline.source
    source.execute(SETUP)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    known = {table.name for table in _compared(pipeline)}
    assert "unsafe" not in known, "a table whose updates would fail once published must stay out"
    pipeline.assert_equal(tables=_pairs(pipeline))
    with_errors = []
    for change in CHANGES:
        _run(pipeline, change)
        pipeline.wait_caught_up(60)
        if pipeline.differences(tables=_pairs(pipeline)):
            with_errors.append(change)
    assert not with_errors
    pipeline.stop()
    source.execute("TRUNCATE toast, toast_full, by_index, part, no_key, ci, nulls, uniq, pair")
    source.execute("; ".join(line for line in SETUP.split(";\n") if line.startswith("INSERT") and "gen" not in line[:16]
                             and "Odd" not in line))  # fmt: skip
    for change in CHANGES:
        if "Odd" not in change and "UPPER" not in change:
            _run(pipeline, change)
    pipeline.start()
    pipeline.wait_caught_up()
    pipeline.assert_equal(tables=_pairs(pipeline))
    excluded = pipeline.config.execute(
        "SELECT source_table, load_state_reason FROM pipelines_destination_table_sync WHERE load_state = 'EXCLUDED'"
    )
    assert [row[0] for row in excluded] == ["unsafe"]
    assert "UPDATE" in excluded[0][1]
    source.execute("INSERT INTO unsafe VALUES (1); UPDATE unsafe SET a = 2")


def test_a_row_that_moves_is_written_whatever_the_target_holds(pipeline: PipelineHarness) -> None:
    """With an unchanged TOAST value, under neither its old key nor its new one, or under both: as in a resumed load."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute(
        "CREATE TABLE moved (id int PRIMARY KEY, note text, big text); ALTER TABLE moved ALTER big SET STORAGE EXTERNAL; "
        f"INSERT INTO moved SELECT i, 'n', {BIG} || i FROM generate_series(1, 4) i"
    )
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    target.execute("DELETE FROM moved WHERE id IN (1, 4); INSERT INTO moved VALUES (102, 'copied', 'as it was')")
    for statement in ("UPDATE moved SET id = 101 WHERE id = 1", "UPDATE moved SET id = 102, note = 'm' WHERE id = 2"):
        source.execute(statement)
        pipeline.wait_caught_up(60)
    _run(pipeline, "BEGIN; UPDATE moved SET id = 103 WHERE id = 3; UPDATE moved SET id = 104 WHERE id = 4; COMMIT")
    pipeline.wait_caught_up(60)
    pipeline.assert_equal()


def _run(pipeline: PipelineHarness, statements: str) -> None:
    """Run statements one by one in one session, as an application would: a string is one transaction otherwise."""
    connection = pipeline.source.connect()
    try:
        with connection.cursor() as cursor:
            for statement in re.split(r";\s+(?=[A-Z])", statements):
                if statement.strip():
                    cursor.execute(statement)
    finally:
        connection.close()


def _compared(pipeline: PipelineHarness) -> list:  # type: ignore[type-arg]  # table identities
    from cdc_runner.schema import TableId

    rows = pipeline.config.execute(
        "SELECT source_schema, source_table FROM pipelines_destination_table_sync WHERE load_state = 'STREAMING'"
    )
    return [TableId(schema, name) for schema, name in rows]


def _pairs(pipeline: PipelineHarness) -> dict:  # type: ignore[type-arg]  # table identities
    return {table: table for table in _compared(pipeline)}
