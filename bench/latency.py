"""Time from a commit at the source until the change is visible at the target, at a steady rate of transactions.

Writers update one row a transaction and put their own time of day, taken before the statement, into the row; a probe
polls the target and takes the time after its query. So statement, commit and half a polling period are in the figure.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from bench.pipeline import Pipeline, reader
from bench.servers import Database, Servers
from bench.settings import Sizes
from bench.usage import Usage
from bench.waiting import ticks, wait_until

_ROWS = 5000
"""Each row is written again after five seconds at 1,000 tx/s; a change that took longer is missed, and counted."""
_POLL = 0.005
_DURABLE_RATE = 2000
"""Up to so many transactions a second writers wait for the disk; a faster rate is not about the source's disk."""
_WARM_UP_SECONDS = 5.0
_QUIET_SECONDS = 5.0
_PROBE_SECONDS = 180.0


def measure(servers: Servers, sizes: Sizes, engine: str) -> dict[str, Any]:
    """Return percentiles for each rate, in milliseconds."""
    source, target = servers.create("source", "latency"), servers.create("target", "latency")
    source.execute(
        "CREATE TABLE clock (id integer PRIMARY KEY, seq bigint, at double precision) WITH (fillfactor = 50)"
    )
    source.execute("INSERT INTO clock SELECT i, 0, 0 FROM generate_series(0, %s) i", (_ROWS - 1,))
    pipeline = Pipeline(servers, source, target, ["public.clock"], engine)
    result: dict[str, Any] = {}
    pid = pipeline.start()
    try:
        pipeline.wait_loaded(120)
        # The stream has begun when a change of its own has come through.
        source.execute("UPDATE clock SET seq = -1 WHERE id = 0")
        with reader(target) as read:
            wait_until(lambda: bool(read("SELECT 1 FROM clock WHERE seq = -1")), 120, "the first change")
        servers.settle()
        with Usage(pid) as usage:
            for rate in sizes.latency_rates:
                result[str(rate)] = _at_rate(source, target, rate, sizes.latency_seconds)
        result["rss_mb"] = round(usage.peak_mb)
    finally:
        pipeline.remove()
        servers.drop("target", target)
        servers.drop("source", source)
    return result


def _at_rate(source: Database, target: Database, rate: int, seconds: float) -> dict[str, Any]:
    """Write at a rate for a while and return the percentiles of what came after the warm-up."""
    warm_up = min(_WARM_UP_SECONDS, seconds / 2)
    order = {
        "dsn": source.dsn(),
        "rate": rate,
        "seconds": seconds + warm_up,
        "rows": _ROWS,
        "durable": rate <= _DURABLE_RATE,
    }
    writer = subprocess.Popen(
        [sys.executable, "-m", "bench.writer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdin is not None and writer.stdout is not None, "both are pipes"
    try:
        writer.stdin.write(json.dumps(order))
        writer.stdin.close()
        started = time.time()
        samples = _probe(target, writer)
        written = json.loads(writer.stdout.read())
    finally:
        if writer.poll() is None:
            writer.kill()
        writer.wait(10)
        writer.stdout.close()
    kept = sorted(visible - at for at, visible in samples if at >= started + warm_up)
    return {
        "samples": len(kept),
        "overtaken": max(0, written["written"] - len(samples)),
        "wanted_tx_per_s": rate,
        "written_tx_per_s": round(written["written"] / written["seconds"], 1),
        **{f"p{share}_ms": round(percentile(kept, share) * 1000, 1) for share in (50, 90, 99)},
        "max_ms": round(kept[-1] * 1000, 1) if kept else None,
    }


def _probe(target: Database, writer: subprocess.Popen[str]) -> list[tuple[float, float]]:
    """Poll the target until the writer has ended and nothing new comes any more.

    Returns:
        Pairs of the time in a row and the time at which the row was seen.
    """
    samples: list[tuple[float, float]] = []
    seen: dict[int, int] = {}
    quiet = time.monotonic()
    with closing(target.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(max(at), 0) FROM clock")
        (before,) = cursor.fetchone() or (0.0,)
        since = before
        for now in ticks(_PROBE_SECONDS, _POLL):
            # There are several writers: a row may come a little after one that was written later.
            cursor.execute("SELECT id, seq, at FROM clock WHERE at > %s", (max(before, since - 2.0),))
            visible = time.time()
            for number, sequence, at in cursor.fetchall():
                if seen.get(number) != sequence:
                    seen[number] = sequence
                    samples.append((at, visible))
                    since, quiet = max(since, at), now
            if writer.poll() is not None and now - quiet > _QUIET_SECONDS:
                break
    return samples


def percentile(ordered: Sequence[float], share: int) -> float:
    """Return the nearest-rank percentile of ascending numbers; 0 of none."""
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)] if ordered else 0.0
