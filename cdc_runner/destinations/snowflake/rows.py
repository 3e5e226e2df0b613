"""Events as NDJSON for landing tables, written by DuckDB and cut into requests without touching a row in Python."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc_runner.destinations.snowflake import naming
from cdc_runner.destinations.snowflake.streaming import Rows
from cdc_runner.destinations.snowflake.types import DEFAULT_RULES, MAX_TEXT_BYTES, Carried, TypeRules, carried
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import Column, TableSchema, quote_identifier, quote_literal
from cdc_runner.spec import SyncMode

MAX_REQUEST_BYTES = 3_800_000
"""Uncompressed. The service takes 4 MB after compression; budgets of bytes are reached with requests of this size."""

MAX_COMPRESSED_BYTES = 4_000_000

_POSITION = "format('{:016x}/{:016x}', lsn, seq)"


@dataclass(frozen=True, slots=True)
class Shape:
    """How one version of a source table is written to its landing table.

    Attributes:
        schema: of the source, or what the sync's shape makes of it.
        columns: stored names by those of the schema.
        keeps: what the target keeps of rows that change.
        rules: what of the types is open to choice.
    """

    schema: TableSchema
    columns: dict[str, str]
    keeps: SyncMode = SyncMode.MIRROR
    rules: TypeRules = DEFAULT_RULES

    def carried(self, column: Column) -> Carried:
        """Return how a column is carried."""
        return carried_in(self.schema, column, self.rules)


def carried_in(schema: TableSchema, column: Column, rules: TypeRules) -> Carried:
    """Return how a column is carried in its table: without a key every column identifies rows."""
    return carried(column, identifying=not schema.key or column.name in schema.key, rules=rules)


class RowWriter:
    """Makes requests of rows. Owns a DuckDB connection of one thread; not to be shared between threads."""

    def __init__(self, compression: str, request_bytes: int = MAX_REQUEST_BYTES) -> None:
        """Args:
        compression: `zstd` or `gzip`.
        request_bytes: most uncompressed bytes of a request that has more than one row.
        """
        self._connection = duckdb.connect(config={"threads": "1", "autoinstall_known_extensions": "false"})
        self._zstd = pa.Codec("zstd", 3) if compression == "zstd" and pa.Codec.is_available("zstd") else None
        self._request_bytes = request_bytes

    def requests(self, shape: Shape, events: pa.Table, above: str | None) -> Iterator[Rows]:
        """Yield the events above an offset token as requests, in the order of the stream.

        Args:
            shape: of the table.
            events: layout of `NetKind.EVENTS` without `m`, none of which is a misfit.
            above: events at or below this position are left out.

        Raises:
            RosettaError: DESTINATION_ROW_REJECTED for a row above the limit of a request.
        """
        lines = self._made(shape, events, above)
        if lines.num_rows:
            yield from self.cut(lines.column("line"), lines.column("position"))

    def _made(self, shape: Shape, events: pa.Table, above: str | None) -> pa.Table:
        self._connection.register("events", events)
        try:
            return self._connection.execute(_lines(shape, above)).to_arrow_table()
        finally:
            self._connection.unregister("events")

    def misfits(self, shape: Shape, events: pa.Table, above: str | None) -> dict[str, str]:
        """Return the events that cannot be carried: position -> reason, which names the column."""
        found: dict[str, str] = {}
        tests = list(_tests(shape))
        self._connection.register("events", events)
        try:
            every = " AND ".join(f"coalesce({condition}, true)" for _, condition, _ in tests) or "true"
            row = self._connection.execute(f"SELECT count(*) FROM events WHERE NOT ({every}){_above(above)}").fetchone()
            for name, condition, why in tests if row is not None and row[0] else ():
                statement = f"SELECT {_POSITION} FROM events WHERE NOT ({condition}){_above(above)}"
                for (position,) in self._connection.execute(statement).fetchall():
                    found.setdefault(position, f"column {name}: {why}")
        finally:
            self._connection.unregister("events")
        if events.nbytes > MAX_COMPRESSED_BYTES:
            found |= self._too_large(shape, events, above, found)
        return found

    def _too_large(self, shape: Shape, events: pa.Table, above: str | None, known: Mapping[str, str]) -> dict[str, str]:
        """Return the events whose row alone is more than a request may be."""
        columns = [events.column(f"c{number}") for number in range(len(shape.schema.stream_columns))]
        sizes = np.sum([pc.fill_null(pc.binary_length(one), 0).to_numpy() for one in columns], axis=0)
        large = events.take(pa.array(np.flatnonzero(sizes > MAX_COMPRESSED_BYTES // 2)))
        found: dict[str, str] = {}
        for place in range(large.num_rows):
            one = self._made(shape, large.slice(place, 1), above)
            for line, position in zip(one.column("line").to_pylist(), one.column("position").to_pylist(), strict=True):
                size = len(self._pack(memoryview(line.encode()))[0])
                if size > MAX_COMPRESSED_BYTES and position not in known:
                    found[position] = too_large(size)
        return found

    def cut(self, lines: pa.ChunkedArray, positions: pa.ChunkedArray) -> Iterator[Rows]:
        """Yield requests of lines (each ends with a line feed) that are in the order of their positions."""
        text = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in lines.chunks])
        offsets = np.frombuffer(text.buffers()[1], dtype=np.int64)[text.offset : text.offset + len(text) + 1]
        data = memoryview(text.buffers()[2])
        first = 0
        while first < len(text):
            limit = offsets[first] + self._request_bytes
            last = max(first + 1, int(np.searchsorted(offsets, limit, side="right")) - 1)
            body = data[int(offsets[first]) : int(offsets[last])]
            yield self._request(body, last - first, str(positions[first]), str(positions[last - 1]))
            first = last

    def _pack(self, body: memoryview) -> tuple[bytes, str]:
        if self._zstd is not None:
            return self._zstd.compress(body, asbytes=True), "zstd"
        return gzip.compress(body, compresslevel=1, mtime=0), "gzip"

    def _request(self, body: memoryview, count: int, first: str, last: str) -> Rows:
        packed, encoding = self._pack(body)
        if len(packed) > MAX_COMPRESSED_BYTES:
            raise RosettaError(
                ErrorKind.DESTINATION_ROW_REJECTED,
                f"{too_large(len(packed))} (at {first})",
                {"position": first},
            )
        return Rows(packed, encoding, len(body), count, first, last)

    def plain(self, values: Sequence[tuple[str, str | None]], position: str) -> Rows:
        """Return a request of one row."""
        names = ", ".join(f"{quote_identifier(name)} := ?" for name, _ in values)
        row = self._connection.execute(
            f"SELECT to_json(struct_pack({names}))::VARCHAR", [value for _, value in values]
        ).fetchone()
        assert row is not None, "a SELECT without FROM gives a row"
        return self._request(memoryview(f"{row[0]}\n".encode()), 1, position, position)

    def close(self) -> None:
        """Free the connection's memory."""
        self._connection.close()


