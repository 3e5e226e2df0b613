"""Processor time and memory of Dagster's processes and of PostgreSQL."""

from __future__ import annotations

import psutil

from tests.support.servers import PostgresServer


def postgres_of(server: PostgresServer) -> psutil.Process:
    """The server's main process: its times hold those of the backends that have ended."""
    ((backend,),) = server.execute("SELECT pg_backend_pid()")
    parent = psutil.Process(next(pid for (pid,) in server.execute(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"))).parent()  # fmt: skip
    assert parent is not None, backend
    return parent


def server_seconds(server: psutil.Process) -> float:
    """Processor time of a server with all its backends, also those that have ended."""
    times = server.cpu_times()
    return times.user + times.system + times.children_user + times.children_system + cpu_seconds(server.children())


def cpu_seconds(found: list[psutil.Process]) -> float:
    """Processor time of processes, without those that have ended."""
    total = 0.0
    for process in found:
        try:
            used = process.cpu_times()
        except psutil.Error:
            continue
        total += used.user + used.system
    return total


def resident_megabytes(process: psutil.Process) -> int:
    """Resident memory; 0 for a process that has ended, as an old code server does after a reload."""
    try:
        return int(process.memory_info().rss // 1048576)
    except psutil.Error:
        return 0
