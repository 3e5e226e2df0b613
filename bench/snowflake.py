"""Rates of the Snowflake writer and its initial load, against a service that only counts.

    python -m bench.snowflake [--rows N]     prints one JSON object; needs no account

The service is a process of its own that reads each request and throws it away, so what is measured is Rosetta's side.
Where `budgets` is true those of a channel (10 requests and 20 MB a second) are in force.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow as pa
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from bench import machine
from bench.servers import Database, servers
from bench.workloads import create_accounts
from cdc_runner.capture.inspect import read_tables
from cdc_runner.capture.publication import SnapshotSlot
from cdc_runner.destinations.base import TableLoad, TableState
from cdc_runner.destinations.chunks import plan_chunks
from cdc_runner.destinations.snowflake import channel as channels
from cdc_runner.destinations.snowflake.auth import KeyPairTokens
from cdc_runner.destinations.snowflake.channel import Channel, Patience
from cdc_runner.destinations.snowflake.load import SnowflakeLoad
from cdc_runner.destinations.snowflake.rows import RowWriter, Shape
from cdc_runner.destinations.snowflake.session import Session
from cdc_runner.destinations.snowflake.streaming import Pipe, Rows, StreamingService
from cdc_runner.destinations.snowflake.transport import Transport
from cdc_runner.position import Position
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.spec import PipelineSettings, ResolvedSync, SnowflakeAddress

BATCH_ROWS = 50_000
ACCOUNTS = TableSchema(
    TableId("public", "account"),
    (
        Column("aid", "integer", "int4"),
        Column("bid", "integer", "int4"),
        Column("abalance", "integer", "int4"),
        Column("filler", "character(84)", "bpchar"),
    ),
    ("aid",),
    ("aid",),
    ReplicaIdentity.DEFAULT,
)


def _serve(port: Any) -> None:
    committed: dict[str, str] = {}
    count = [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            return

        def _handle(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            count[0] += 1
            content: Any = {"next_continuation_token": str(count[0])}
            if parts.path.endswith("/rows"):
                name = parts.path.split("/")[-2]
                committed[name] = parse_qs(parts.query)["endOffsetToken"][0]
            elif parts.path.startswith("/api/"):
                content = {"code": "090001", "resultSetMetaData": {"rowType": []}, "data": []}
            elif parts.path.endswith("status"):
                content = {"channel_statuses": {name: _status(token) for name, token in committed.items()}}
            elif "/channels/" in parts.path:
                committed.pop(parts.path.split("/")[-1], None)
                content["channel_status"] = _status(None)
            text = f"127.0.0.1:{server.server_port}" if parts.path.endswith("hostname") else json.dumps(content)
            data = text.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _status(token: str | None) -> dict[str, Any]:
        # It does not look into the rows: what it says it inserted is less than nothing, which is not compared.
        return {"channel_status_code": "ACTIVE", "last_committed_offset_token": token, "rows_inserted": -count[0]}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port.send(server.server_port)
    server.serve_forever()


@contextmanager
def counting_service() -> Iterator[SnowflakeAddress]:
    """Give the address of a service that counts, for the time of the block."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    process.start()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        url = f"http://127.0.0.1:{here.recv()}"
        yield SnowflakeAddress("BENCH", "BENCH", SecretStr(key.decode()), "D", "S", host=url)
    finally:
        process.terminate()
        process.join(10)
        here.close()
        there.close()


def _events(first: int, rows: int) -> pa.Table:
    """Updates of one row each, as single-row transactions give them."""
    ids = np.arange(first, first + rows)
    text = pa.array(ids).cast(pa.string())
    filler = pa.array([secrets.token_hex(42)] * rows)
    return pa.table(
        {
            "op": pa.array(["u"] * rows),
            "x": pa.nulls(rows, pa.string()),
            "c0": text,
            "c1": pa.array(["1"] * rows),
            "c2": text,
            "c3": filler,
            "lsn": pa.array(ids * 100 + 1_000_000),
            "seq": pa.array(np.full(rows, 2)),
            "xid": pa.array(ids),
            "at": pa.array(np.full(rows, 1.7e9)),
        }
    )


