"""`rosetta verify` and `rosetta repair`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from cdc_runner.services.verify import SAMPLES, Request, repair_pipeline, verify_pipeline
from rosetta_dagster.cli.catalog import catalog_engine
from rosetta_dagster.cli.output import json_option, print_json, print_table

EXIT_CODES = {"EQUAL": 0, "DIFFERENT": 1, "INCOMPLETE": 3}
"""By outcome; 2 is wrong input, as for every command."""

_table = click.option("--table", "tables", multiple=True, help="Pattern schema.table of source or target; repeatable.")
_destination = click.option("--destination", "destinations", multiple=True, help="Name of a destination; repeatable.")
_wait = click.option("--wait", "wait_seconds", type=click.FloatRange(1, 86_400), default=60.0, show_default=True,
                     help="Seconds to wait for a destination that is behind.")  # fmt: skip


@click.command()
@click.argument("pipeline")
@_table
@_destination
@_wait
@json_option
def verify(
    pipeline: str, tables: tuple[str, ...], destinations: tuple[str, ...], wait_seconds: float, as_json: bool
) -> int:
    """Compare every row of PIPELINE's source and destinations at one position, while the stream flows.

    The exit code is 0 when they are equal, 1 when something differs, 3 when something could not be compared.
    """
    with catalog_engine() as engine:
        report = verify_pipeline(engine, Request(pipeline, tables, destinations, wait_seconds))
    if as_json:
        print_json(report.as_json(SAMPLES))
    else:
        _print(report.as_json(5))
    return EXIT_CODES[report.outcome.value]


@click.command()
@click.argument("pipeline")
@_table
@_destination
@_wait
@click.option("--yes", is_flag=True, help="Write; without it only what would be written is shown.")
@json_option
def repair(
    pipeline: str,
    tables: tuple[str, ...],
    destinations: tuple[str, ...],
    wait_seconds: float,
    yes: bool,
    as_json: bool,
) -> int:
    """Fetch the rows of PIPELINE that differ again, delete those that the source does not have, and compare again.

    Exit codes are those of `verify`, for the state afterwards.
    """
    with catalog_engine() as engine:
        report = repair_pipeline(engine, Request(pipeline, tables, destinations, wait_seconds), dry_run=not yes)
    if as_json:
        print_json(report.as_json())
    else:
        _print(report.before.as_json(5))
        for name, count in report.planned.items():
            click.echo(f"{name}: {count} rows {'to be' if report.dry_run else 'were'} fetched again")
        for name, reason in report.refused.items():
            click.echo(f"{name}: not repaired: {reason}")
        if report.dry_run and report.planned:
            click.echo("nothing was written; repeat with --yes")
        if report.after is not None:
            click.echo(f"{report.upserted_rows} rows written, {report.deleted_rows} deleted; compared again:")
            _print(report.after.as_json(5))
    return EXIT_CODES[report.outcome.value]


def _print(report: Mapping[str, Any]) -> None:
    columns = (
        "destination",
        "target",
        "outcome",
        "source_rows",
        "target_rows",
        "changed",
        "missing",
        "extra",
        "seconds",
    )
    print_table(report["tables"], columns, empty="no tables were compared")
    for table in report["tables"]:
        name = f"{table['destination']}: {table['target']}"
        if table["reason"]:
            click.echo(f"{name}: {table['reason']}")
        for kind, keys in table["samples"].items():
            shown = "; ".join(", ".join(key) for key in keys)
            what = f"keys ({', '.join(table['key'])})" if table["key"] else "digests of rows without a key"
            more = "" if table["all_listed"] and table[kind] <= len(keys) else " ..."
            click.echo(f"{name}: {kind} {what}: {shown}{more}")
        for column, reason in table["left_out_columns"].items():
            click.echo(f"{name}: column {column} was not compared: {reason}")
    if report["problem"]:
        click.echo(report["problem"])
    position = f" at {report['position']}" if report["position"] else ""
    click.echo(f"{report['outcome']}{position} in {report['seconds']} s")
