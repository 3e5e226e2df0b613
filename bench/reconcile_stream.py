"""`python -m bench.reconcile_stream [--rows N] [--changes N] [--verifies N]`: comparing beside a stream under load.

equal      `rosetta verify` several times while rows are updated, deleted, inserted and get other keys: no false alarm
damaged    50 rows of the target are changed, taken away or added: they are named
repaired   `rosetta repair`: fetched again, and compared once more
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from sqlalchemy import Engine

from bench import machine
from bench.backfill import Writer, fill
from bench.pipeline import Pipeline
from bench.servers import Servers, servers
from cdc_runner.catalog.database import open_catalog
from cdc_runner.reconcile.result import Report
from cdc_runner.services.verify import Request, repair_pipeline, verify_pipeline

_HOURS = 7200.0
# The writer changes rows with positive numbers only.
_QUIET = "INSERT INTO orders SELECT -i, 0, 0, 'quiet', now() FROM generate_series(1, 1000) i"
_DAMAGE = (
    "SET session_replication_role = replica; UPDATE orders SET note = 'wrong' WHERE id BETWEEN -30 AND -1;"
    "DELETE FROM orders WHERE id BETWEEN -40 AND -31;"
    "INSERT INTO orders SELECT -2000 - i, 0, 0, 'extra', now() FROM generate_series(1, 10) i"
)


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(prog="bench.reconcile_stream")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--changes", type=int, default=1_000, help="changes a second")
    parser.add_argument("--verifies", type=int, default=3)
    parser.add_argument("--engine", default="pgoutput")
    arguments = parser.parse_args()
    with servers() as own:
        found = measure(own, arguments.rows, arguments.changes, arguments.verifies, arguments.engine)
        print(json.dumps(found, indent=2))


def measure(own: Servers, rows: int, changes: int, verifies: int, engine: str) -> dict[str, Any]:
    """Return seconds of each, and what was found."""
    load = machine.load_average()
    source, target = own.create("source", "shop"), own.create("target", "shop")
    fill(source, rows)
    source.execute(_QUIET)
    own.settle()
    pipeline = Pipeline(own, source, target, ["public.orders"], engine)
    began = time.monotonic()
    pipeline.start()
    try:
        pipeline.wait_loaded(_HOURS)
        loaded = time.monotonic() - began
        found = _compared(pipeline, rows, changes, verifies)
    finally:
        pipeline.remove()
    size = source.execute("SELECT pg_table_size('orders')")[0][0]
    return {
        "rows": rows,
        "table_megabytes": round(size / 1e6),
        "engine": engine,
        "load_rows_per_second": round(rows / loaded),
        **found,
        "load_average": [load, machine.load_average()],
    }


def _compared(pipeline: Pipeline, rows: int, changes: int, verifies: int) -> dict[str, Any]:
    writer = Writer(pipeline.source, rows, changes)
    catalog = open_catalog(pipeline.config.url())
    began = time.monotonic()
    writer.start()
    try:
        equal = [_verify(catalog, pipeline) for _ in range(verifies)]
        pipeline.target.execute(_DAMAGE)
        damaged = _verify(catalog, pipeline)
        at = time.monotonic()
        repaired = repair_pipeline(catalog, Request("bench"), pipeline.keyring, dry_run=False)
        repair_seconds = time.monotonic() - at
    finally:
        writer.stopping.set()
        writer.join(30)
        catalog.dispose()
    return {
        "changes_per_second": round(writer.changes / (time.monotonic() - began)),
        "equal": [_shown(one) for one in equal],
        "damaged": _shown(damaged),
        "repaired": {
            "seconds": round(repair_seconds, 1),
            "upserted": repaired.upserted_rows,
            "deleted": repaired.deleted_rows,
            "outcome": repaired.outcome.value,
            "refused": repaired.refused,
            "after": None if repaired.after is None else _shown(repaired.after),
        },
    }


def _verify(catalog: Engine, pipeline: Pipeline) -> Report:
    return verify_pipeline(catalog, Request("bench"), pipeline.keyring)


def _shown(report: Report) -> dict[str, Any]:
    (one,) = report.tables
    named = {name: len(getattr(one.keys, name)) for name in ("changed", "missing", "extra")}
    return {"outcome": report.outcome.value, "seconds": round(report.seconds, 1), "named": named, "why": report.problem}


if __name__ == "__main__":
    main()
