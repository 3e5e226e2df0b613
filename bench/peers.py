"""Initial load, against tools that are not part of this installation: `pgcopydb` and `dlt`.

Each is measured where the machine has it, and is passed over with a sentence where not:

    pgcopydb   on PATH
    dlt        in a virtual environment of its own, so that its dependencies stay out of ours: the variable
               `BENCH_DLT_PYTHON` names the interpreter, or `make bench-dlt` makes `.venv-dlt`

Nobody's start counts: Rosetta's time runs from its snapshot until the table has its key, dlt's that of its run, of
pgcopydb's that of the whole command, which starts in no time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import load
from bench.servers import Database, Servers
from bench.settings import Sizes
from bench.workloads import ACCOUNTS, create_accounts

_TIMEOUT = 300.0
_ROOT = Path(__file__).parent.parent
_ORDER = "BENCH_DLT_ORDER"
"""The variable that tells `dlt_load` what to do: its addresses hold passwords, which no argument list may show."""


def measure(servers: Servers, sizes: Sizes, note: Callable[[str], None]) -> dict[str, Any]:
    """Return seconds and ratio for each peer, or why it was passed over."""
    found: dict[str, Any] = {}
    contenders: dict[str, Callable[[Database, Database], float]] = {}
    if shutil.which("pgcopydb"):
        contenders["pgcopydb"] = _pgcopydb
    else:
        found["pgcopydb"] = {"skipped": "pgcopydb is not on PATH"}
    if python := _dlt_python():
        contenders["dlt"] = lambda source, target: _dlt(python, source, target)
    else:
        found["dlt"] = {"skipped": "dlt is not installed beside this project; `make bench-dlt` does that"}
    for name, one in found.items():
        note(f"{name} left out: {one['skipped']}")
    if not contenders:
        return found
    source = servers.create("source", "peers")
    create_accounts(source, sizes.load_rows)
    times = dict.fromkeys(["rosetta", *contenders], 0.0)
    # Once: these are far from each other, and slow.
    for name in times:
        servers.settle()
        seconds = load.once(servers, source) if name == "rosetta" else _copy(servers, source, contenders[name])
        times[name] = seconds
        note(f"{name}: {sizes.load_rows / seconds:,.0f} rows/s")
    servers.drop("source", source)
    for name in contenders:
        found[name] = {
            "rows": sizes.load_rows,
            "rosetta_s": round(times["rosetta"], 2),
            "s": round(times[name], 2),
            "ratio": round(times[name] / times["rosetta"], 2),
        }
    return found


def _copy(servers: Servers, source: Database, copy: Callable[[Database, Database], float]) -> float:
    target = servers.create("target", "peers")
    try:
        seconds = copy(source, target)
        counts = [int(one.execute(f"SELECT count(*) FROM {ACCOUNTS}")[0][0]) for one in (source, target)]
    finally:
        servers.drop("target", target)
    if counts[0] != counts[1]:
        raise RuntimeError(f"{counts[1]} of {counts[0]} rows were copied")
    return seconds


def _pgcopydb(source: Database, target: Database) -> float:
    environment = {**os.environ, "PGCOPYDB_SOURCE_PGURI": source.uri(), "PGCOPYDB_TARGET_PGURI": target.uri()}
    options = ["--table-jobs", "2", "--split-tables-larger-than", "20MB", "--no-acl", "--no-owner"]
    started = time.monotonic()
    _run(["pgcopydb", "clone", *options], environment)
    return time.monotonic() - started


def _dlt(python: str, source: Database, target: Database) -> float:
    order = {"source": source.url(), "target": target.uri(), "tables": ["pgbench_accounts", "bench_marker"]}
    answer = _run([python, str(_ROOT / "bench" / "dlt_load.py")], {**os.environ, _ORDER: json.dumps(order)})
    return float(answer.splitlines()[-1])


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-1500:]}")
    return done.stdout


def _dlt_python() -> str | None:
    for candidate in (os.environ.get("BENCH_DLT_PYTHON"), str(_ROOT / ".venv-dlt" / "bin" / "python")):
        if candidate and Path(candidate).exists():
            return candidate
    return None
