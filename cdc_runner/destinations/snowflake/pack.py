"""Lines from a COPY, cut into requests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping

import pyarrow as pa

from cdc_runner.destinations.snowflake.rows import MAX_COMPRESSED_BYTES, MAX_REQUEST_BYTES
from cdc_runner.destinations.snowflake.source_json import MISFIT
from cdc_runner.destinations.snowflake.streaming import Rows
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId

_MISFIT = f'{{"{MISFIT}":'.encode()


class Packer:
    """A file to write lines to, which become requests of whole lines. Holds no more than one request."""

    def __init__(
        self,
        compression: str,
        send: Callable[[Rows], None] = lambda rows: None,
        position: Callable[[int], str] = str,
        table: TableId | None = None,
    ) -> None:
        """Args:
        compression: `zstd` or `gzip`.
        send: takes each request.
        position: gives the offset token of a row by its number, counted from 1.
        table: for messages.
        """
        self._codec = pa.Codec("zstd", 3) if compression == "zstd" and pa.Codec.is_available("zstd") else None
        self._send = send
        self._position = position
        self._table = table
        self._buffer = bytearray()
        self.rows = 0
        self.raw_bytes = 0

    def write(self, data: bytes) -> int:
        """Take bytes; whole requests are sent."""
        self._buffer += data
        while len(self._buffer) > MAX_REQUEST_BYTES:
            end = self._buffer.rfind(b"\n", 0, MAX_REQUEST_BYTES) + 1
            if not end:
                end = self._buffer.find(b"\n") + 1
                if not end:
                    break
            self._emit(bytes(self._buffer[:end]))
            del self._buffer[:end]
        return len(data)

    def flush(self) -> None:
        """Send the rest."""
        if self._buffer:
            self._emit(bytes(self._buffer))
            self._buffer.clear()

    def single(self, values: Mapping[str, str | None], position: str) -> Rows:
        """Return a request of one row."""
        return self._request(json.dumps(dict(values), ensure_ascii=False).encode() + b"\n", 1, position, position)

    def _emit(self, body: bytes) -> None:
        if _MISFIT in body:
            start = body.index(_MISFIT)
            column = json.loads(body[start : body.index(b"\n", start)])[MISFIT]
            raise RosettaError(
                ErrorKind.DESTINATION_ROW_REJECTED,
                f"table {self._table}: column {column} holds a value that its type at Snowflake cannot hold "
                "(see the table of types)",
                {"table": str(self._table), "column": column},
            )
        count = body.count(b"\n")
        request = self._request(body, count, self._position(self.rows + 1), self._position(self.rows + count))
        self.rows += count
        self.raw_bytes += len(body)
        self._send(request)

    def _request(self, body: bytes, count: int, first: str, last: str) -> Rows:
        if self._codec is not None:
            packed, encoding = self._codec.compress(body, asbytes=True), "zstd"
        else:
            packed, encoding = gzip.compress(body, compresslevel=1, mtime=0), "gzip"
        if len(packed) > MAX_COMPRESSED_BYTES:
            raise RosettaError(
                ErrorKind.DESTINATION_ROW_REJECTED,
                f"table {self._table}: a row is {len(packed)} bytes after compression, and Snowflake takes at most "
                f"{MAX_COMPRESSED_BYTES} a request",
            )
        return Rows(packed, encoding, len(body), count, first, last)
