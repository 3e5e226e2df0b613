"""`python -m cdc_runner.pipeline PIPELINE_ID --holder HOLDER`: started by the supervisor, one for each pipeline."""

from __future__ import annotations

import argparse
import logging
import os
import sys

import structlog


def main() -> None:
    """Parse the arguments and run the pipeline."""
    parser = argparse.ArgumentParser(prog="cdc_runner.pipeline")
    parser.add_argument("pipeline_id", type=int)
    parser.add_argument("--holder", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    from cdc_runner.catalog.environment import read_environment
    from cdc_runner.failpoints import arm
    from cdc_runner.pipeline.memory import return_large_blocks
    from cdc_runner.pipeline.process import run

    arm(read_environment().failpoint)
    return_large_blocks()
    code = run(arguments.pipeline_id, arguments.holder)
    sys.stdout.flush()
    sys.stderr.flush()
    # The JVM's own threads would hold the interpreter's exit up; everything of ours is closed by now.
    os._exit(code)


main()
