"""`rosetta preview`."""

from __future__ import annotations

import click

from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_json, print_table


@click.command()
@click.argument("source")
@click.argument("sql")
@click.option("--rows", default=1000, show_default=True, help="Rows read of each table, 10,000 at most.")
@json_option
def preview(source: str, sql: str, rows: int, as_json: bool) -> int:
    """Run a SELECT over the first rows of SOURCE's tables, in a sandbox; masked columns are masked.

    SQL is one SELECT in DuckDB's dialect; tables stand without schema. The exit code is 1 when it did not complete.
    """
    from cdc_runner.services import preview as service

    with catalog_session() as session:
        plan = service.plan_preview(session, source)
    result = service.as_json(service.preview(plan, sql, rows))
    if as_json:
        print_json(result)
    elif result["state"] == "COMPLETED":
        names = [column["name"] for column in result["columns"]]
        print_table([dict(zip(names, row, strict=True)) for row in result["rows"]], names, empty="no rows")
        click.echo(f"{len(result['rows'])} rows{', more were cut off' if result['truncated'] else ''}")
    else:
        click.echo(f"{result['state'].lower()}: {result['reason']}", err=True)
    return 0 if result["state"] == "COMPLETED" else 1
