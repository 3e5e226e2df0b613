"""Debezium's JSON lines to rows in text form, parsed by DuckDB."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from cdc_runner.capture.base import TableVersion
from cdc_runner.capture.debezium import convert
from cdc_runner.capture.debezium.tiny import TINY_EVENTS, tiny_rows
from cdc_runner.schema import ReplicaIdentity, TableSchema, quote_literal


def pointer(*names: str) -> str:
    """Return the JSON pointer (RFC 6901) of nested members; unlike a JSON path it takes any name."""
    return "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)


def split_lines(data: bytes) -> pa.Array:
    """Return the lines of a text as an Arrow array over the same memory; the line feeds stay, JSON ignores them."""
    ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 10) + 1
    offsets = np.empty(len(ends) + 2, dtype=np.int64)
    offsets[0] = 0
    offsets[1:-1] = ends
    offsets[-1] = len(data)
    return pa.LargeStringArray.from_buffers(len(ends) + 1, pa.py_buffer(offsets), pa.py_buffer(data))


class Decoder:
    """Turns lines of one table version into the row layout of `cdc_runner.capture.base`.

    Any thread may use it: small batches are decoded by the thread that reads the stream, large ones by the threads that
    apply them. Each has a DuckDB connection of one thread of its own, since the lines are registered by name.
    """

    def __init__(self, marker: str) -> None:
        """Args:
        marker: what Debezium writes in place of an unchanged TOAST value.
        """
        self._marker = marker
        self._local = threading.local()

    def rows(self, version: TableVersion, data: bytes) -> pa.Table:
        """Return the changes in stream order."""
        if data.count(b"\n") < TINY_EVENTS:
            rows = tiny_rows(version.schema, data, self._marker)
            if rows is not None:
                return rows
        session: _Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = _Session(self._marker)
        return session.rows(version, data)


class _Session:
    """One thread's DuckDB connection and its statements."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._connection = duckdb.connect(
            config={"threads": "1", "autoinstall_known_extensions": "false", "python_enable_replacements": "false"}
        )
        self._statements: dict[TableVersion, DecodeStatements] = {}

    def rows(self, version: TableVersion, data: bytes) -> pa.Table:
        lines = split_lines(data)
        self._connection.register(
            "lines", pa.table({"ord": pa.array(np.arange(len(lines), dtype=np.int64)), "line": lines})
        )
        statements = self._statements.get(version)
        if statements is None:
            statements = self._statements[version] = decode_statements(version.schema, self._marker)
        connection = self._connection
        try:
            if statements.direct is not None:
                rows = connection.execute(statements.direct).to_arrow_table()
                if rows.column("x").null_count == rows.num_rows:
                    return rows
            connection.execute(statements.parse)
            (special,) = connection.execute(statements.is_special).fetchall()[0]
            return connection.execute(statements.special if special else statements.plain).to_arrow_table()
        finally:
            connection.unregister("lines")


@dataclass(frozen=True, slots=True)
class DecodeStatements:
    """DuckDB statements for one table version, run one after the other.

    Keyed tables: an insert or update is one 'u' row; a changed key is a 'd' of the old key and a 'u' of the new one, or
    one 'm' row when some values are not in the event. Tables without a key: 'd' and 'i' of whole rows.

    Attributes:
        direct: the rows in one statement, right when no value is missing; None when a key may change within an event.
            DuckDB keeps the order of the lines, since nothing in it sorts or joins.
        parse: makes the temporary table `event` from the view `lines`.
        is_special: tells whether `event` needs more than `plain`.
        plain: the rows when every event stands for itself.
        special: the rows when keys change or values are missing; needs the order of the events.
    """

    direct: str | None
    parse: str
    is_special: str
    plain: str
    special: str


def decode_statements(schema: TableSchema, marker: str) -> DecodeStatements:
    """Return the statements that decode the lines of one table version."""
    names, columns = schema.stream_names, schema.stream_columns
    width = len(names)
    pointers = [
        pointer("op"),
        *(pointer("after", name) for name in names),
        *(pointer("before", name) for name in names),
    ]
    paths = "[" + ", ".join(quote_literal(path) for path in pointers) + "]"
    after = [convert.expression(column, f"v[{number + 2}]") for number, column in enumerate(columns)]
    before = [convert.expression(column, f"v[{number + 2 + width}]") for number, column in enumerate(columns)]
    tests = [convert.unchanged_test(column, f"v[{number + 2}]", marker) for number, column in enumerate(columns)]
    # REPLICA IDENTITY FULL puts the old value beside a placeholder.
    filled = [
        f"CASE WHEN {test} THEN {old} ELSE {new} END AS c{number}" if test else f"{new} AS c{number}"
        for number, (test, new, old) in enumerate(zip(tests, after, before, strict=True))
    ]
    marks = [
        f"CASE WHEN {test} AND {old} IS NULL THEN '1' ELSE '0' END" if test else "'0'"
        for test, old in zip(tests, before, strict=True)
    ]
    unknown = " OR ".join(f"({test} AND {old} IS NULL)" for test, old in zip(tests, before, strict=True) if test)
    mark = f"CASE WHEN {unknown} THEN concat({', '.join(marks)}) END" if unknown else "NULL::VARCHAR"
    olds = ", ".join(f"{old} AS b{number}" for number, old in enumerate(before))
    query = f"""SELECT ord, v[1] AS op, {mark} AS x, {", ".join(filled)}, {olds}
FROM (SELECT ord, json_extract_string(line, {paths}) AS v FROM lines)"""
    if not schema.key:
        return _keyless(f"CREATE OR REPLACE TEMP TABLE event AS {query}", width)
    return _keyed(schema, query)


