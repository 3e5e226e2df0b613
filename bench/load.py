"""Initial load, against the copy of PostgreSQL's own subscription."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from bench.native import Subscription
from bench.pipeline import Pipeline
from bench.servers import Database, Servers
from bench.settings import Sizes
from bench.usage import Usage
from bench.waiting import wait_until
from bench.workloads import ACCOUNTS, MARKER, create_accounts

_TIMEOUT = 300.0


def measure(servers: Servers, sizes: Sizes) -> dict[str, Any]:
    """Return seconds, rows per second and the ratio of the medians."""
    source = servers.create("source", "load")
    create_accounts(source, sizes.load_rows)
    ours: list[dict[str, float]] = []
    native: list[float] = []
    for number in range(sizes.load_repeats):
        for contender in ("rosetta", "native") if number % 2 == 0 else ("native", "rosetta"):
            servers.settle()
            if contender == "rosetta":
                ours.append(_rosetta(servers, source))
            else:
                native.append(_native(servers, source))
    table_bytes = int(source.execute(f"SELECT pg_table_size('{ACCOUNTS}')")[0][0])
    servers.drop("source", source)
    mine = median(one["seconds"] for one in ours)
    theirs = median(native)
    return {
        "rows": sizes.load_rows,
        "rosetta_rows_per_s": round(sizes.load_rows / mine),
        "native_rows_per_s": round(sizes.load_rows / theirs),
        "ratio": round(theirs / mine, 2),
        "rosetta_mb_per_s": round(table_bytes / mine / 1e6, 1),
        "native_mb_per_s": round(table_bytes / theirs / 1e6, 1),
        "rosetta_s": [round(one["seconds"], 3) for one in ours],
        "native_s": [round(one, 3) for one in native],
        "start_to_first_row_s": round(median(one["first_row"] for one in ours), 2),
        "rss_mb": round(max(one["rss_mb"] for one in ours)),
        "cpu_s_per_million": round(median(one["cpu"] for one in ours) / sizes.load_rows * 1e6, 2),
    }


def once(servers: Servers, source: Database) -> float:
    """Load once with Rosetta; return the seconds from the snapshot until the table has its key."""
    return _rosetta(servers, source)["seconds"]


def _rosetta(servers: Servers, source: Database) -> dict[str, float]:
    """Load once. The time runs from the snapshot until the table has its rows and its key."""
    target = servers.create("target", "load")
    pipeline = Pipeline(servers, source, target, [ACCOUNTS, MARKER], "debezium")
    started = time.monotonic()
    pid = pipeline.start()
    try:
        with Usage(pid) as usage:
            ended = pipeline.wait_loaded(_TIMEOUT)
            cpu = usage.cpu_seconds()
        began = pipeline.logged_at("load.snapshot")
        assert began is not None, "the load begins with a snapshot"
        # The log has the time of day, the rest is on the monotonic clock.
        began += time.monotonic() - time.time()
        # The stream begins as well, so that the stop is a clean one.
        wait_until(lambda: pipeline.logged_at("load.table_ready") is not None, 60, "the end of the load", 0.1)
    finally:
        pipeline.remove()
        servers.drop("target", target)
    return {"seconds": ended - began, "first_row": began - started, "rss_mb": usage.peak_mb, "cpu": cpu}


def _native(servers: Servers, source: Database) -> float:
    target = servers.create("target", "load_native")
    subscription = Subscription(source, target, [ACCOUNTS, MARKER])
    try:
        return subscription.copy(_TIMEOUT)
    finally:
        subscription.drop()
        servers.drop("target", target)
