"""`rosetta runner`."""

from __future__ import annotations

import click

from rosetta_dagster.cli.catalog import use_embedded_environment


@click.command()
@click.option("--health-port", type=click.IntRange(0, 65535), help="Port of the health endpoint; 0 takes a free one.")
def runner(health_port: int | None) -> int:
    """Run every pipeline that is to run, until SIGTERM or Ctrl-C."""
    from cdc_runner.supervisor.main import run

    use_embedded_environment()
    return run(health_port)
