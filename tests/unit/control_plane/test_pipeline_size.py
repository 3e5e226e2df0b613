"""A pipeline of a thousand tables: its event and its asset stay small enough for the pages that show them."""

from __future__ import annotations

from typing import Any

import pytest
from dagster._serdes import serialize_value

from rosetta_dagster.assets.events import pipeline_event
from rosetta_dagster.assets.numbers import Cell, readable
from rosetta_dagster.assets.snapshot import PipelineRow, TableRow
from rosetta_dagster.assets.specs import pipeline_spec
from rosetta_dagster.resources.pipeline_health import PipelineHealth, TableHealth

TABLES = 1000
MAX_BYTES = 16_000


def health(error: str | None) -> PipelineHealth:
    tables = tuple(
        TableHealth("shop", "warehouse", "public", f"s{n:04}", "public", f"t{n:04}", "STREAMING", n, n, 100, error)
        for n in range(TABLES)
    )
    return PipelineHealth("shop", "shop", "START", "RUNNING", None, (), tables)


@pytest.mark.parametrize("error", [None, "no such column " * 200])
def test_event_lists_the_first_tables_and_counts_the_others(error: str | None) -> None:
    event = pipeline_event(health(error), 10, None)
    assert len(serialize_value(event)) < MAX_BYTES
    listed: Any = event.metadata["largest tables"]
    assert len(listed.records) == 12 and listed.records[0].data["table"] == "public.t0999"
    assert event.metadata["tables"].value == TABLES
    assert event.metadata["tables in error"].value == (TABLES if error else 0)


@pytest.mark.parametrize(("tables", "drawn"), [(100, 100), (101, 0), (TABLES, 0)])
def test_lineage_is_drawn_as_long_as_it_is_readable(tables: int, drawn: int) -> None:
    rows = tuple(
        TableRow(
            destination="warehouse", destination_type="postgres", destination_database="dwh", source_schema="public",
            source_table=f"t{n}", target_schema="public", target_table=f"t{n}", tags=(), columns=(),
        )
        for n in range(tables)
    )  # fmt: skip
    row = PipelineRow(name="shop", source="shop", source_database="shop", capture_engine="debezium", tables=rows)
    spec = pipeline_spec(row)
    assert len(list(spec.deps)) == drawn
    assert ("too many" in (spec.description or "")) is (drawn == 0)


@pytest.mark.parametrize(("value", "shown"), [
    (999, 999), (1000, "1,000"), (-169_865, "-169,865"), (176.19, 176.2), (12_345.67, "12,345.7"), (True, True),
    ("1000", "1000"),
])  # fmt: skip
def test_numbers_of_tables_have_separators(value: Cell, shown: Cell) -> None:
    assert readable(value) == shown
