"""Child process that streams with the Debezium engine and prints the rows as JSON lines; the order comes on stdin.

    {"address": {...}, "slot": ..., "publication": ..., "tables": [...], "transactions": N, "stamped": bool,
     "properties": {...}}   ->  {"table": name, "row": {...}} in stream order by table, the end after N transactions

A process holds one JVM for its whole life, so tests run it in a child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg2
import structlog
from pydantic import SecretStr

from cdc_runner.capture.assemble import BatchSettings
from cdc_runner.capture.debezium.properties import engine_properties
from cdc_runner.capture.inspect import read_tables
from cdc_runner.capture.registry import SchemaRegistry
from cdc_runner.schema import TableId
from cdc_runner.spec import PostgresAddress, SourceSpec

Rows = dict[str, list[dict[str, Any]]]
"""Decoded rows by the name of their table, in stream order."""


def stream_rows(
    address: PostgresAddress,
    slot: str,
    publication: str,
    tables: Sequence[TableId],
    transactions: int,
    *,
    stamped: bool = False,
    properties: Mapping[str, str] | None = None,
    zone: str = "Asia/Jakarta",
) -> Rows:
    """Return the rows that the engine streams from a slot, in a process of its own."""
    order = {
        "address": {
            "host": address.host,
            "port": address.port,
            "database": address.database,
            "username": address.username,
            "password": address.password.get_secret_value(),
            "sslmode": address.sslmode,
        },
        "slot": slot,
        "publication": publication,
        "tables": [[table.schema, table.name] for table in tables],
        "transactions": transactions,
        "stamped": stamped,
        "properties": dict(properties or {}),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.debezium_child"],
        input=json.dumps(order),
        capture_output=True,
        encoding="utf-8",
        timeout=180,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TZ": zone, "PYTHONUTF8": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: Rows = {table.name: [] for table in tables}
    for line in done.stdout.split("\n"):
        if line:
            event = json.loads(line)
            found[event["table"]].append(event["row"])
    return found


def main() -> None:
    order = json.load(sys.stdin)
    from cdc_runner.capture.debezium import engine

    # Standard output is for rows.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

    def changed(*arguments: Any) -> dict[str, str]:
        return {**engine_properties(*arguments), **order["properties"]}

    address = PostgresAddress(**(order["address"] | {"password": SecretStr(order["address"]["password"])}))
    tables = [TableId(*names) for names in order["tables"]]
    connection = psycopg2.connect(
        host=address.host, port=address.port, dbname=address.database, user=address.username,
        password=address.password.get_secret_value(),
    )  # fmt: skip
    schemas = {schema.table: schema for schema in read_tables(connection, tables=tables)}
    connection.close()
    source = SourceSpec(1, "child", address, order["publication"], order["slot"], ("*.*",))
    with patch.object(engine, "engine_properties", changed):
        stream = engine.DebeziumStream(
            source,
            SchemaRegistry(schemas.values(), schemas.__getitem__),
            tables,
            settings=BatchSettings(stamped=order["stamped"]),
            heap_megabytes=512,
            spill_directory=Path(tempfile.mkdtemp()),
        )
    threading.Timer(150, os._exit, (1,)).start()
    left = order["transactions"]
    for batch in stream.batches():
        for segment in batch.segments():
            for changes in segment.tables:
                name = changes.version.schema.table.name
                for row in changes.rows.to_pylist():
                    sys.stdout.write(json.dumps({"table": name, "row": row}) + "\n")
        left -= batch.transactions
        if left <= 0:
            break
    sys.stdout.flush()
    os._exit(0)  # the engine's own threads outlive it


if __name__ == "__main__":
    main()
