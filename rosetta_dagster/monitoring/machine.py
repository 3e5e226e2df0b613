"""CPU and memory of this host, of the runners on it, and of their pipelines."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import psutil
from sqlalchemy import text
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import SystemMetric
from rosetta_dagster.resources.runner_heartbeats import RunnerHeartbeat

_PIPELINE_MODULE = "cdc_runner.pipeline"


@dataclass(frozen=True, slots=True)
class Usage:
    """What one subject uses: percent of one core (of all cores for the host) and bytes; None where not measured here.

    Attributes:
        wal_bytes: WAL that the source keeps for a pipeline's slot.
        lag_ms: the largest lag of a pipeline's destinations.
        batch_ms: mean time of its last batches at the slowest destination.
    """

    subject: str
    cpu_percent: float | None = None
    used_memory: int | None = None
    total_memory: int | None = None
    used_swap: int | None = None
    total_swap: int | None = None
    wal_bytes: int | None = None
    lag_ms: int | None = None
    batch_ms: int | None = None


class Machine:
    """Measures; holds the processes, as their CPU use is the difference between two looks."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}
        psutil.cpu_percent(None)

    def measure(self, runners: Sequence[RunnerHeartbeat], pipelines: Mapping[int, str]) -> list[Usage]:
        """Return the use of the host, and of the runners of this host with their pipelines.

        Args:
            runners: those that live, on any host.
            pipelines: names by id.
        """
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        host = Usage("host", psutil.cpu_percent(None), memory.used, memory.total, swap.used, swap.total)
        found: dict[int, tuple[str, psutil.Process]] = {}
        for runner in runners:
            if runner.host == socket.gethostname():
                found |= self._family(runner.pid, pipelines)
        self._processes = {pid: process for pid, (_, process) in found.items()}
        measured = (_measure(subject, process) for subject, process in found.values())
        return [host, *(usage for usage in measured if usage is not None)]

    def _family(self, pid: int, pipelines: Mapping[int, str]) -> dict[int, tuple[str, psutil.Process]]:
        try:
            runner = self._known(pid)
            found = {pid: ("runner", runner)}
            children = runner.children(recursive=True)
        except psutil.Error:
            # Ended meanwhile, or another user's.
            return {}
        for child in children:
            # One that has ended, and is not waited for yet, must not hide the others.
            with contextlib.suppress(psutil.Error):
                name = pipelines.get(_pipeline_id(child.cmdline()) or -1)
                if name is not None:
                    found[child.pid] = (f"{PIPELINE_PREFIX}{name}", self._known(child.pid))
        return found

    def _known(self, pid: int) -> psutil.Process:
        known = self._processes.get(pid)
        return known if known is not None and known.is_running() else psutil.Process(pid)


def _measure(subject: str, process: psutil.Process) -> Usage | None:
    try:
        return Usage(subject, process.cpu_percent(None), process.memory_info().rss)
    except psutil.Error:
        return None


def _pipeline_id(command: Sequence[str]) -> int | None:
    """Return the id in `python -m cdc_runner.pipeline ID …`."""
    words = list(command)
    try:
        return int(words[words.index(_PIPELINE_MODULE) + 1])
    except (ValueError, IndexError):
        return None


PIPELINE_PREFIX = "pipeline:"

_PIPELINES = text(
    """
    SELECT p.name, max(o.lag_ms) AS lag_ms, max(o.batch_ms) AS batch_ms, max(w.retained_wal_bytes) AS wal_bytes
    FROM pipelines p
    LEFT JOIN stream_offsets o ON o.pipeline_id = p.id AND o.updated_at > now() - interval '2 minutes'
    LEFT JOIN wal_monitor w ON w.source_id = p.source_id
    WHERE p.status <> 'PAUSE' GROUP BY p.name ORDER BY p.name
    """
)


def with_pipelines(session: Session, usage: Sequence[Usage]) -> list[Usage]:
    """Add lag and WAL of every pipeline that is to run, also of those that run on another host."""
    measured = {one.subject: one for one in usage}
    for row in session.execute(_PIPELINES):
        subject = f"{PIPELINE_PREFIX}{row.name}"
        known = measured.get(subject, Usage(subject))
        if known.cpu_percent is not None or row.lag_ms is not None:
            measured[subject] = replace(known, lag_ms=row.lag_ms, wal_bytes=row.wal_bytes, batch_ms=row.batch_ms)
    return list(measured.values())


def store_usage(session: Session, usage: Sequence[Usage]) -> None:
    """Keep what was measured; pruned by age."""
    host = socket.gethostname()
    session.add_all(
        SystemMetric(
            host=host,
            subject=one.subject,
            cpu_usage=one.cpu_percent,
            total_memory=one.total_memory,
            used_memory=one.used_memory,
            total_swap=one.total_swap,
            used_swap=one.used_swap,
            wal_bytes=one.wal_bytes,
            lag_ms=one.lag_ms,
            batch_ms=one.batch_ms,
        )
        for one in usage
    )


def usage_line(usage: Sequence[Usage]) -> str:
    """Return one line for the list of ticks."""
    host, *others = usage
    share = 100 * (host.used_memory or 0) / host.total_memory if host.total_memory else 0
    here = [one for one in others if one.cpu_percent is not None]
    rest = "; ".join(
        f"{one.subject} {one.cpu_percent:.0f} % {(one.used_memory or 0) / 1048576:.0f} MB" for one in here[:5]
    )
    return f"host {host.cpu_percent or 0:.0f} % CPU, {share:.0f} % memory" + (
        f"; {rest}" if rest else "; no runner here"
    )
