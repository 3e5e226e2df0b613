"""Whether apply costs more when the target is larger: the destination's own apply of generated batches.

Beside it, the same number of rows changed by a plain UPDATE of the server's own: what a larger table costs anybody.

Keys are drawn in two ways: from the whole table, so that nearly every row is on a page of its own and a larger table
means more pages to read and to log; and from the newest fifth of the small table's size, as workloads mostly do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from bench.servers import Database, Servers
from bench.settings import Sizes
from cdc_runner.capture.base import TableVersion
from cdc_runner.capture.inspect import read_tables
from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.position import Position
from cdc_runner.schema import TableId
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import DestinationSpec, PipelineSettings, ResolvedSync

BATCH_ROWS = 10_000
_WARM_UPS = 2


class Target:
    """A table of some size and a destination that writes into it."""

    def __init__(self, database: Database, rows: int, directory: Path) -> None:
        self.rows = rows
        self._database = database
        with closing(database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE account (aid integer PRIMARY KEY, bid integer, abalance integer, filler character(84))"
            )
            cursor.execute("INSERT INTO account SELECT i, 1, 0, '' FROM generate_series(1, %s) i", (rows,))
            cursor.execute("VACUUM ANALYZE account")
            (schema,) = read_tables(connection, tables=[TableId("public", "account")])
        self._version = TableVersion(schema, 1)
        self._sync = ResolvedSync(None, schema.table, schema.table)
        self._destination = PostgresDestination(
            DestinationSpec(1, 1, "bench", "postgres", database.address(), None),
            "bench",
            PipelineSettings(),
            directory=directory,
            fetch=lambda schema, keys: {},
            source=database.connect,
        )
        self._destination.open()
        self._destination.start_at(Position(1))
        self._destination.remember_all([TableState(self._sync, ready=True, snapshot=Position(0), schema=schema)])
        self._position = 1

    def update_plainly(self, keys: list[int]) -> float:
        """Let the server update these rows by itself; return the seconds it took."""
        with closing(self._database.connect()) as connection, connection.cursor() as cursor:
            started = time.perf_counter()
            cursor.execute("UPDATE account SET abalance = abalance + 1 WHERE aid = ANY (%s)", (keys,))
            return time.perf_counter() - started

    def apply(self, keys: list[int]) -> float:
        """Apply an update of these rows; return the seconds it took."""
        count = len(keys)
        rows = pa.table(
            {
                "d": pa.array([False] * count),
                "x": pa.nulls(count, pa.string()),
                "c0": pa.array([str(key) for key in keys]),
                "c1": pa.array(["1"] * count),
                "c2": pa.array([str(random.randrange(1 << 30)) for _ in keys]),
                "c3": pa.array([" " * 84] * count),
            }
        )
        self._position += 1
        change = NetChange(NetKind.MERGE, self._version, False, rows, False, False, count)
        started = time.perf_counter()
        self._destination.apply([[(self._sync, change)]], Position(self._position))
        return time.perf_counter() - started

    def close(self) -> None:
        """Close the destination."""
        self._destination.close()


@contextmanager
def _targets(servers: Servers, sizes: Sizes) -> Iterator[list[Target]]:
    databases = [servers.create("target", "growth") for _ in sizes.growth_rows]
    targets = []
    try:
        for database, rows in zip(databases, sizes.growth_rows, strict=True):
            targets.append(Target(database, rows, servers.home))
        yield targets
    finally:
        for target in targets:
            target.close()
        for database in databases:
            servers.drop("target", database)


def measure(servers: Servers, sizes: Sizes) -> dict[str, Any]:
    """Return milliseconds of a batch into each table, and how much more the larger one takes."""
    result: dict[str, Any] = {"rows": list(sizes.growth_rows), "batch_rows": BATCH_ROWS}
    with _targets(servers, sizes) as targets:
        window = max(BATCH_ROWS, sizes.growth_rows[0] // 5)
        for name, width in (("spread", None), ("recent", window)):
            times: list[list[float]] = [[] for _ in targets]
            alone: list[list[float]] = [[] for _ in targets]
            servers.settle()
            for number in range(_WARM_UPS + sizes.growth_repeats):
                places = list(range(len(targets)))
                for place in places if number % 2 == 0 else reversed(places):
                    target = targets[place]
                    lowest = 1 if width is None else target.rows - width + 1
                    choices = range(lowest, target.rows + 1)
                    seconds = target.apply(random.sample(choices, BATCH_ROWS))
                    plainly = target.update_plainly(random.sample(choices, BATCH_ROWS))
                    if number >= _WARM_UPS:
                        times[place].append(seconds)
                        alone[place].append(plainly)
            result[name] = {**_growth(times), "server_alone": _growth(alone)}
    return result


def _growth(times: list[list[float]]) -> dict[str, Any]:
    middle = [median(one) for one in times]
    return {"ms": [round(one * 1000, 1) for one in middle], "growth": round(middle[-1] / middle[0], 2)}
