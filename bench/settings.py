"""Sizes of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a run does; `FULL` takes at most 15 minutes on two cores, `QUICK` at most 3.

    Attributes:
        name: for the report.
        load_rows: rows of the initial load.
        load_repeats: initial loads of each contender.
        stream_rows: rows of the table that the change stream updates.
        bulk_rows: changes of the bulk workload, in transactions of 1,000.
        single_rows: changes of the single-row workload.
        large_rows: changes of the one large transaction; 0 leaves it out.
        shape_rows: changes of each further workload (`shapes`), which has one round; 0 leaves them out.
        stream_repeats: rounds of each stream workload.
        latency_seconds: how long each rate is held.
        latency_rates: transactions a second.
        growth_rows: rows of the small and of the large target.
        growth_repeats: batches into each.
    """

    name: str
    load_rows: int
    load_repeats: int
    stream_rows: int
    bulk_rows: int
    single_rows: int
    large_rows: int
    shape_rows: int
    stream_repeats: int
    latency_seconds: float
    latency_rates: tuple[int, ...]
    growth_rows: tuple[int, int]
    growth_repeats: int


FULL = Sizes(
    name="full",
    load_rows=1_000_000,
    load_repeats=3,
    stream_rows=300_000,
    bulk_rows=300_000,
    single_rows=150_000,
    large_rows=300_000,
    shape_rows=100_000,
    stream_repeats=3,
    latency_seconds=15.0,
    latency_rates=(1000, 100, 5000),
    growth_rows=(200_000, 4_000_000),
    growth_repeats=9,
)

QUICK = Sizes(
    name="quick",
    load_rows=300_000,
    load_repeats=1,
    stream_rows=100_000,
    bulk_rows=100_000,
    single_rows=20_000,
    large_rows=0,
    shape_rows=0,
    stream_repeats=1,
    latency_seconds=10.0,
    latency_rates=(1000, 100),
    growth_rows=(200_000, 1_000_000),
    growth_repeats=5,
)

SMOKE = Sizes(
    name="smoke",
    load_rows=20_000,
    load_repeats=1,
    stream_rows=20_000,
    bulk_rows=20_000,
    single_rows=3_000,
    large_rows=0,
    shape_rows=2_000,
    stream_repeats=1,
    latency_seconds=3.0,
    latency_rates=(100,),
    growth_rows=(20_000, 40_000),
    growth_repeats=3,
)

ALL = {sizes.name: sizes for sizes in (FULL, QUICK, SMOKE)}
