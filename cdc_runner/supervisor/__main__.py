"""`python -m cdc_runner.supervisor`: the runner without the command line's other parts."""

from __future__ import annotations

import sys

from cdc_runner.errors import RosettaError
from cdc_runner.supervisor.main import run

if __name__ == "__main__":
    try:
        sys.exit(run())
    except RosettaError as error:
        sys.exit(f"{error.message}. {error.policy.solution}")
