"""`python -m bench.reconcile [--rows N] [--workers N]`: time of comparing equal tables, and of finding 50 damaged rows.

Both sides stand still, so this is the cost of reading and hashing alone; a fence adds the making of a slot.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from typing import Any

from bench import machine
from bench.servers import Servers, servers
from cdc_runner.capture.inspect import read_tables
from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres.target_table import read_target
from cdc_runner.position import Position
from cdc_runner.reconcile.compare import Comparison, Subject
from cdc_runner.reconcile.result import TableOutcome, TableResult
from cdc_runner.reconcile.session import Settings, SnapshotSessions
from cdc_runner.schema import TableId
from cdc_runner.spec import ResolvedSync

_TABLE = TableId("public", "orders")
_ROWS = (
    "SELECT i, i % 1000, i / 7.0, md5(i::text), timestamptz '2026-01-01' + i * interval '1 second' "
    "FROM generate_series(1, {rows}) i"
)
_DAMAGE = (
    "UPDATE orders SET note = '' WHERE id % ({rows} / 30) = 1",
    "DELETE FROM orders WHERE id BETWEEN 501 AND 510",
    "INSERT INTO orders SELECT -i, 0, 0, 'x', now() FROM generate_series(1, 10) i",
)


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(prog="bench.reconcile")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with servers() as own:
        print(json.dumps(measure(own, arguments.rows, arguments.workers), indent=2))


def measure(own: Servers, rows: int, workers: int) -> dict[str, Any]:
    """Return seconds of an equal comparison and of one that names 50 rows."""
    load = machine.load_average()
    sides = [own.database("source"), own.database("target")]
    for side in sides:
        side.execute(
            "CREATE TABLE orders (id bigint PRIMARY KEY, customer int, amount numeric, note text, at timestamptz)"
        )
        side.execute(f"INSERT INTO orders {_ROWS.format(rows=rows)}")
        side.execute("ANALYZE orders")
    size = sides[0].execute("SELECT pg_table_size('orders')")[0][0]
    equal, _ = _compare(own, workers)
    for statement in _DAMAGE:
        sides[1].execute(statement.format(rows=rows))
    damaged, result = _compare(own, workers)
    return {
        "rows": rows,
        "table_megabytes": round(size / 1e6),
        "workers": workers,
        "equal_seconds": round(equal, 2),
        "rows_per_second": round(rows / equal),
        "damaged_seconds": round(damaged, 2),
        "named": {name: len(getattr(result.keys, name)) for name in ("changed", "missing", "extra")},
        "load_average": load,
    }


def _compare(own: Servers, workers: int) -> tuple[float, TableResult]:
    settings = Settings(workers=workers)
    source, target = own.database("source"), own.database("target")
    began = time.monotonic()
    with (
        SnapshotSessions(source.address(), "source", None, settings) as here,
        SnapshotSessions(target.address(), "destination", None, settings) as there,
        closing(source.connect()) as connection,
    ):
        (schema,) = read_tables(connection, tables=[_TABLE])
        known = TableState(ResolvedSync(None, _TABLE, _TABLE), True, Position(0), schema)
        blank = TableResult(1, "target", _TABLE, _TABLE, TableOutcome.BEHIND)
        subject = Subject(blank, schema, known, read_target(there.keeper, _TABLE), lambda name: name)
        result = Comparison(here, there).compare(subject)
    if result.outcome not in (TableOutcome.EQUAL, TableOutcome.DIFFERENT):
        raise RuntimeError(result.reason)
    return time.monotonic() - began, result


if __name__ == "__main__":
    main()
