"""`rosetta lineage`."""

from __future__ import annotations

import click

from cdc_runner.services.lineage import TargetLineage, lineage_chart, read_lineage
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_json, print_table


@click.command()
@click.argument("pipeline", required=False)
@click.option("--mermaid", is_flag=True, help="A flow chart of tables in Mermaid's language.")
@json_option
def lineage(pipeline: str | None, mermaid: bool, as_json: bool) -> None:
    """Show which columns of which source tables each target's columns come from.

    Targets are known from the first start of their pipeline on.
    """
    with catalog_session() as session:
        found = read_lineage(session, pipeline)
    if as_json:
        print_json([one.as_json() for one in found])
    elif mermaid:
        click.echo(lineage_chart(found))
    else:
        rows = [row for one in found for row in _rows(one)]
        print_table(rows, ("pipeline", "destination", "target", "column", "from", "how"), empty="no targets yet")


def _rows(one: TargetLineage) -> list[dict[str, object]]:
    place = {"pipeline": one.pipeline, "destination": one.destination, "target": str(one.target)}
    if not one.lineage.columns:
        looked_up = (f"destination.{table}" for table in one.lineage.lookups)
        tables = ", ".join([*map(str, one.lineage.tables), *looked_up])
        return [{**place, "column": "?", "from": tables, "how": "the columns are not known yet"}]
    return [
        {**place, "column": column.name, "from": ", ".join(map(str, column.sources)), "how": column.how}
        for column in one.lineage.columns
    ]