def measure(address: SnowflakeAddress, rows: int, compression: str, *, budgets: bool) -> dict[str, Any]:
    """Write so many events in batches; return rates and CPU time of this process."""
    transport = Transport()
    service = StreamingService(address, KeyPairTokens(address), transport)
    rate = channels.BYTES_PER_SECOND if budgets else 1e12
    channel = Channel(service, Pipe("D", "S", "T"), f"C{secrets.token_hex(4)}", bytes_per_second=rate)
    if not budgets:
        channels.REQUESTS_PER_SECOND, before = 1e9, channels.REQUESTS_PER_SECOND
        channel = Channel(service, Pipe("D", "S", "T"), f"C{secrets.token_hex(4)}", bytes_per_second=rate)
        channels.REQUESTS_PER_SECOND = before
    writer = RowWriter(compression)
    shape = Shape(ACCOUNTS, {name: name.upper() for name in ACCOUNTS.stream_names})
    batches = [_events(start, BATCH_ROWS) for start in range(0, rows, BATCH_ROWS)]
    channel.open()
    raw = packed = 0
    started, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        assert not writer.misfits(shape, batch, channel.committed)  # as the destination looks first
        for request in writer.requests(shape, batch, channel.committed):
            raw, packed = raw + request.raw_bytes, packed + len(request.body)
            channel.send(request)
        channel.settle()
    seconds, used = time.perf_counter() - started, time.process_time() - cpu
    transport.close()
    writer.close()
    return {
        "compression": compression,
        "budgets": budgets,
        "rows": rows,
        "rows_per_s": round(rows / seconds),
        "mb_per_s": round(raw / seconds / 1e6, 1),
        "compressed_to": round(packed / raw, 3),
        "cpu_s_per_million_rows": round(used / rows * 1e6, 2),
    }


def measure_load(address: SnowflakeAddress, source: Database, rows: int, workers: int) -> dict[str, Any]:
    """Load a table of so many rows; return rates and CPU time of this process and of the source's sessions."""
    with closing(source.connect()) as connection:
        (schema,) = read_tables(connection, tables=[TableId("public", "pgbench_accounts")])
        chunks = plan_chunks(connection, schema, 16 << 20)
    session = Session(address, "bench", "bench")
    # The service that counts runs no statement, so nobody can have taken over.
    session.store.check_holder = lambda: None  # type: ignore[method-assign]
    copied: list[int] = []
    sizes: list[int] = []
    send = Channel.send

    def counted(self: Channel, request: Rows) -> None:
        sizes.append(request.raw_bytes)
        send(self, request)

    settings = PipelineSettings(load_workers=workers)
    with SnapshotSlot(source.address(), f"bench_{secrets.token_hex(4)}", temporary=True) as snapshot:
        state = TableState(
            ResolvedSync(None, schema.table, TableId("S", "account")), False, Position(snapshot.lsn), schema
        )
        load = SnowflakeLoad(
            session,
            source.address(),
            "bench",
            settings,
            snapshot,
            Patience(),
            threading.Event(),
            lambda sync, count: copied.append(count),
        )
        started, cpu = time.perf_counter(), time.process_time()
        with mock.patch.object(Channel, "send", counted):
            load.run([TableLoad(state, chunks, resumed=False)])
        seconds, used = time.perf_counter() - started, time.process_time() - cpu
    session.close()
    assert sum(copied) == rows, (sum(copied), rows)
    return {
        "workers": workers,
        "rows": rows,
        "rows_per_s": round(rows / seconds),
        "mb_per_s": round(sum(sizes) / seconds / 1e6, 1),
        "cpu_s_per_million_rows": round(used / rows * 1e6, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.snowflake", description="The Snowflake writer and its load.")
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--load", action="store_true", help="the initial load, too; starts servers")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"load_average": machine.load_average()}
    with counting_service() as address:
        result["writer"] = [
            measure(address, arguments.rows, compression, budgets=budgets)
            for compression in ("zstd", "gzip")
            for budgets in (True, False)
        ]
        if arguments.load:
            with servers() as own:
                source = own.create("source", "load")
                create_accounts(source, arguments.rows)
                result["load"] = [measure_load(address, source, arguments.rows, workers) for workers in (1, 2, 4)]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
