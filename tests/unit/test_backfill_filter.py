"""Filters of backfills: parameterised by being written anew, or refused; what was typed is never run."""

from __future__ import annotations

from typing import Any

import pytest

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.services.backfill import parse_backfill_filter


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"column": "region", "op": "=", "value": "' OR 1=1 --"}, "'' OR 1=1 --"),
        ({"column": "region", "op": "in", "value": ["it's", 'a"b', "x,y"]}, "it''s"),
        ({"column": "region", "op": "like", "value": "100%_'"}, "100%_''"),
        ("region = 'EU' AND amount > 10", "'EU'"),
        ('{"column": "region", "op": "=", "value": "EU"}', "'EU'"),
    ],
)
def test_values_stay_values(value: Any, wanted: str) -> None:
    parsed = parse_backfill_filter(value)
    assert parsed is not None
    assert "region" in parsed.columns
    assert wanted in parsed.sql
    # It can be read again as what it is: whoever works off the queue does so.
    again = parse_backfill_filter(parsed.sql)
    assert again is not None
    assert again.columns == parsed.columns
    assert wanted in again.sql


@pytest.mark.parametrize(
    "value",
    [
        {"column": "region", "op": "; DROP TABLE orders", "value": 1},
        {"column": "amount", "op": "=", "value": float("nan")},
        {"column": "amount", "op": "=", "value": float("inf")},
        {"column": "", "op": "=", "value": 1},
        {"column": "region", "op": "=", "value": "a\x00b"},
        "region = 'a'; DROP TABLE orders",
        "region = 'a') OR (SELECT true",
        "pg_sleep(10) IS NULL OR region = 'a'",
        "id IN (SELECT id FROM secrets)",
        "1 = 1",
        "{not json",
    ],
)
def test_what_is_more_than_a_condition_is_refused(value: Any) -> None:
    with pytest.raises(RosettaError) as refused:
        parse_backfill_filter(value)
    assert refused.value.kind is ErrorKind.CONFIG_INVALID
    assert "DROP" not in refused.value.message


def test_a_column_that_looks_like_sql_is_a_name() -> None:
    parsed = parse_backfill_filter({"column": "id) OR (1=1", "op": "=", "value": 1})
    assert parsed is not None
    assert parsed.columns == ("id) OR (1=1",)
    assert '"id) OR (1=1"' in parsed.sql


@pytest.mark.parametrize("value", [None, "", {}])
def test_no_filter_is_every_row(value: Any) -> None:
    assert parse_backfill_filter(value) is None
