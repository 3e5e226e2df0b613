"""Public sample databases through a whole pipeline; `ROSETTA_SAMPLE_DATABASES` names a directory of NAME/NAME.sql dumps."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.pipelines import PipelineHarness

DIRECTORY = os.environ.get("ROSETTA_SAMPLE_DATABASES")
DUMPS = sorted(Path(DIRECTORY).glob("*/*.sql")) if DIRECTORY else []

pytestmark = [
    pytest.mark.pg,
    pytest.mark.jvm,
    pytest.mark.both_engines,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not DUMPS, reason="ROSETTA_SAMPLE_DATABASES does not name a directory with dumps"),
    pytest.mark.skipif(shutil.which("psql") is None, reason="dumps are read by psql, which is not here"),
]


@pytest.mark.parametrize("dump", DUMPS, ids=[dump.stem for dump in DUMPS])
def test_a_sample_database_is_equal_after_load_and_changes(pipeline: PipelineHarness, dump: Path) -> None:
    """Every table as text after the initial load, then after each row was updated and a part deleted."""
    source = pipeline.source
    subprocess.run(
        ["psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", "-f", str(dump), source.url("postgresql")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    keyless = source.execute(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind = 'r' AND n.nspname = 'public' "
        "AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)"
    )
    for (table,) in keyless:
        source.execute(f"ALTER TABLE {table} REPLICA IDENTITY FULL")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()
    columns = source.execute(
        "SELECT DISTINCT ON (a.attrelid) a.attrelid::regclass::text, quote_ident(a.attname) FROM pg_attribute a "
        "JOIN pg_class c ON c.oid = a.attrelid WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace "
        "AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum DESC"
    )
    for table, column in columns:
        # Foreign keys of the dump hold: a last column is changed to itself, and rows of tables nobody refers to go.
        source.execute(f"UPDATE {table} SET {column} = {column}")
    source.execute("SET session_replication_role = replica; " + "; ".join(
        f"DELETE FROM {table} WHERE ctid = (SELECT min(ctid) FROM {table})" for table, _ in columns
    ))  # fmt: skip
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()