def _keyless(parse: str, width: int) -> DecodeStatements:
    columns = ", ".join(f"c{number}" for number in range(width))
    old_columns = ", ".join(f"b{number} AS c{number}" for number in range(width))
    rows = f"""
SELECT * FROM (
  SELECT ord * 2 AS ord, CASE op WHEN 't' THEN 't' ELSE 'd' END AS op, NULL::VARCHAR AS x, {old_columns}
  FROM event WHERE op IN ('u', 'd', 't')
  UNION ALL
  SELECT ord * 2 + 1, 'i', x, {columns} FROM event WHERE op IN ('c', 'u', 'r'))
ORDER BY ord"""
    return DecodeStatements(None, parse, "SELECT false", rows, rows)


def _keyed(schema: TableSchema, query: str) -> DecodeStatements:
    width = len(schema.stream_columns)
    key_numbers = [schema.stream_names.index(name) for name in schema.key]
    parse = f"CREATE OR REPLACE TEMP TABLE event AS {query}"
    columns = ", ".join(f"c{number}" for number in range(width))
    moved = " OR ".join(f"b{number} IS DISTINCT FROM c{number}" for number in key_numbers)
    known = " AND ".join(f"b{number} IS NOT NULL" for number in key_numbers)
    # Of a delete only the key counts; the other values are NULL or, with REPLICA IDENTITY FULL, of no use.
    plain = ", ".join(
        f"CASE WHEN op = 'd' THEN b{number} ELSE c{number} END AS c{number}" if number in key_numbers else f"c{number}"
        for number in range(width)
    )
    old_key_only = ", ".join(
        f"b{number} AS c{number}" if number in key_numbers else f"NULL::VARCHAR AS c{number}" for number in range(width)
    )
    no_key = ", ".join(f"NULL::VARCHAR AS k{place}" for place in range(len(key_numbers)))
    old_key = ", ".join(f"b{number} AS k{place}" for place, number in enumerate(key_numbers))
    previous = ", ".join(f"lag(b{number}) OVER (ORDER BY ord) AS p{place}" for place, number in enumerate(key_numbers))
    previous_key = ", ".join(f"p{place} AS k{place}" for place in range(len(key_numbers)))
    plain_rows = f"""SELECT ord * 2 AS ord, CASE WHEN op IN ('d', 't') THEN op ELSE 'u' END AS op, x, {plain}
FROM {{source}} WHERE op IN ('c', 'u', 'd', 'r', 't')"""
    # Debezium splits an update that changes the primary key; of another identity it knows nothing.
    whole = schema.replica_identity is not ReplicaIdentity.INDEX
    return DecodeStatements(
        direct=plain_rows.replace("{source}", f"({query})") if whole else None,
        parse=parse,
        is_special=f"SELECT count(*) > 0 FROM event WHERE x IS NOT NULL OR (op = 'u' AND ({known}) AND ({moved}))",
        plain=plain_rows.replace("{source}", "event") + " ORDER BY ord",
        # Debezium sends a changed key as a delete and a create; only then can a create hold a placeholder.
        special=f"""
WITH marked AS (SELECT *, op = 'u' AND ({known}) AND ({moved}) AS rekeyed, op = 'c' AND x IS NOT NULL AS second,
                       {previous} FROM event),
paired AS (SELECT *, coalesce(lead(second) OVER (ORDER BY ord), false) AS first FROM marked)
SELECT * FROM (
  SELECT ord * 2 AS ord, CASE op WHEN 't' THEN 't' ELSE 'd' END AS op, NULL::VARCHAR AS x, {old_key_only}, {no_key}
  FROM paired WHERE op = 't' OR (op = 'd' AND NOT first) OR (rekeyed AND x IS NULL)
  UNION ALL
  SELECT ord * 2 + 1, 'u', x, {columns}, {no_key}
  FROM paired WHERE op IN ('c', 'u', 'r') AND NOT second AND NOT (rekeyed AND x IS NOT NULL)
  UNION ALL
  SELECT ord * 2 + 1, 'm', x, {columns}, {old_key} FROM paired WHERE rekeyed AND x IS NOT NULL
  UNION ALL
  SELECT ord * 2 + 1, 'm', x, {columns}, {previous_key} FROM paired WHERE second)
ORDER BY ord""",
    )


def parse_end(line: str) -> tuple[int, float]:
    """Return LSN and commit time (seconds since the epoch) of an END event."""
    event = json.loads(line)
    return int(event["id"].rpartition(":")[2]), event["ts_ms"] / 1000
