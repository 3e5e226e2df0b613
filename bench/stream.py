"""The change stream over a backlog: Rosetta with each engine, the bare Debezium engine, PostgreSQL's own subscription.

Each round makes one backlog, which every contender then reads from a slot of its own, in an order that turns with the
round. Rates are taken between the first and the last applied position (bare engine: the first and the last batch), so
that nobody's start-up counts. Who applies more than a tenth at once is measured from the moment it began to read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench import shapes, workloads
from bench.native import Subscription
from bench.pipeline import Pipeline, reader
from bench.servers import Database, Servers
from bench.settings import Sizes
from bench.usage import Usage
from bench.waiting import ticks
from bench.workloads import ACCOUNTS, MARKER, Backlog, Workload
from cdc_runner.schema import quote_literal

_TIMEOUT = 300.0
_POLL = 0.01
_HEAP_MB = 256
_BARE = {"bare_stock": False, "bare_changed": True}
"""Slots of the bare engine, and whether the engine has our changes of its classes."""
_BARE_JVM = "-XX:TieredStopAtLevel=4 -Xmn85m -XX:SurvivorRatio=8"
"""The optimising compiler and a young generation as the JVM would choose it; ours are chosen for memory."""
_ENGINES = ("debezium", "pgoutput")


@dataclass(slots=True)
class Contenders:
    """Who reads the backlog: loaded pipelines by engine, a subscription, all stopped, and slots of the bare engine."""

    source: Database
    pipelines: dict[str, Pipeline]
    subscription: Subscription

    def create_slots(self) -> None:
        for name in _BARE:
            self.source.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))

    def drop_slots(self) -> None:
        query = (
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
            "WHERE slot_name = ANY(%s) AND active IS FALSE"
        )
        left = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = ANY(%s)"
        for _ in ticks(20, 0.1):
            self.source.execute(query, (list(_BARE),))
            if self.source.execute(left, (list(_BARE),))[0][0] == 0:
                return
        raise TimeoutError("a slot of the bare engine is still read")


@contextmanager
def contenders(servers: Servers, sizes: Sizes) -> Iterator[Contenders]:
    """Create the source, and load what follows it."""
    source = servers.create("source", "stream")
    workloads.create_accounts(source, sizes.stream_rows)
    tables = [ACCOUNTS, MARKER]
    if sizes.shape_rows:
        shapes.create(source, min(20_000, sizes.shape_rows))
        tables += shapes.NAMES
    native = servers.create("target", "stream_native")
    targets = {engine: servers.create("target", f"stream_{engine}") for engine in _ENGINES}
    pipelines = {engine: Pipeline(servers, source, targets[engine], tables, engine) for engine in _ENGINES}
    ddl = workloads.ACCOUNTS_DDL + (shapes.DDL if sizes.shape_rows else "")
    subscription = Subscription(source, native, tables, ddl)
    all_of_them = Contenders(source, pipelines, subscription)
    try:
        for pipeline in pipelines.values():
            pipeline.start()
            pipeline.wait_loaded(_TIMEOUT)
            workload = Workload("warm-up", 2000, workloads.bulk)
            pipeline.wait_position(workload.run(source, sizes.stream_rows).end, _TIMEOUT)
            pipeline.stop()
        subscription.copy(_TIMEOUT)
        subscription.disable()
        yield all_of_them
    finally:
        for pipeline in pipelines.values():
            pipeline.remove()
        subscription.drop()
        all_of_them.drop_slots()
        for database in (*targets.values(), native):
            servers.drop("target", database)
        servers.drop("source", source)


def measure(servers: Servers, sizes: Sizes, note: Callable[[str], None]) -> dict[str, Any]:
    """Return, for each workload, the rates of all contenders and their ratios."""
    planned = [
        Workload("bulk", sizes.bulk_rows, workloads.bulk),
        Workload("single", sizes.single_rows, workloads.single),
        Workload("large", sizes.large_rows, workloads.large),
    ]
    result: dict[str, Any] = {}
    with contenders(servers, sizes) as both:
        for workload in planned:
            if workload.rows:
                rounds = [
                    _round(servers, both, workload, sizes, number, note) for number in range(sizes.stream_repeats)
                ]
                result[workload.name] = _summary(workload, rounds)
        for workload in shapes.workloads(sizes.shape_rows) if sizes.shape_rows else ():
            result[workload.name] = _summary(
                workload, [_round(servers, both, workload, sizes, 0, note, everybody=False)]
            )
    return result


def _round(
    servers: Servers,
    both: Contenders,
    workload: Workload,
    sizes: Sizes,
    number: int,
    note: Callable[[str], None],
    *,
    everybody: bool = True,
) -> dict[str, dict[str, float]]:
    """Make a backlog and let everybody read it, or everybody but the bare engine."""
    if everybody:
        both.create_slots()
    backlog = workload.run(both.source, sizes.stream_rows)
    runs: dict[str, Callable[[], dict[str, float]]] = {
        **{
            engine: (lambda one=one: _rosetta(one, backlog))  # type: ignore[misc]
            for engine, one in both.pipelines.items()
        },
        "native": lambda: _native(both.source, both.subscription, backlog),
        **{name: (lambda name=name: _bare(both, name, backlog)) for name in _BARE if everybody},  # type: ignore[misc]
    }
    names = list(runs)
    turn = number % len(names)
    measured: dict[str, dict[str, float]] = {}
    for name in names[turn:] + names[:turn]:
        servers.settle()
        measured[name] = runs[name]()
        measured[name]["mb_per_s"] = measured[name]["rows_per_s"] * backlog.bytes_per_row / 1e6
        note(f"{workload.name} {number + 1}: {name} {measured[name]['rows_per_s']:,.0f} rows/s")
    if everybody:
        both.drop_slots()
    return measured


def _follow(
    source: Database,
    slot: str,
    position: AbstractContextManager[Callable[[], int]],
    backlog: Backlog,
    cpu: Callable[[], float] = lambda: 0.0,
) -> dict[str, float]:
    """Watch a position until the backlog is applied; return the rate.

    Args:
        source: where the backlog is read from.
        slot: through which.
        position: gives the function that reads the applied position.
        backlog: what is applied.
        cpu: reads the CPU seconds of the process so far.
    """
    active = f"SELECT 1 FROM pg_replication_slots WHERE active AND slot_name = {quote_literal(slot)}"
    reading: tuple[float, float] | None = None
    first_cpu = 0.0
    points: list[tuple[float, int]] = []
    with position as read, reader(source) as ask:
        for now in ticks(_TIMEOUT, _POLL):
            if reading is None and ask(active):
                reading = now, cpu()
            rows = backlog.rows_at(read())
            if rows and not points:
                first_cpu = cpu()
            if rows and (not points or rows > points[-1][1]):
                points.append((now, rows))
            if rows >= backlog.rows:
                break
        else:
            raise TimeoutError(f"{points[-1][1] if points else 0} of {backlog.rows} changes after {_TIMEOUT} s")
    (first, before), (last, after) = points[0], points[-1]
    begin, used, rows = first, first_cpu, after - before
    if before > backlog.rows / 10 and reading is not None:
        (begin, used), rows = reading, after
    seconds = last - begin
    rate = rows / seconds if seconds > 0 else 0.0
    return {"rows_per_s": rate, "rows": rows, "seconds": seconds, "first_at": first, "cpu_s": cpu() - used}


def _rosetta(pipeline: Pipeline, backlog: Backlog) -> dict[str, float]:
    started = time.monotonic()
    pid = pipeline.start()
    try:
        with Usage(pid) as usage:
            result = _follow(pipeline.source, pipeline.slot, pipeline.position(), backlog, usage.cpu_seconds)
    finally:
        pipeline.stop()
    return result | {
        "rss_mb": usage.peak_mb,
        "cpu_per_million": result["cpu_s"] / max(1.0, result["rows"]) * 1e6,
        "start_s": result["first_at"] - started,
    }


def _native(source: Database, subscription: Subscription, backlog: Backlog) -> dict[str, float]:
    subscription.enable()
    try:
        return _follow(source, subscription.name, subscription.position(), backlog)
    finally:
        subscription.disable()


def _bare(both: Contenders, name: str, backlog: Backlog) -> dict[str, float]:
    source = both.source
    order = {
        "address": {
            "host": source.host,
            "port": source.port,
            "database": source.name,
            "username": source.username,
            "password": source.password,
            "sslmode": "disable",
        },
        "slot": name,
        "publication": both.pipelines["debezium"].slot,
        "tables": [ACCOUNTS, MARKER],
        "ours": _BARE[name],
        "end": backlog.end,
        "heap_mb": _HEAP_MB,
    }
    answer = subprocess.run(
        [sys.executable, "-m", "bench.bare_engine"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
        env={**os.environ, "_JAVA_OPTIONS": _BARE_JVM},
    )
    if answer.returncode:
        raise RuntimeError(f"the bare engine failed: {answer.stderr[-2000:]}")
    found = json.loads(answer.stdout.splitlines()[-1])
    share = 1 - found["first_events"] / found["events"]
    rate = backlog.rows * share / found["seconds"] if found["seconds"] else 0.0
    return {
        "rows_per_s": rate,
        "rss_mb": found["rss_mb"],
        "cpu_per_million": found["cpu_s"] / max(1.0, backlog.rows * share) * 1e6,
        "seconds": found["seconds"],
    }


def _summary(workload: Workload, rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    rates = {name: [one[name]["rows_per_s"] for one in rounds] for name in rounds[0]}
    middle = {name: median(values) for name, values in rates.items()}

    def ratio(engine: str, name: str) -> float:
        return round(middle[engine] / middle[name], 2) if middle[name] else 0.0

    ours = [name for name in middle if name != "native"]
    found: dict[str, Any] = {
        "rows": workload.rows,
        "rows_per_s": {name: round(value) for name, value in middle.items()},
        "rows_per_s_each": {name: [round(value) for value in values] for name, values in rates.items()},
        "wal_mb_per_s": {name: round(median(one[name]["mb_per_s"] for one in rounds), 1) for name in middle},
        "vs_native": {engine: ratio(engine, "native") for engine in _ENGINES if engine in middle},
        "rss_mb": {name: round(max(one[name]["rss_mb"] for one in rounds)) for name in ours},
        "cpu_s_per_million": {
            name: round(median(one[name]["cpu_per_million"] for one in rounds), 1)
            for name in middle
            if name != "native"
        },
        "start_to_first_change_s": {
            engine: round(median(one[engine]["start_s"] for one in rounds), 2)
            for engine in _ENGINES
            if engine in middle
        },
    }
    if "bare_stock" in middle:
        found["vs_bare_engine"] = ratio("debezium", "bare_stock")
        found["vs_bare_engine_changed"] = ratio("debezium", "bare_changed")
    return found