def too_large(size_bytes: int) -> str:
    """Return why a row of so many compressed bytes cannot be carried."""
    limit = f"Snowflake takes at most {MAX_COMPRESSED_BYTES} a request"
    return f"the row is {size_bytes} bytes after compression, and {limit}"


def _above(position: str | None) -> str:
    return "" if position is None else f" AND {_POSITION} > {quote_literal(position)}"


def _tests(shape: Shape) -> Iterator[tuple[str, str, str]]:
    """Yield column, condition of DuckDB that is true or NULL for values that can be carried, and the reason else."""
    for number, column in enumerate(shape.schema.stream_columns):
        how = shape.carried(column)
        if how.fits is not None:
            yield column.name, how.fits(f"c{number}"), how.misfit
        elif how.type.startswith(("VARCHAR", "VARIANT", "ARRAY")) and column.type_name not in (
            "uuid",
            "bit",
            "interval",
        ):
            yield column.name, f"strlen(c{number}) <= {MAX_TEXT_BYTES}", "it is longer than 16 MB"


def _lines(shape: Shape, above: str | None) -> str:
    fields = [
        (naming.POSITION, _POSITION),
        (naming.OPERATION, "op"),
        (naming.COMMITTED_AT, """strftime(make_timestamp(CAST("at" * 1000000 AS BIGINT)), '%Y-%m-%d %H:%M:%S.%f')"""),
        (naming.TRANSACTION, "xid::VARCHAR"),
        (naming.UNCHANGED, "x"),
    ]
    for number, column in enumerate(shape.schema.stream_columns):
        value = f"c{number}"
        how = shape.carried(column)
        if how.landed is not None:
            value = how.landed(value)
        if shape.carried(column).type.startswith("TIMESTAMP_TZ"):
            # Snowflake reads offsets of hours and minutes.
            value = f"regexp_replace({value}, '([+-][0-9]{{2}})$', '\\1:00')"
        fields.append((shape.columns[column.name], value))
    packed = ", ".join(f"{quote_identifier(name)} := {value}" for name, value in fields)
    where = "" if above is None else f" WHERE {_POSITION} > {quote_literal(above)}"
    return (
        f"SELECT to_json(struct_pack({packed}))::VARCHAR || chr(10) AS line, {_POSITION} AS position "
        f"FROM events{where} ORDER BY lsn, seq"
    )
