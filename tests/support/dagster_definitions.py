"""Rosetta's own definitions, with stand-in pipelines under the runner. ROSETTA_TEST_RUNNER names its directory.

ROSETTA_TEST_CRON is when the schedule credit_monitor ticks, as an hour is too long for a test.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import definitions
from rosetta_dagster.resources import runner_process
from rosetta_dagster.schedules.credit_monitor import credit_monitor

_PROGRAM = str(Path(__file__).with_name("stand_in_runner.py"))


def _command() -> list[str]:
    return [sys.executable, _PROGRAM, os.environ["ROSETTA_TEST_RUNNER"]]


runner_process.runner_command = _command
if "ROSETTA_TEST_CRON" in os.environ:
    credit_monitor._cron_schedule = os.environ["ROSETTA_TEST_CRON"]

rosetta = definitions.rosetta
