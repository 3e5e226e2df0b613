"""One operating system process: a pipeline, started by exec, stopped by SIGTERM, tied to us by its standard input."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from cdc_runner.supervisor.log_file import open_log, rotate

EXIT_STOPPED = 0
EXIT_LEASE_HELD = 73
EXIT_RETRY = 75
EXIT_NEEDS_PERSON = 78


class Child:
    """A started process.

    It has its own session, so that Ctrl-C on a terminal reaches the supervisor alone, which then stops it in order. Its
    standard input is a pipe that only we hold: when we die in whatever way, it reads the end of the file and stops.
    """

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self._process = process
        self.log_path = log_path

    @classmethod
    def start(cls, command: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None) -> Child:
        """Start a process whose output is appended to a log file.

        Raises:
            OSError: the program or the log file cannot be opened.
        """
        rotate(log_path)
        log = open_log(log_path)
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                close_fds=True,
                start_new_session=True,
                env=None if environment is None else dict(environment),
            )
        finally:
            os.close(log)
        return cls(process, log_path)

    @property
    def pid(self) -> int:
        """Process id, also of its process group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return the exit code, minus the signal's number when one ended it, or None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._close_input()
        return code

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        # Popen remembers that it has reaped the process, so the signal cannot reach another one of the same number.
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process and to whatever it has started itself."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._close_input()

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for the end of the process; None when it still runs after the timeout."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_seconds)
        return self.exit_code()

    def _close_input(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def describe_exit(code: int) -> str:
    """Return an exit code in words: `exit code 1`, `signal SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
