"""Net changes as a binary COPY stream, written by DuckDB.

Measured for 100,000 rows of 4 columns: 31 ms here, against 131 ms for a CSV writer and 121 ms for an INSERT through
DuckDB's attachment, which also hides SQLSTATEs and takes 9 ms for one row where COPY and upsert take 3.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import duckdb
import duckdb_extension_postgres_scanner
import pyarrow as pa

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import quote_literal


class BinaryEncoder:
    """Writes Arrow tables in the format of `COPY … (FORMAT binary)`. Owns a DuckDB connection of one thread."""

    def __init__(self, directory: Path) -> None:
        """Args:
        directory: where the short-lived file goes.
        """
        self._directory = directory
        self._connection = duckdb.connect(config={"threads": "1", "autoinstall_known_extensions": "false"})
        self._connection.execute(f"LOAD {quote_literal(str(extension_path()))}")

    @contextmanager
    def encoded(self, rows: pa.Table, columns: list[tuple[str, str]]) -> Iterator[IO[bytes]]:
        """Give a file of the rows, for the time of the block.

        Args:
            rows: the Arrow table.
            columns: names and PostgreSQL types (text, boolean or bigint) in the order of the staging table.

        Raises:
            RosettaError: SPILL_FAILED when there is no room for the file.
        """
        if rows.nbytes > rows.num_rows * max(LARGE_ROW_BYTES, LARGE_VALUE_BYTES * len(columns)):
            yield io.BufferedReader(LargeRows(rows, columns), COPY_BYTES)
            return
        if rows.num_rows <= TINY_ROWS:
            yield io.BytesIO(tiny_copy(rows, columns))
            return
        self._connection.register("net", rows)
        try:
            with _scratch_file(self._directory) as (name, file):
                casts = ", ".join(f"{column}::{_DUCKDB_TYPES[type_]} AS {column}" for column, type_ in columns)
                options = "FORMAT postgres_binary, USE_TMP_FILE false"
                statement = f"COPY (SELECT {casts} FROM net) TO {quote_literal(name)} ({options})"
                try:
                    self._connection.execute(statement)
                except duckdb.IOException as error:
                    raise RosettaError(ErrorKind.SPILL_FAILED, f"cannot write below {self._directory}") from error
                file.seek(0)
                yield file
        finally:
            self._connection.unregister("net")

    def close(self) -> None:
        """Free the connection's memory."""
        self._connection.close()


def tiny_copy(rows: pa.Table, columns: list[tuple[str, str]]) -> bytes:
    """Return a few rows as a binary COPY stream, written in Python.

    The format: a header of 19 bytes, then for each row the number of fields and for each field its length (-1 for NULL)
    and bytes, all in network order; at the end -1. See PostgreSQL's documentation of COPY.
    """
    fields = [_FIELDS[type_](rows.column(name).to_pylist()) for name, type_ in columns]
    head = struct.pack("!h", len(columns))
    body = [head + b"".join(row) for row in zip(*fields, strict=True)]
    return _HEAD + b"".join(body) + b"\xff\xff"


class LargeRows(io.RawIOBase):
    """The same stream read piece by piece, without a copy of the rows: values go out of Arrow's memory as they are."""

    def __init__(self, rows: pa.Table, columns: list[tuple[str, str]]) -> None:
        """Args:
        rows: the Arrow table.
        columns: names and PostgreSQL types (text, boolean or bigint).
        """
        super().__init__()
        self._pieces = _pieces(rows, columns)
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as the present piece does; 0 at the end."""
        while not self._piece:
            following = next(self._pieces, None)
            if following is None:
                return 0
            self._piece = following
        room = memoryview(buffer)
        size = min(len(room), len(self._piece))
        room[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size


def _pieces(rows: pa.Table, columns: list[tuple[str, str]]) -> Iterator[memoryview]:
    yield memoryview(_HEAD)
    head = struct.pack("!h", len(columns))
    for place in range(rows.num_rows):
        small = head
        for name, type_ in columns:
            value = rows.column(name)[place]
            if type_ == "text" and value.is_valid:
                text = value.as_buffer()
                yield memoryview(small + struct.pack("!i", text.size))
                yield memoryview(text).cast("B")
                small = b""
            else:
                small += _FIELDS[type_]([value.as_py()])[0]
        yield memoryview(small)
    yield memoryview(b"\xff\xff")


_HEAD = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_NULL = b"\xff\xff\xff\xff"


def _text_fields(values: list[str | None]) -> list[bytes]:
    encoded = [None if value is None else value.encode() for value in values]
    return [_NULL if value is None else struct.pack("!i", len(value)) + value for value in encoded]


def _boolean_fields(values: list[bool | None]) -> list[bytes]:
    return [_NULL if value is None else struct.pack("!ib", 1, value) for value in values]


def _bigint_fields(values: list[int | None]) -> list[bytes]:
    return [_NULL if value is None else struct.pack("!iq", 8, value) for value in values]


_FIELDS: dict[str, Callable[[list[Any]], list[bytes]]] = {
    "text": _text_fields,
    "boolean": _boolean_fields,
    "bigint": _bigint_fields,
}

TINY_ROWS = 200
"""Up to so many rows the plain loop is faster than a statement of DuckDB."""

LARGE_ROW_BYTES = 1 << 14
"""Rows larger than this on average go out as they are: a loop over them costs little beside copies of them."""

LARGE_VALUE_BYTES = 1 << 10
"""Their values have to be larger than this on average: the loop goes over values."""

COPY_BYTES = 1 << 18
"""How much is read from such rows at once."""


@contextmanager
def _scratch_file(directory: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Give a name that DuckDB can write to, and the file open for reading.

    DuckDB syncs what it writes. On a busy disk that was seen to take seconds a batch, so the file is one in memory
    where the system has such files; it is no larger than a segment.
    """
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("rosetta-copy"), "rb") as file:
            yield f"/proc/self/fd/{file.fileno()}", file
        return
    handle, name = tempfile.mkstemp(dir=directory, suffix=".copy")
    try:
        with os.fdopen(handle, "rb") as file:
            yield name, file
    finally:
        Path(name).unlink(missing_ok=True)


_DUCKDB_TYPES = {"text": "VARCHAR", "boolean": "BOOLEAN", "bigint": "BIGINT"}


def extension_path() -> Path:
    """Return DuckDB's postgres extension as shipped in its wheel; nothing is downloaded.

    Raises:
        RosettaError: INTERNAL when the wheel does not hold it for this platform.
    """
    root = Path(duckdb_extension_postgres_scanner.__file__).parent / "extensions"
    found = sorted(root.glob("*/*.duckdb_extension")) + sorted(root.glob("*.duckdb_extension"))
    if not found:
        raise RosettaError(ErrorKind.INTERNAL, "DuckDB's postgres extension is not in its package")
    return found[0]
