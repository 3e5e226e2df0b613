"""The sandbox's child process that answers many requests: custom SQL of a pipeline. Run by path, isolated.

    first     JSON header of one line with the limits; answer "+"
    request   JSON header of one line, then for each of its tables an Arrow IPC stream, each after its length (8 bytes)
    answer    JSON header of one line, then for each result an Arrow IPC stream of text columns after its length

Each request has a database of its own, which ends with it. The parent watches the clock.
"""

from __future__ import annotations

import io
import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

_spec = spec_from_file_location("child", Path(__file__).with_name("child.py"))
assert _spec is not None and _spec.loader is not None, "the file lies beside this one"
child: Any = module_from_spec(_spec)
_spec.loader.exec_module(child)
guard: Any = child.guard

_DATED = ("DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ")


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    limits = json.loads(requests.readline())
    # What is loaded lazily must be there before the rights are gone.
    _parsed(child.connect(), "SELECT 1")
    child.give_up_rights(limits)
    answers.write(b"+")
    answers.flush()
    while line := requests.readline():
        header = json.loads(line)
        tables = [(one, child.read_stream(requests)) for one in header["tables"]]
        answer, results = _answer(header, tables, limits)
        answers.write(json.dumps(answer).encode() + b"\n")
        for rows in results:
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_table(rows)
            answers.write(len(sink.getvalue()).to_bytes(8, "big"))
            answers.write(sink.getvalue())
        answers.flush()
    os._exit(0)


def _answer(
    header: dict[str, Any], tables: list[tuple[dict[str, Any], pa.Table]], limits: dict[str, int]
) -> tuple[dict[str, Any], list[pa.Table]]:
    try:
        if "parse" in header:
            parser = child.connect()
            child.lock(parser, limits)
            guard.check(parser, header["parse"], None)
            return {"state": "PARSED", "tree": _parsed(parser, header["parse"])}, []
        return _run(header, tables, limits)
    except guard.Refused as error:
        return {"state": "REFUSED", "reason": str(error)}, []
    except (duckdb.OutOfMemoryException, MemoryError):
        return {"state": "FAILED", "reason": "it needs more memory than a statement may use"}, []
    except duckdb.Error as error:
        return {"state": "FAILED", "reason": child.kind_of_error(error)}, []


def _parsed(parser: duckdb.DuckDBPyConnection, sql: str) -> Any:
    row = parser.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    assert row is not None, "a SELECT without FROM gives a row"
    return json.loads(row[0])["statements"][0]


def _run(
    header: dict[str, Any], tables: list[tuple[dict[str, Any], pa.Table]], limits: dict[str, int]
) -> tuple[dict[str, Any], list[pa.Table]]:
    connection = child.connect()
    for one, rows in tables:
        connection.register("given", rows)
        casts = ", ".join(f"{_typed(name, kind)} AS {child.quoted(name)}" for name, kind in one["columns"])
        connection.execute(f"CREATE TABLE {child.quoted(one['name'])} AS SELECT {casts} FROM given")
        connection.unregister("given")
    child.lock(connection, limits)
    names = [one["name"] for one, _ in tables]
    described, results = [], []
    for tree in header["statements"]:
        content = json.dumps({"error": False, "statements": [tree]})
        row = connection.execute("SELECT json_deserialize_sql(?)", [content]).fetchone()
        assert row is not None, "a SELECT without FROM gives a row"
        sql = row[0]
        guard.check(connection, sql, names)
        columns = [[row[0], row[1]] for row in connection.execute(f"DESCRIBE {sql}").fetchall()]
        described.append(columns)
        if not header["describe"]:
            places = [f"c{place}" for place in range(len(columns))]
            texts = ", ".join(f"{_text(name, kind)} AS {name}" for name, (_, kind) in zip(places, columns, strict=True))
            body = f"SELECT {texts} FROM (\n{sql}\n) AS result({', '.join(places)})"
            results.append(connection.execute(body).to_arrow_table())
    connection.close()
    return {"state": "COMPLETED", "columns": described}, results


def _typed(name: str, kind: str) -> str:
    value = child.quoted(name)
    # The two write years before Christ in different ways.
    return f"CAST(replace({value}, ' BC', ' (BC)') AS {kind})" if kind in _DATED else f"CAST({value} AS {kind})"


def _text(name: str, kind: str) -> str:
    return f"replace(CAST({name} AS VARCHAR), ' (BC)', ' BC')" if kind in _DATED else f"CAST({name} AS VARCHAR)"


if __name__ == "__main__":
    main()
