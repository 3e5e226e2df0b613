from __future__ import annotations

from rosetta_dagster.demo.latency import percentile


def test_percentile_is_a_value_that_was_seen() -> None:
    hundred = [float(n) for n in range(100, 0, -1)]
    assert percentile(hundred, 0.50) == 50
    assert percentile(hundred, 0.99) == 99
    assert percentile([7.0], 0.99) == 7
    assert percentile([], 0.5) is None
