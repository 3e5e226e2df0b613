"""Events by hand into the independent stand-in: landing, merge, values left out, truncate, equal rows, a second start."""

from __future__ import annotations

import pytest

from cdc_runner.position import Position
from tests.support.snowduck import Snowduck
from tests.support.snowflake_events import ITEM, LOG, apply, destination_of, events, ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_independent_stand_in_merges_alike(snowduck: Snowduck) -> None:
    made = destination_of(snowduck, pipe_suffix="", compression="gzip")
    made.open()
    ready(made, ITEM, LOG)
    item, log = '"ANALYTICS"."SHOP"."ITEM"', '"ANALYTICS"."SHOP"."LOG"'
    rows = [("u", None, "1", 'a\n"b\\é', "1.10"), ("u", None, "2", None, None)]
    apply(made, 10, events(ITEM, 10, rows), events(LOG, 10, [("i", None, "1", "x"), ("i", None, "1", "x")]))
    snowduck.run_tasks()
    assert sorted(snowduck.query(f"SELECT * FROM {item}")) == [("1", 'a\n"b\\é', "1.10"), ("2", None, None)]
    assert [row[:2] for row in snowduck.query(f"SELECT * FROM {log}")] == [("1", "x"), ("1", "x")]
    apply(made, 20, events(ITEM, 20, [("u", "010", "1", None, "2.00"), ("d", None, "2")]),
          events(LOG, 20, [("d", None, "1", "x")]))  # fmt: skip
    snowduck.run_tasks()
    assert snowduck.query(f"SELECT * FROM {item}") == [("1", 'a\n"b\\é', "2.00")]
    assert [row[:2] for row in snowduck.query(f"SELECT * FROM {log}")] == [("1", "x")]
    apply(made, 30, events(LOG, 30, [("i", None, "2", "y"), ("t", None), ("i", None, "3", "z")]))
    snowduck.run_tasks()
    assert [row[:2] for row in snowduck.query(f"SELECT * FROM {log}")] == [("3", "z")]
    made.close()
    made.open()
    assert made.position() is not None and made.position() >= Position(10)  # type: ignore[operator]
    assert {one.sync.target.name for one in made.table_states() if one.ready} == {"item", "log"}
    made.close()
    assert not snowduck.failed
