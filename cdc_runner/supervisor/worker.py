"""One pipeline under supervision: its process, its failures and when it may start again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import structlog

from cdc_runner.supervisor.catalog_view import PipelineView
from cdc_runner.supervisor.child import (
    EXIT_LEASE_HELD,
    EXIT_NEEDS_PERSON,
    EXIT_RETRY,
    EXIT_STOPPED,
    Child,
    describe_exit,
)
from cdc_runner.supervisor.log_file import exhausted_heap, last_error_class, rotate
from cdc_runner.supervisor.reconcile import HEALTHY_AFTER_SECONDS, Action, Situation, backoff_seconds, decide

HELD_RETRY_SECONDS = 5.0
ROTATE_EVERY_SECONDS = 10.0
HEAP_ENDS = 3
"""So many ends in a row by a full heap are no accident: the same values come again at each start."""

_log = structlog.get_logger(__name__)

CommandOf = Callable[[PipelineView], Sequence[str]]
ReportCrash = Callable[[int, str], None]


class ProcessState(StrEnum):
    """State of a pipeline's process on this runner."""

    RUNNING = "running"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    BLOCKED = "blocked"
    HELD_ELSEWHERE = "held_elsewhere"
    STARTING = "starting"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What all workers of a supervisor share.

    Attributes:
        runner_id: holder of the leases.
        command_of: the command line of a pipeline's process.
        logs: directory of the log files.
        report_crash: called with pipeline id and reason when a process ended without having said why.
    """

    runner_id: str
    command_of: CommandOf
    logs: Path
    report_crash: ReportCrash


class Worker:
    """Starts, watches and stops the process of one pipeline. Used by one thread."""

    def __init__(self, pipeline: PipelineView, context: WorkerContext) -> None:
        self.pipeline = pipeline
        self.starts = 0
        self.last_exit: str | None = None
        self.needs_person = False
        self._context = context
        self._removed = False
        self._child: Child | None = None
        self._started_generation = 0
        self._started_refresh: datetime | None = None
        self._started_at = 0.0
        self._stopping_since: float | None = None
        self._failures = 0
        self._heap_ends = 0
        self._start_not_before = 0.0
        self._blocked_version: tuple[str, int, datetime] | None = None
        self._held_logged = False
        self._rotate_at = 0.0

    @property
    def pid(self) -> int | None:
        """Process id; None when no process runs."""
        return None if self._child is None else self._child.pid

    @property
    def finished(self) -> bool:
        """The pipeline was removed from the catalog and its process has ended."""
        return self._removed and self._child is None

    @property
    def restarts(self) -> int:
        """Starts after the first one."""
        return max(0, self.starts - 1)

    def observe(self, pipeline: PipelineView | None) -> None:
        """Take over what the catalog says now; None: the pipeline was removed."""
        self._removed = pipeline is None
        if pipeline is not None:
            self.pipeline = pipeline
            if self._blocked_version is not None and self._blocked_version != pipeline.version:
                self._blocked_version = None
                self._failures = self._heap_ends = 0
                self._start_not_before = 0.0

    def state(self, now: float) -> ProcessState:
        """Return the state of the process."""
        if self._child is not None:
            return ProcessState.RUNNING if self._stopping_since is None else ProcessState.STOPPING
        if self._removed or not self.pipeline.wanted:
            return ProcessState.STOPPED
        if self._held_elsewhere():
            return ProcessState.HELD_ELSEWHERE
        if self._blocked_version is not None:
            return ProcessState.BLOCKED
        return ProcessState.BACKOFF if now < self._start_not_before else ProcessState.STARTING

    def step(self, now: float, *, draining: bool, stop_grace_seconds: float) -> None:
        """Look at the process and do what is to be done; never waits.

        Args:
            now: monotonic clock, in seconds.
            draining: the supervisor is stopping.
            stop_grace_seconds: time between SIGTERM and SIGKILL.
        """
        self._collect_exit(now)
        situation = Situation(
            wanted=self.pipeline.wanted and not self._removed,
            outdated=self._outdated(),
            running=self._child is not None,
            stopping_since=self._stopping_since,
            start_not_before=self._start_not_before,
            held_elsewhere=self._held_elsewhere(),
            blocked=self._blocked_version is not None,
            draining=draining,
        )
        match decide(situation, now, stop_grace_seconds=stop_grace_seconds):
            case Action.START:
                self._start(now)
            case Action.STOP:
                self._stop(now)
            case Action.KILL:
                self._kill()
            case Action.NOTHING:
                self._rotate_log(now)

    def _outdated(self) -> bool:
        if self.pipeline.generation != self._started_generation:
            return True
        # A refresh asked for while the process runs is a new start; the process itself reads what is to be done.
        return self.pipeline.status == "REFRESH" and self.pipeline.refresh_at != self._started_refresh

    def _held_elsewhere(self) -> bool:
        holder = self.pipeline.lease_holder
        return holder is not None and holder != self._context.runner_id

    def _start(self, now: float) -> None:
        path = self._context.logs / f"pipeline-{self.pipeline.name}.log"
        self._started_generation = self.pipeline.generation
        self._started_refresh = self.pipeline.refresh_at
        self._started_at = now
        self._stopping_since = None
        self.starts += 1
        try:
            self._child = Child.start(self._context.command_of(self.pipeline), path)
        except OSError as error:
            self._fail(now, f"the process could not be started: {error.strerror}")
            return
        _log.info(
            "pipeline.started", pipeline=self.pipeline.name, pid=self._child.pid, generation=self.pipeline.generation
        )

    def _stop(self, now: float) -> None:
        if self._child is not None:
            self._stopping_since = now
            self._child.ask_to_stop()
            _log.info("pipeline.stopping", pipeline=self.pipeline.name, pid=self._child.pid)

    def _kill(self) -> None:
        if self._child is not None:
            _log.warning("pipeline.killed", pipeline=self.pipeline.name, pid=self._child.pid)
            self._child.kill()

    def _rotate_log(self, now: float) -> None:
        if self._child is not None and now >= self._rotate_at:
            self._rotate_at = now + ROTATE_EVERY_SECONDS
            rotate(self._child.log_path)

    def _collect_exit(self, now: float) -> None:
        if self._child is None:
            return
        code = self._child.exit_code()
        if code is None:
            return
        child, self._child = self._child, None
        asked, self._stopping_since = self._stopping_since is not None, None
        self.last_exit = describe_exit(code)
        if now - self._started_at >= HEALTHY_AFTER_SECONDS:
            self._failures = self._heap_ends = 0
        if asked:
            _log.info("pipeline.stopped", pipeline=self.pipeline.name, exit=self.last_exit)
            return
        self._judge(code, child, now)

    def _judge(self, code: int, child: Child, now: float) -> None:
        """Decide what an end that nobody here asked for means."""
        if code == EXIT_LEASE_HELD:
            self._start_not_before = now + HELD_RETRY_SECONDS
            if not self._held_logged:
                _log.info("pipeline.lease_held", pipeline=self.pipeline.name)
            self._held_logged = True
            return
        self._held_logged = False
        if code == EXIT_NEEDS_PERSON:
            self._blocked_version = self.pipeline.version
            _log.error("pipeline.needs_person", pipeline=self.pipeline.name)
        elif code in (EXIT_STOPPED, EXIT_RETRY):
            # It has written the reason to the config database itself.
            self._back_off(now)
        elif (limit := exhausted_heap(child.log_path)) is not None:
            self._judge_heap(limit, now)
        else:
            error = last_error_class(child.log_path)
            reason = f"the pipeline process ended unexpectedly ({describe_exit(code)}{f', {error}' if error else ''})"
            self._fail(now, reason)

    def _judge_heap(self, limit_megabytes: int, now: float) -> None:
        """Try again a few times after a full heap, for it may have been many values at once; then wait for a person."""
        self._heap_ends += 1
        reason = full_heap(limit_megabytes)
        if self._heap_ends < HEAP_ENDS:
            self._fail(now, reason)
            return
        self._blocked_version = self.pipeline.version
        self._context.report_crash(self.pipeline.id, f"{reason} Until then it is not started again.")
        _log.error("pipeline.heap_full", pipeline=self.pipeline.name, heap_megabytes=limit_megabytes)

    def _fail(self, now: float, reason: str) -> None:
        self._context.report_crash(self.pipeline.id, reason)
        self._back_off(now)

    def _back_off(self, now: float) -> None:
        self._failures += 1
        wait_seconds = backoff_seconds(self._failures)
        self._start_not_before = now + wait_seconds
        _log.warning(
            "pipeline.backoff",
            pipeline=self.pipeline.name,
            exit=self.last_exit,
            seconds=wait_seconds,
            failures=self._failures,
        )


def full_heap(limit_megabytes: int) -> str:
    """Return what to tell of a process whose Java heap was full; 0: its limit is not known."""
    has = f" of {limit_megabytes} MB" if limit_megabytes else ""
    wanted = f"to {2 * limit_megabytes} or more" if limit_megabytes else "higher"
    return (
        f"the Java heap{has} of the capture engine debezium cannot hold the largest values; set the pipeline's "
        f"jvm_heap_megabytes {wanted}, or the source's capture_engine to pgoutput. Nothing is lost: the stream goes on "
        "from its position."
    )
