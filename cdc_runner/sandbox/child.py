"""The sandbox's child process: one request on standard input, one answer on standard output. Run by path, isolated.

    request   JSON header of one line, then for each of its tables an Arrow IPC stream, each after its length (8 bytes)
    answer    "+" when it is ready, JSON header of one line, then, when it says so, an Arrow IPC stream of text columns

Everything that it needs is loaded before it gives up its rights. What a statement may hold is `guard.check`'s matter;
memory, processor time, files and network are the kernel's.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

_spec = spec_from_file_location("guard", Path(__file__).with_name("guard.py"))
assert _spec is not None and _spec.loader is not None, "the file lies beside this one"
guard: Any = module_from_spec(_spec)
_spec.loader.exec_module(guard)

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_NOBODY = 65534

_LOCKS = [
    "SET memory_limit = '{memory}MB'",
    "SET max_temp_directory_size = '0KB'",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET allow_persistent_secrets = false",
    "SET python_enable_replacements = false",
    "SET TimeZone = 'UTC'",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
]


def main() -> None:
    """Answer one request."""
    answers = os.fdopen(os.dup(1), "wb")
    # Nothing but the answer goes to the parent.
    os.dup2(2, 1)
    request = sys.stdin.buffer
    header = json.loads(request.readline())
    tables = [(one, read_stream(request)) for one in header["tables"]]
    isolated = give_up_rights(header["limits"])
    answers.write(b"+")
    answers.flush()
    try:
        answer, rows = _answer(header, tables)
    except guard.Refused as error:
        answer, rows = {"state": "REFUSED", "reason": str(error)}, None
    except (duckdb.OutOfMemoryException, MemoryError):
        answer, rows = {"state": "FAILED", "reason": "it needs more memory than a statement may use"}, None
    except duckdb.Error as error:
        answer, rows = {"state": "FAILED", "reason": kind_of_error(error)}, None
    answer["network"] = "none" if isolated else "not isolated by this system"
    answers.write(json.dumps(answer).encode() + b"\n")
    if rows is not None:
        with pa.ipc.new_stream(answers, rows.schema) as writer:
            writer.write_table(rows)
    answers.flush()
    # DuckDB's own end is not awaited: a statement may have left it in any state.
    os._exit(0)


def read_stream(request: IO[bytes]) -> pa.Table:
    """Return a table of a request."""
    size = int.from_bytes(request.read(8), "big")
    return pa.ipc.open_stream(io.BytesIO(request.read(size))).read_all()


def give_up_rights(limits: dict[str, int]) -> bool:
    """Leave the network, the account and the limits of the parent behind; tell whether the network is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    root = os.geteuid() == 0
    isolated = bool(libc.unshare(_CLONE_NEWNET if root else _CLONE_NEWUSER | _CLONE_NEWNET) == 0)
    if root:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    for limit, value in (
        (resource.RLIMIT_AS, limits["address_space_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    return isolated


def _answer(header: dict[str, Any], tables: list[tuple[dict[str, Any], pa.Table]]) -> tuple[dict[str, Any], Any]:
    parser = connect()
    lock(parser, header["limits"])
    found = guard.check(parser, header["sql"], [one["name"] for one, _ in tables])
    answer: dict[str, Any] = {"state": "CHECKED", "tables": sorted(found.tables), "not_row_wise": found.row_wise}
    if header["check_only"]:
        return answer, None
    connection = connect()
    for one, rows in tables:
        connection.register("given", rows)
        casts = ", ".join(f"CAST({quoted(name)} AS {kind}) AS {quoted(name)}" for name, kind in one["columns"])
        connection.execute(f"CREATE TABLE {quoted(one['name'])} AS SELECT {casts or '*'} FROM given")
        connection.unregister("given")
    lock(connection, header["limits"])
    described = connection.execute(f"DESCRIBE {header['sql']}").fetchall()
    answer["columns"] = [[row[0], row[1]] for row in described]
    # The statement stands alone on its lines: a comment at its end ends there.
    limit = int(header["limits"]["rows"])
    names = [f"c{place}" for place in range(len(described))]
    texts = ", ".join(f"CAST({name} AS VARCHAR) AS {name}" for name in names)
    body = f"SELECT {texts} FROM (\n{header['sql'].rstrip().rstrip(';')}\n) AS result({', '.join(names)})"
    rows = connection.execute(f"{body} LIMIT {limit + 1}").to_arrow_table()
    answer["truncated"] = rows.num_rows > limit
    rows = rows.slice(0, limit)
    cell = header["limits"].get("cell_characters")
    if cell:
        rows = pa.table({name: pc.utf8_slice_codeunits(rows.column(name), 0, cell) for name in rows.column_names})
    answer["state"] = "COMPLETED"
    answer["rows"] = rows.num_rows
    return answer, rows


def connect() -> duckdb.DuckDBPyConnection:
    """Return an empty database in memory."""
    return duckdb.connect(":memory:", config={"threads": "1", "autoinstall_known_extensions": "false"})


def lock(connection: duckdb.DuckDBPyConnection, limits: dict[str, int]) -> None:
    """Take from a connection what a statement must not have."""
    for statement in _LOCKS:
        connection.execute(statement.format(memory=limits["memory_megabytes"]))


def quoted(name: str) -> str:
    """Return a name as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def kind_of_error(error: duckdb.Error) -> str:
    """Return what went wrong without a value of a row: names stand in binder and catalog errors only."""
    if isinstance(error, duckdb.BinderException | duckdb.CatalogException | duckdb.ParserException):
        return str(error).split("\n")[0][:300]
    return {
        "ConversionException": "a value cannot be converted to the type that is asked for",
        "OutOfRangeException": "a value is out of range",
        "InvalidInputException": "a function was given a value that it cannot use",
        "IOException": "it needs more memory than a statement may use, and would write it to disk",
        "PermissionException": "it asks for what is not allowed",
    }.get(type(error).__name__, f"it failed ({type(error).__name__})")


if __name__ == "__main__":
    main()
