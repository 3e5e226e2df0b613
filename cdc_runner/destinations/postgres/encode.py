"""Net changes as a binary COPY stream, written by DuckDB.

Measured for 100,000 rows of 4 columns: 31 ms here, against 131 ms for a CSV writer and 121 ms for an INSERT through
DuckDB's attachment, which also hides SQLSTATEs and takes 9 ms for one row where COPY and upsert take 3.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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
        self._connection.register("net", rows)
        try:
            with _scratch_file(self._directory) as (name, file):
                casts = ", ".join(f"{column}::{_DUCKDB_TYPES[type_]} AS {column}" for column, type_ in columns)
                statement = f"COPY (SELECT {casts} FROM net) TO {quote_literal(name)} (FORMAT postgres_binary, USE_TMP_FILE false)"
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
