"""Rows that are large themselves: the engine's queue is bounded by bytes, not only by their number."""

from __future__ import annotations

import pytest

from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.timeout(600)]


def test_rows_of_many_kilobytes_do_not_exhaust_the_engine(pipeline: PipelineHarness) -> None:
    """More than twice the engine's heap goes through it, in rows of 200 kB, and a transaction with three of 20 MB."""
    source = pipeline.source
    source.execute("CREATE TABLE wide (id int PRIMARY KEY, v text, b bytea)")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    source.execute("INSERT INTO wide SELECT i, repeat(md5(i::text), 6400) FROM generate_series(1, 3000) i")
    source.execute(
        "INSERT INTO wide SELECT i, NULL, decode(repeat('00ff5c27', 2500000), 'hex') FROM generate_series(9997, 9999) i"
    )
    pipeline.wait_caught_up(300)
    pipeline.assert_equal()
