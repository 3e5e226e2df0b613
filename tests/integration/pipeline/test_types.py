"""Every type of the server and of its extensions, through a whole pipeline: after the load, inserts and updates."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.support import type_cases
from tests.support.pipelines import PipelineHarness
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.both_engines, pytest.mark.timeout(900)]

TABLES = {type_name: f"case_{number}" for number, type_name in enumerate(type_cases.CASES)}
STREAMED = 10_000
UPDATED = 20_000
BIG = 30_000


def _create(harness: PipelineHarness) -> None:
    for extension in type_cases.EXTENSIONS:
        harness.source.execute(f"CREATE EXTENSION {extension}")
    harness.source.execute(type_cases.SETUP)
    for type_name, table in TABLES.items():
        harness.source.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, tag int, v {type_name})")
        if type_name in type_cases.LARGE:
            harness.source.execute(f"ALTER TABLE {table} ALTER v SET STORAGE EXTERNAL")


def _write(harness: PipelineHarness, base: int) -> None:
    options = "-c TimeZone=UTC -c DateStyle=ISO -c lc_monetary=C"
    with closing(harness.source.connect(options=options)) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        for type_name, table in TABLES.items():
            for number, value in enumerate(type_cases.CASES[type_name]):
                cursor.execute(f"INSERT INTO {table} VALUES (%s, 0, %s)", (base + number, value))
            if type_name in type_cases.LARGE:
                cursor.execute(f"INSERT INTO {table} SELECT {base + BIG}, 0, {type_cases.LARGE[type_name]}")
        cursor.execute("COMMIT")


def _update(harness: PipelineHarness) -> None:
    """Every value comes by an update too, and large ones stay as they are while their row changes."""
    with closing(harness.source.connect()) as connection, connection.cursor() as cursor:
        for table in TABLES.values():
            cursor.execute(f"INSERT INTO {table} SELECT id + {UPDATED}, 0, NULL FROM {table} WHERE id < {STREAMED}")
            cursor.execute(
                f"UPDATE {table} u SET v = i.v FROM {table} i WHERE u.id = i.id + {UPDATED} AND i.id < {STREAMED}"
            )
            cursor.execute(f"UPDATE {table} SET tag = tag + 1")


def test_every_type_is_equal_after_load_insert_and_update(pipeline: PipelineHarness) -> None:
    """Text of every value is the same on both sides; tables that cannot be carried are left out by column name."""
    _create(pipeline)
    _write(pipeline, 0)
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(240)

    def reported() -> list[tuple[str, str, str]]:
        rows: list[tuple[str, str, str]] = pipeline.config.execute(
            "SELECT source_schema, source_table, load_state FROM pipelines_destination_table_sync "
            "WHERE load_state IN ('STREAMING', 'EXCLUDED')"
        )
        return rows

    wait_for(lambda: len(reported()) == len(TABLES), 60, "the state of every table to be reported")
    pairs = {(schema, name) for schema, name, state in reported() if state == "STREAMING"}
    refused = pipeline.config.execute(
        "SELECT source_table, load_state_reason FROM pipelines_destination_table_sync WHERE load_state = 'EXCLUDED'"
    )
    assert len(pairs) + len(refused) == len(TABLES)
    assert all("column v" in reason for _, reason in refused)
    assert len(pairs) > 100
    from cdc_runner.schema import TableId

    tables = {TableId(*pair): TableId(*pair) for pair in pairs}
    pipeline.assert_equal(tables=tables)
    _write(pipeline, STREAMED)
    pipeline.wait_caught_up(240)
    pipeline.assert_equal(tables=tables)
    _update(pipeline)
    pipeline.wait_caught_up(240)
    wait_for(lambda: not pipeline.differences(tables=tables), 10, "equality")
