"""Lines from a COPY, cut into requests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from cdc_runner.destinations.snowflake.rows import MAX_COMPRESSED_BYTES, MAX_REQUEST_BYTES, Shape, too_large
from cdc_runner.destinations.snowflake.source_json import MISFIT
from cdc_runner.destinations.snowflake.streaming import Rows
from cdc_runner.destinations.snowflake.types import MAX_TEXT_BYTES
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import TableId
from cdc_runner.shaping.columns import ColumnPlan
from cdc_runner.shaping.mask import Masker
from cdc_runner.spec import MaskKind

_MISFIT = f'{{"{MISFIT}":'.encode()


@dataclass(frozen=True, slots=True)
class Misfit:
    """A row that cannot be carried: its position, the reason without a value, and its values by stored name."""

    position: str
    reason: str
    row: dict[str, str | None]


class Packer:
    """A file to write lines to, which become requests of whole lines. Holds no more than one request."""

    def __init__(
        self,
        compression: str,
        send: Callable[[Rows], None] = lambda rows: None,
        position: Callable[[int], str] = str,
        table: TableId | None = None,
        refuse: Callable[[Misfit], None] | None = None,
    ) -> None:
        """Args:
        compression: `zstd` or `gzip`.
        send: takes each request.
        position: gives the offset token of a row by its number, counted from 1.
        table: for messages.
        refuse: takes the rows that cannot be carried; without it such a row is an error.
        """
        self._codec = pa.Codec("zstd", 3) if compression == "zstd" and pa.Codec.is_available("zstd") else None
        self._send = send
        self._position = position
        self._table = table
        self._refuse = refuse
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
        count = body.count(b"\n")
        first = self.rows + 1
        self.rows += count
        if _MISFIT not in body and (count > 1 or len(body) <= MAX_REQUEST_BYTES):
            self._send_lines(body, count, first, self.rows)
            return
        kept: list[tuple[int, bytes]] = []
        for number, line in enumerate(body.split(b"\n")[:-1], first):
            misfit = self._misfit(line, number)
            if misfit is None:
                kept.append((number, line + b"\n"))
            elif self._refuse is None:
                raise RosettaError(
                    ErrorKind.DESTINATION_ROW_REJECTED,
                    f"table {self._table}: {misfit.reason} (see the table of types)",
                    {"table": str(self._table)},
                )
            else:
                self._refuse(misfit)
        if kept:
            self._send_lines(b"".join(line for _, line in kept), len(kept), kept[0][0], kept[-1][0])

    def _send_lines(self, body: bytes, count: int, first: int, last: int) -> None:
        self.raw_bytes += len(body)
        self._send(self._request(body, count, self._position(first), self._position(last)))

    def _misfit(self, line: bytes, number: int) -> Misfit | None:
        """Return why a row cannot be carried, None when it can."""
        if line.startswith(_MISFIT):
            value = json.loads(line)
            reason = f"column {value[MISFIT]} holds a value that its type at Snowflake cannot hold"
            return Misfit(self._position(number), reason, value["row"])
        if len(line) <= MAX_REQUEST_BYTES:
            return None
        row: dict[str, str | None] = json.loads(line)
        for name, text in row.items():
            if text is not None and len(text.encode()) > MAX_TEXT_BYTES:
                return Misfit(self._position(number), f"column {name}: it is longer than 16 MB", row)
        size = len(self._pack(line)[0])
        if size > MAX_COMPRESSED_BYTES:
            return Misfit(self._position(number), too_large(size), row)
        return None

    def _pack(self, body: bytes) -> tuple[bytes, str]:
        if self._codec is not None:
            return self._codec.compress(body, asbytes=True), "zstd"
        return gzip.compress(body, compresslevel=1, mtime=0), "gzip"

    def _request(self, body: bytes, count: int, first: str, last: str) -> Rows:
        packed, encoding = self._pack(body)
        return Rows(packed, encoding, len(body), count, first, last)


class MaskedLines:
    """A file that masks fields of the lines of JSON that are written to it."""

    def __init__(self, packer: Packer, masks: Mapping[str, Masker]) -> None:
        """Args:
        packer: takes the masked lines.
        masks: by stored name of the column.
        """
        self._packer = packer
        self._masks = masks
        self._left = b""

    def write(self, data: bytes) -> int:
        """Take bytes; whole lines are handed on."""
        lines = (self._left + data).split(b"\n")
        self._left = lines.pop()
        if lines:
            self._packer.write(b"".join(self._line(line) for line in lines))
        return len(data)

    def _line(self, line: bytes) -> bytes:
        value = json.loads(line)
        row = value["row"] if line.startswith(_MISFIT) else value
        for name, mask in self._masks.items():
            row[name] = mask(row[name])
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def masked(packer: Packer, shape: Shape, plan: ColumnPlan | None) -> Packer | MaskedLines:
    """Return where the lines of a load go: through the masks of a plan that are not made by the source's server."""
    if plan is None:
        return packer
    masks = {
        shape.columns[column.name]: one
        for column, mask, one in zip(shape.schema.stream_columns, plan.masks, plan.maskers, strict=True)
        if mask is not None and one is not None and mask.kind in (MaskKind.HASH, MaskKind.TRUNCATE)
    }
    return MaskedLines(packer, masks) if masks else packer


def unpacked(rows: Rows) -> list[dict[str, str | None]]:
    """Return the rows of a request, to look for the ones that the service rejected."""
    if rows.encoding == "gzip":
        body = gzip.decompress(rows.body)
    else:
        body = pa.Codec("zstd").decompress(rows.body, decompressed_size=rows.raw_bytes, asbytes=True)
    return [json.loads(line) for line in body.split(b"\n") if line]
