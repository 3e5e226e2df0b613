"""What a pipeline process reports of its batches."""

from __future__ import annotations

from cdc_runner.pipeline.report import Reporter


def test_batch_time_is_the_mean_since_the_last_report() -> None:
    reporter = object.__new__(Reporter)
    reporter._applied = {}
    assert reporter._batch_ms(1, 0, 0.0) is None
    assert reporter._batch_ms(1, 4, 2.0) == 500
    assert reporter._batch_ms(1, 4, 2.0) is None, "none was applied"
    assert reporter._batch_ms(1, 5, 2.1) == 100
    assert reporter._batch_ms(2, 1, 3.0) == 3000, "of another destination"
    assert reporter._batch_ms(1, 1, 0.25) == 250, "a new run counts from the start"
