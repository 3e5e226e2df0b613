"""`rosetta apply FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from cdc_runner.services.apply import apply_path
from rosetta_dagster.cli.catalog import catalog_engine
from rosetta_dagster.cli.output import json_option, print_json


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--prune", is_flag=True, help="Also remove what the file does not name; refused for what runs.")
@click.option(
    "--replace-credentials", is_flag=True, help="Store secrets again that the key at hand cannot decrypt (lost key)."
)
@json_option
def apply(file: Path, dry_run: bool, prune: bool, replace_credentials: bool, as_json: bool) -> int:
    """Bring sources, destinations and pipelines in line with FILE.

    What the file does not name is left alone. Applying the same file twice changes nothing.
    """
    with catalog_engine() as engine:
        plan = apply_path(engine, file, dry_run=dry_run, prune=prune, replace_credentials=replace_credentials)
    if as_json:
        print_json({"dry_run": dry_run, **plan.as_json()})
        return 0
    click.echo(plan.as_text())
    for line in plan.left_over:
        click.echo(f"LEFT OVER: {line}")
    if dry_run:
        click.echo("dry run: nothing was changed")
    return 0
