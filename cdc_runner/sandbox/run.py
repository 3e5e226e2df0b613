"""Runs a statement in the sandbox: starts the child, gives it the rows, and kills it when it takes too long."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cdc_runner.errors import ErrorKind, RosettaError

START_SECONDS = 30.0
READY = b"+"
"""What the child writes when it has its tables and has given up its rights."""

_CHILD = Path(__file__).parent / "child.py"


@dataclass(frozen=True, slots=True)
class SandboxTable:
    """A table for the statement: rows as text, cast by name to types of DuckDB."""

    name: str
    columns: tuple[tuple[str, str], ...]
    rows: pa.Table


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What a statement may use.

    Attributes:
        seconds: wall clock from when the process is ready; then it is killed.
        cpu_seconds: processor time.
        memory_megabytes: DuckDB's own limit.
        address_space_bytes: of the whole process.
        rows: most rows of the result; more are cut off.
        cell_characters: longest text of a value; the rest is cut off; None for no limit.
    """

    seconds: float = 6.0
    cpu_seconds: int = 5
    memory_megabytes: int = 128
    address_space_bytes: int = 1_500_000_000
    rows: int = 100
    cell_characters: int | None = 1000


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """What became of a statement.

    Attributes:
        state: COMPLETED, CHECKED, REFUSED, FAILED, KILLED or CANCELLED.
        reason: why, when it did not complete; without values of rows.
        tables: tables that it reads.
        not_row_wise: what keeps its rows from being computed from one row of one table each; None when nothing does.
        columns: names and types of the result.
        rows: the result as text, columns `c0 …`; None without one.
        truncated: whether there were more rows.
        seconds: wall clock, the start of the process included.
        peak_bytes: most resident memory of the process.
        network: whether the process had a network of its own without any connection.
    """

    state: str
    reason: str | None
    tables: tuple[str, ...]
    not_row_wise: str | None
    columns: tuple[tuple[str, str], ...]
    rows: pa.Table | None
    truncated: bool
    seconds: float
    peak_bytes: int
    network: str


def run_statement(
    sql: str,
    tables: Sequence[SandboxTable],
    limits: SandboxLimits | None = None,
    *,
    check_only: bool = False,
    cancelled: threading.Event | None = None,
) -> SandboxResult:
    """Run a statement, or only check what it holds. Whatever it does, it returns within the time limit.

    Args:
        sql: written by a user.
        tables: all that it may read.
        limits: of the process.
        check_only: do not run it.
        cancelled: when set, the process is killed.
    """
    limits = limits or SandboxLimits()
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-I", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Arrow's own allocator would reserve more than a gigabyte of the address space.
        env={"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"},
        cwd="/",
        start_new_session=True,
    )
    killed, finished = threading.Event(), threading.Event()
    # The time of a busy machine until the child is ready is not the statement's.
    deadline = [began + START_SECONDS]
    watcher = threading.Thread(target=_watch, args=(process.pid, deadline, finished, cancelled, killed), daemon=True)
    try:
        watcher.start()
        data = _exchange(process, _request(sql, tables, limits, check_only=check_only), deadline, limits.seconds)
    except BaseException:
        # Ctrl-C, or the end of the run that asked: nobody waits for the statement any more.
        process.kill()
        raise
    finally:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        finished.set()
        if watcher.ident is not None:
            watcher.join()
    seconds, peak = time.monotonic() - began, usage.ru_maxrss * 1024
    if killed.is_set() or process.returncode != 0:
        return _ended_early(process.returncode, killed.is_set(), cancelled, limits, seconds, peak)
    return _result(data, seconds, peak)


def _watch(
    pid: int,
    deadline: list[float],
    finished: threading.Event,
    cancelled: threading.Event | None,
    killed: threading.Event,
) -> None:
    while not finished.wait(0.05):
        if time.monotonic() > deadline[0] or (cancelled is not None and cancelled.is_set()):
            killed.set()
            os.kill(pid, signal.SIGKILL)
            return


def _request(sql: str, tables: Sequence[SandboxTable], limits: SandboxLimits, *, check_only: bool) -> bytes:
    header = {
        "sql": sql,
        "check_only": check_only,
        "tables": [{"name": one.name, "columns": one.columns} for one in tables],
        "limits": {
            "cpu_seconds": limits.cpu_seconds,
            "memory_megabytes": limits.memory_megabytes,
            "address_space_bytes": limits.address_space_bytes,
            "rows": limits.rows,
            "cell_characters": limits.cell_characters,
        },
    }
    pieces = [json.dumps(header).encode() + b"\n"]
    for one in tables:
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, one.rows.schema) as writer:
            writer.write_table(one.rows)
        pieces += [len(sink.getvalue()).to_bytes(8, "big"), sink.getvalue()]
    return b"".join(pieces)


def _exchange(process: subprocess.Popen[bytes], request: bytes, deadline: list[float], seconds: float) -> bytes:
    assert process.stdin is not None and process.stdout is not None, "both are pipes"
    try:
        process.stdin.write(request)
        process.stdin.close()
    except BrokenPipeError:
        # It ended; why is told by its exit.
        pass
    with process.stdout as output:
        if output.read(1) == READY:
            deadline[0] = time.monotonic() + seconds
        return output.read()


def _ended_early(
    code: int, killed: bool, cancelled: threading.Event | None, limits: SandboxLimits, seconds: float, peak: int
) -> SandboxResult:
    if killed and cancelled is not None and cancelled.is_set():
        state, reason = "CANCELLED", "it was cancelled"
    elif killed or code in (-signal.SIGXCPU, -signal.SIGKILL):
        state, reason = (
            "KILLED",
            f"it took longer than {limits.seconds:g} s, or {limits.cpu_seconds} s of processor time",
        )
    else:
        state, reason = "KILLED", "its process ended, mostly for lack of memory"
    return SandboxResult(state, reason, (), None, (), None, False, seconds, peak, "unknown")


def _result(data: bytes, seconds: float, peak: int) -> SandboxResult:
    line, _, rest = data.partition(b"\n")
    try:
        answer = json.loads(line)
    except ValueError:
        raise RosettaError(ErrorKind.INTERNAL, "the sandbox gave no answer") from None
    rows = pa.ipc.open_stream(io.BytesIO(rest)).read_all() if rest else None
    return SandboxResult(
        state=answer["state"],
        reason=answer.get("reason"),
        tables=tuple(answer.get("tables", ())),
        not_row_wise=answer.get("not_row_wise"),
        columns=tuple((name, kind) for name, kind in answer.get("columns", ())),
        rows=rows,
        truncated=bool(answer.get("truncated")),
        seconds=seconds,
        peak_bytes=peak,
        network=answer.get("network", "unknown"),
    )
