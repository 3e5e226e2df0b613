"""Every type of the server and of its extensions, through a whole pipeline: after the load, inserts and updates."""

from __future__ import annotations

from contextlib import closing

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest

from tests.support import type_cases
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.both_engines, pytest.mark.timeout(900)]

CASES = type_cases.CASES | {
    "xml": ["<a/>", "<a b='c'>&lt;é\n <!-- x --></a>", "plain text", '<?xml version="1.0" standalone="yes"?><a/>'],
    "xml[]": ["{<a/>,NULL}"],
}
"""With xml, which the embedded server cannot read."""
TABLES = {type_name: f"case_{number}" for number, type_name in enumerate(CASES)}
OPTIONS = "-c TimeZone=UTC -c DateStyle=ISO -c lc_monetary=C"
STREAMED = 10_000
UPDATED = 20_000
BIG = 30_000


def _create(harness: PipelineHarness) -> dict[str, list[str]]:
    """Create a table for each type, and return the values that the server knows: the newest one all but xml."""
    known: dict[str, list[str]] = {}
    with closing(harness.source.connect(options=OPTIONS)) as connection, connection.cursor() as cursor:
        present = "SELECT name FROM pg_available_extensions WHERE name = ANY (%s)"
        cursor.execute(present, (list(type_cases.EXTENSIONS),))
        for (extension,) in cursor.fetchall():
            cursor.execute(f"CREATE EXTENSION {extension}")
        cursor.execute(type_cases.SETUP)
        for type_name, table in TABLES.items():
            try:
                cursor.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, tag int, v {type_name})")
            except psycopg2.errors.UndefinedObject:
                continue
            if type_name in type_cases.LARGE:
                cursor.execute(f"ALTER TABLE {table} ALTER v SET STORAGE EXTERNAL")
            values = [value for value in CASES[type_name] if _accepts(cursor, type_name, value)]
            if values:
                known[type_name] = values
            else:
                cursor.execute(f"DROP TABLE {table}")
    missing = set(TABLES) - set(known)
    if connection.server_version >= 180000:
        assert missing <= {"xml", "xml[]"}
    return known


def _accepts(cursor: psycopg2.extensions.cursor, type_name: str, value: str) -> bool:
    try:
        cursor.execute(f"SELECT %s::{type_name}", (value,))
    except (psycopg2.DataError, psycopg2.NotSupportedError):
        return False
    return True


def _write(harness: PipelineHarness, base: int, known: dict[str, list[str]]) -> None:
    with closing(harness.source.connect(options=OPTIONS)) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        for type_name, values in known.items():
            table = TABLES[type_name]
            for number, value in enumerate(values):
                cursor.execute(f"INSERT INTO {table} VALUES (%s, 0, %s)", (base + number, value))
            if type_name in type_cases.LARGE:
                cursor.execute(f"INSERT INTO {table} SELECT {base + BIG}, 0, {type_cases.LARGE[type_name]}")
        cursor.execute("COMMIT")


def _update(harness: PipelineHarness, known: dict[str, list[str]]) -> None:
    """Every value comes by an update too, and large ones stay as they are while their row changes."""
    with closing(harness.source.connect()) as connection, connection.cursor() as cursor:
        for table in map(TABLES.__getitem__, known):
            cursor.execute(f"INSERT INTO {table} SELECT id + {UPDATED}, 0, NULL FROM {table} WHERE id < {STREAMED}")
            cursor.execute(
                f"UPDATE {table} u SET v = i.v FROM {table} i WHERE u.id = i.id + {UPDATED} AND i.id < {STREAMED}"
            )
            cursor.execute(f"UPDATE {table} SET tag = tag + 1")


def test_every_type_is_equal_after_load_insert_and_update(pipeline: PipelineHarness) -> None:
    """Text of every value is the same on both sides; tables that cannot be carried are left out by column name."""
    known = _create(pipeline)
    _write(pipeline, 0, known)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(240)

    def reported() -> list[tuple[str, str, str]]:
        rows: list[tuple[str, str, str]] = pipeline.config.execute(
            "SELECT source_schema, source_table, load_state FROM pipelines_destination_table_sync "
            "WHERE load_state IN ('STREAMING', 'EXCLUDED')"
        )
        return rows

    wait_for(lambda: len(reported()) == len(known), 60, "the state of every table to be reported")
    pairs = {(schema, name) for schema, name, state in reported() if state == "STREAMING"}
    refused = pipeline.config.execute(
        "SELECT source_table, load_state_reason FROM pipelines_destination_table_sync WHERE load_state = 'EXCLUDED'"
    )
    assert len(pairs) + len(refused) == len(known)
    assert all("column v" in reason for _, reason in refused)
    assert len(pairs) > 100
    from cdc_runner.schema import TableId

    tables = {TableId(*pair): TableId(*pair) for pair in pairs}
    pipeline.assert_equal(tables=tables)
    _write(pipeline, STREAMED, known)
    pipeline.wait_caught_up(240)
    pipeline.assert_equal(tables=tables)
    _update(pipeline, known)
    pipeline.wait_caught_up(240)
    wait_for(lambda: not pipeline.differences(tables=tables), 10, "equality")
