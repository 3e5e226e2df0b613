"""Which process is ours: pid files outlive their process, and the number may belong to another one since."""

from __future__ import annotations

from pathlib import Path

import psutil


def command_line(pid: int) -> list[str]:
    """Return a process's command line; empty when there is none.

    The working directory would say more, but in a container root may not read it for another account's process.
    """
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def is_postmaster(pid: int, data_directory: Path) -> bool:
    """Tell whether a pid is the main process of the PostgreSQL server on this data directory."""
    arguments = command_line(pid)
    return bool(arguments) and Path(arguments[0]).name == "postgres" and str(data_directory) in arguments


def server_children(cluster_name: str) -> list[psutil.Process]:
    """Return processes with the cluster's name in their title: a killed server's children live on for a moment."""
    prefix = f"postgres: {cluster_name}: "
    found = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if arguments and arguments[0].startswith(prefix):
            found.append(process)
    return found


def is_redis(pid: int, data_directory: Path) -> bool:
    """Tell whether a pid is the Redis server that works in this directory."""
    try:
        process = psutil.Process(pid)
        arguments = process.cmdline()
        if process.status() == psutil.STATUS_ZOMBIE or not arguments:
            return False
        name = Path(arguments[0].split(" ")[0]).name
        return name in ("redis-server", "valkey-server") and Path(process.cwd()) == data_directory
    except psutil.Error:
        return False
