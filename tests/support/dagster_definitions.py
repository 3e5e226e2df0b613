"""Rosetta's own definitions, with stand-in pipelines under the runner. ROSETTA_TEST_RUNNER names its directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import definitions
from rosetta_dagster.resources import runner_process

_PROGRAM = str(Path(__file__).with_name("stand_in_runner.py"))


def _command() -> list[str]:
    return [sys.executable, _PROGRAM, os.environ["ROSETTA_TEST_RUNNER"]]


runner_process.runner_command = _command

rosetta = definitions.rosetta
