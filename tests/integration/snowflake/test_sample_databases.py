"""Sample databases into the independent stand-in: changes, deletes, a truncate, schema changes, kills."""

from __future__ import annotations

from contextlib import closing

import pytest

from cdc_runner.reconcile.result import TableOutcome
from cdc_runner.schema import TableId
from tests.integration.snowflake.test_reconcile import verify
from tests.support.sample_databases import VARIABLE, dumps, restore
from tests.support.snowduck_pipeline import DuckPipeline

pytestmark = [
    pytest.mark.pg,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not dumps(), reason=f"no sample databases: {VARIABLE} names no directory of dumps"),
]

_COLUMN = """
SELECT a.attname FROM pg_attribute a WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
AND a.attnum <> ALL (coalesce((SELECT i.indkey::int2[] FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary), '{}'))
AND NOT a.attnotnull ORDER BY a.atttypid IN (25, 1043) DESC, a.attnum LIMIT 1
"""


@pytest.mark.parametrize("name", sorted(dumps()))
def test_a_sample_database_ends_equal(duck_pipeline: DuckPipeline, name: str) -> None:
    pipeline, source = duck_pipeline, duck_pipeline.source
    with closing(source.connect()) as connection:
        restore(connection, dumps()[name])
    tables = [TableId(*row) for row in source.execute(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY pg_table_size("
        "quote_ident(tablename)::regclass), tablename")]  # fmt: skip
    pipeline.engine = "pgoutput"
    pipeline.configure(settings={"heartbeat_seconds": 1})
    pipeline.start()
    pipeline.wait_landed(900)
    pipeline.assert_landed_once()
    pipeline.duck.run_tasks()
    pipeline.assert_same(pipeline.duck.query)

    for table in tables:
        column = source.execute(_COLUMN, (table.quoted,))
        if column:
            source.execute(f"UPDATE {table.quoted} SET \"{column[0][0]}\" = NULL WHERE ctid::text LIKE '%%3)'")
    pipeline.kill()
    for table in tables:
        # Rows that others refer to could not go else; the target has no foreign keys.
        source.execute(
            f"SET session_replication_role = replica; DELETE FROM {table.quoted} WHERE ctid::text LIKE '%%7)'; "
            "RESET session_replication_role"
        )
    pipeline.start()
    pipeline.wait_landed(900)
    smallest, largest = tables[0], tables[-1]
    source.execute(f"ALTER TABLE {largest.quoted} ADD extra int DEFAULT 7")
    source.execute(f"UPDATE {largest.quoted} SET extra = 8 WHERE ctid::text LIKE '%%5)'")
    if len(tables) > 1:
        source.execute(f"TRUNCATE {smallest.quoted} CASCADE")
    pipeline.kill()
    pipeline.start()
    pipeline.wait_landed(900)
    pipeline.assert_landed_once()
    pipeline.duck.run_tasks()
    pipeline.assert_same(pipeline.duck.query)
    report = verify(pipeline)
    assert {str(one.source): one.outcome for one in report.tables} == dict.fromkeys(
        map(str, tables), TableOutcome.EQUAL
    ), report.as_json()
    assert not pipeline.duck.failed
