"""`rosetta preview`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import click

from cdc_runner.catalog.environment import read_environment
from cdc_runner.catalog.settings import get_setting
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_json, print_table


@click.command()
@click.argument("source")
@click.argument("sql")
@click.option("--rows", default=1000, show_default=True, help="Rows read of each table, 10,000 at most.")
@click.option("--no-cache", is_flag=True, help="Compute it anew, also when it was computed in the last five minutes.")
@click.option(
    "--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the rows to a file, too."
)
@json_option
def preview(source: str, sql: str, rows: int, no_cache: bool, csv_file: Path | None, as_json: bool) -> int:
    """Run a SELECT over the first rows of SOURCE's tables, in a sandbox; masked columns are masked.

    SQL is one SELECT in DuckDB's dialect; tables stand without schema. Ctrl-C cancels it. The exit code is 1 when it
    did not complete.
    """
    from cdc_runner.services.preview import plan_preview
    from cdc_runner.services.preview_run import PreviewRequest, run_preview

    with catalog_session() as session:
        plan = plan_preview(session, source)
        at_once = int(get_setting(session, "preview_at_once"))
    # Read now: the session may have filled in the embedded servers' addresses.
    environment = read_environment()
    request = PreviewRequest(plan, sql, rows, not no_cache, at_once, environment.home, environment.redis_url)
    result = run_preview(request, _tell_queue).as_json()
    if csv_file is not None and result["state"] == "COMPLETED":
        _write(csv_file, result)
    if as_json:
        print_json(result)
    elif result["state"] == "COMPLETED":
        _print(result)
    else:
        click.echo(f"{result['state'].lower()}: {result['reason']}", err=True)
    return 0 if result["state"] == "COMPLETED" else 1


def _tell_queue(before: int) -> None:
    click.echo(f"waiting: {before} statements are before this one", err=True)


def _print(result: dict[str, Any]) -> None:
    names = [column["name"] for column in result["columns"]]
    print_table([dict(zip(names, row, strict=True)) for row in result["rows"]], names, empty="no rows")
    cached = result["cached_seconds"]
    click.echo(
        f"{len(result['rows'])} rows{', more were cut off' if result['truncated'] else ''}"
        f"{'' if cached is None else f' (computed {cached:.0f} s ago; --no-cache computes them anew)'}"
    )


def _write(file: Path, result: dict[str, Any]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(column["name"] for column in result["columns"])
        writer.writerows(result["rows"])
