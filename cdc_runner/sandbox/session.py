"""A sandbox that is kept for many requests: custom SQL of a pipeline, whose batches would else wait for a process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cdc_runner.sandbox.run import READY, START_SECONDS, SandboxTable

_CHILD = Path(__file__).parent / "serve.py"


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one request may use.

    Attributes:
        seconds: wall clock; then the process is killed.
        memory_megabytes: DuckDB's own limit; the address space of the process is bounded above it.
    """

    seconds: float = 60.0
    memory_megabytes: int = 512


@dataclass(frozen=True, slots=True)
class SandboxRows:
    """The result of a statement: names and types of its columns, and its rows as text in columns `c0 …`."""

    columns: tuple[tuple[str, str], ...]
    rows: pa.Table | None


class SandboxFailed(Exception):
    """A statement was refused, failed, or was stopped; the text says why, without a value of a row."""


class SandboxSession:
    """Starts its process when it is needed, and again after one that was killed. Not thread-safe."""

    def __init__(self, limits: SessionLimits | None = None) -> None:
        """Args:
        limits: of each request.
        """
        self._limits = limits or SessionLimits()
        self._process: subprocess.Popen[bytes] | None = None

    def parse(self, sql: str) -> dict[str, Any]:
        """Return the parser's tree of a SELECT that holds nothing that is not allowed.

        Raises:
            SandboxFailed: naming the reason.
        """
        answer, _ = self._ask({"parse": sql, "tables": []}, [])
        tree: dict[str, Any] = answer["tree"]
        return tree

    def run(
        self, statements: Sequence[Mapping[str, Any]], tables: Sequence[SandboxTable], *, describe: bool = False
    ) -> list[SandboxRows]:
        """Run statements over tables.

        Args:
            statements: trees as `parse` gives them.
            tables: all that they may read.
            describe: do not run them, only say what columns they have.

        Raises:
            SandboxFailed: naming the reason.
        """
        header = {
            "statements": list(statements),
            "describe": describe,
            "tables": [{"name": one.name, "columns": one.columns} for one in tables],
        }
        answer, results = self._ask(header, [one.rows for one in tables])
        found = [tuple((name, kind) for name, kind in columns) for columns in answer["columns"]]
        rows: list[pa.Table | None] = [*results] if results else [None] * len(found)
        return [SandboxRows(columns, one) for columns, one in zip(found, rows, strict=True)]

    def close(self) -> None:
        """End the process; idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        process.wait()

    def _ask(self, header: Mapping[str, Any], tables: Sequence[pa.Table]) -> tuple[dict[str, Any], list[pa.Table]]:
        process = self._started()
        late = threading.Event()

        def stop() -> None:
            late.set()
            os.kill(process.pid, signal.SIGKILL)

        timer = threading.Timer(self._limits.seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            answer, results = _exchange(process, header, tables)
        except (OSError, EOFError, ValueError):
            self.close()
            if late.is_set():
                raise SandboxFailed(f"it took longer than {self._limits.seconds:g} s") from None
            raise SandboxFailed("its process ended, mostly for lack of memory") from None
        finally:
            timer.cancel()
        if answer["state"] not in ("COMPLETED", "PARSED"):
            raise SandboxFailed(str(answer["reason"]))
        return answer, results

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
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
        self._process = process
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        megabytes = self._limits.memory_megabytes
        limits = {
            "memory_megabytes": megabytes,
            "address_space_bytes": 1_500_000_000 + 2 * megabytes * 1_000_000,
            # The clock of each request is the parent's; processor time would add up over all of them.
            "cpu_seconds": -1,
        }
        timer = threading.Timer(START_SECONDS, process.kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(limits).encode() + b"\n")
            process.stdin.flush()
            if process.stdout.read(1) != READY:
                raise EOFError
        except (OSError, EOFError):
            self.close()
            raise SandboxFailed("its process could not be started") from None
        finally:
            timer.cancel()
        return process


def _exchange(
    process: subprocess.Popen[bytes], header: Mapping[str, Any], tables: Sequence[pa.Table]
) -> tuple[dict[str, Any], list[pa.Table]]:
    assert process.stdin is not None and process.stdout is not None, "both are pipes"
    process.stdin.write(json.dumps(header).encode() + b"\n")
    for rows in tables:
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        process.stdin.write(len(sink.getvalue()).to_bytes(8, "big"))
        process.stdin.write(sink.getbuffer())
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    results = []
    if answer["state"] == "COMPLETED" and not header["describe"]:
        for _ in answer["columns"]:
            data = process.stdout.read(int.from_bytes(process.stdout.read(8), "big"))
            results.append(pa.ipc.open_stream(io.BytesIO(data)).read_all())
    return answer, results
