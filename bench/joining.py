"""`python -m bench.joining [--rows N] [--changes N]`: a large table joins a running pipeline; how old the others get.

Each way is measured once:

beside    the table is loaded beside the stream (the default for one of this size)
waits     the stream waits for the load, as it does for small tables (`load_beside_megabytes` set high)

`stale` is how old one row of another table is at the target, which is written at the source each 10 ms: looked at each
10 ms from the moment in which the table is there until it has joined. `seconds` are until then; the runner looks for
new tables each 10 s. The table that joins is changed all the time; both sides are compared as text at the end.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from bench import machine
from bench.backfill import SUM, Writer, fill
from bench.latency import percentile
from bench.pipeline import Pipeline
from bench.servers import Database, Servers, servers
from bench.waiting import ticks, wait_until

_BEAT_SECONDS = 0.01
_HOURS = 7200.0
_WAYS: dict[str, dict[str, object]] = {"beside": {}, "waits": {"load_beside_megabytes": 1_000_000}}


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(prog="bench.joining")
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--changes", type=int, default=200, help="changes a second of the table that joins")
    parser.add_argument("--engine", default="pgoutput")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"rows": arguments.rows, "engine": arguments.engine}
    with servers() as own:
        for way, settings in _WAYS.items():
            result[way] = measure(own, arguments.rows, arguments.changes, arguments.engine, settings)
        result["load_average"] = machine.load_average()
    print(json.dumps(result, indent=2))


def measure(own: Servers, rows: int, changes: int, engine: str, settings: dict[str, object]) -> dict[str, Any]:
    """Return how long the table took to join, and how old another one got at the target meanwhile."""
    source, target = own.create("source", "shop"), own.create("target", "shop")
    source.execute("CREATE TABLE beat (id int PRIMARY KEY, at double precision); INSERT INTO beat VALUES (1, 0)")
    fill(source, rows)
    source.execute("CREATE SCHEMA aside; ALTER TABLE orders SET SCHEMA aside")
    megabytes = int(source.execute("SELECT pg_table_size('aside.orders') / 1000000")[0][0])
    pipeline = Pipeline(own, source, target, ["public.*"], engine, settings)
    pipeline.start()
    try:
        pipeline.wait_loaded(_HOURS)
        with _beating(source):
            wait_until(lambda: target.execute("SELECT at > 0 FROM beat") == [(True,)], 60, "the first beat")
            own.settle()
            source.execute("ALTER TABLE aside.orders SET SCHEMA public")
            began = time.monotonic()
            writer = Writer(source, rows, changes)
            writer.start()
            try:
                stale = sorted(_staleness(pipeline))
            finally:
                writer.stopping.set()
                writer.join(30)
            seconds = time.monotonic() - began
        lsn = int(source.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0])
        source.execute("SELECT pg_logical_emit_message(true, 'rosetta', '')")
        pipeline.wait_position(lsn, _HOURS)
        return {
            "megabytes": megabytes,
            "seconds": round(seconds, 1),
            "changes_per_second": round(writer.changes / seconds),
            **{f"stale_p{share}_ms": round(percentile(stale, share) * 1000) for share in (50, 99)},
            "stale_longest_ms": round(stale[-1] * 1000),
            "equal": source.execute(SUM) == target.execute(SUM),
        }
    finally:
        pipeline.remove()
        own.drop("target", target)
        own.drop("source", source)


@contextmanager
def _beating(source: Database) -> Iterator[None]:
    """Write the time into a row all the time."""
    stopping = threading.Event()

    def beat() -> None:
        with closing(source.connect()) as connection, connection.cursor() as cursor:
            while not stopping.wait(_BEAT_SECONDS):
                cursor.execute("UPDATE beat SET at = %s WHERE id = 1", (time.time(),))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(30)


def _staleness(pipeline: Pipeline) -> list[float]:
    """Return how old the beat is at the target, seconds, from now until the table has joined."""
    found: list[float] = []
    joined = (
        "SELECT load_state = 'STREAMING' FROM pipelines_destination_table_sync"
        " WHERE origin = 'RESOLVED' AND target_table = 'orders'"
    )
    asked = 0.0
    with closing(pipeline.target.connect()) as connection, connection.cursor() as cursor:
        for now in ticks(_HOURS, _BEAT_SECONDS):
            cursor.execute("SELECT at FROM beat")
            (at,) = cursor.fetchone() or (0.0,)
            found.append(time.time() - at)
            if now - asked > 0.5:
                asked = now
                pipeline.check()
                if pipeline.config.execute(joined) == [(True,)]:
                    break
    return found


if __name__ == "__main__":
    main()
