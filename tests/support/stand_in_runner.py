"""The real runner with stand-in pipelines: stand_in_runner.py DIRECTORY, CONFIG_DATABASE_URL in the environment."""

from __future__ import annotations

import sys
from pathlib import Path

from cdc_runner.supervisor.main import run

_PROGRAM = str(Path(__file__).with_name("stand_in_pipeline.py"))

if __name__ == "__main__":
    sys.exit(run(0, command_of=lambda pipeline: [sys.executable, "-S", _PROGRAM, sys.argv[1], str(pipeline.id)]))
