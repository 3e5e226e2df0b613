"""`rosetta destination …`."""

from __future__ import annotations

import click

from cdc_runner.services import destination as service
from cdc_runner.services.create import create_destination
from cdc_runner.services.edit import change_destination, duplicate_destination
from rosetta_dagster.cli.address import address_options, change_options, given_address, given_changes
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_changes, print_fields, print_json, print_table
from rosetta_dagster.cli.rename import rename_destination


@click.group()
def destination() -> None:
    """List, show, test, create, change, rename, copy and remove destinations."""


@destination.command("list")
@json_option
def list_destinations(as_json: bool) -> None:
    """List all destinations."""
    with catalog_session() as session:
        rows = service.describe_destinations(session)
    if as_json:
        print_json(rows)
    else:
        columns = ("name", "type", "host", "port", "database", "schema", "pipelines", "last_error")
        print_table(rows, columns, empty="no destinations")


@destination.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a destination, without its secrets."""
    with catalog_session() as session:
        found = service.describe_destination(session, name)
    if as_json:
        print_json(found)
    else:
        print_fields(found)


@destination.command("test")
@click.argument("name")
@json_option
def test(name: str, as_json: bool) -> int:
    """Connect to a destination; `rosetta doctor` checks everything else."""
    with catalog_session() as session:
        found = service.check_destination(session, name)
    if as_json:
        print_json(found)
    else:
        print_fields(found)
    return 0 if found["ok"] else 1


@destination.command("create")
@click.argument("name")
@address_options
@click.option("--schema", help="The one target schema; without it the source's schema names are kept.")
@json_option
def create(name: str, as_json: bool, **options: object) -> None:
    """Create a PostgreSQL destination. The password comes from a variable or a file, never from the command line."""
    with catalog_session() as session:
        create_destination(session, name, {"type": "postgres", **given_address(options)})
        found = service.describe_destination(session, name)
    if as_json:
        print_json(found)
    else:
        click.echo(f"created destination {name}")


@destination.command("change")
@click.argument("name")
@change_options
@click.option("--schema", help="The one target schema.")
@json_option
def change(name: str, as_json: bool, **options: object) -> None:
    """Change a PostgreSQL destination; what is not given stays."""
    with catalog_session() as session:
        changed = change_destination(session, name, given_changes(options))
    print_changes(f"destination {name}", changed, as_json=as_json)


@destination.command("columns")
@click.argument("name")
@click.argument("table", default="*.*")
@json_option
def columns(name: str, table: str, as_json: bool) -> None:
    """List the columns of a destination's tables; TABLE is schema.table or a pattern."""
    from cdc_runner.services.source_tables import browse_destination

    with catalog_session() as session:
        rows = browse_destination(session, name, table)
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("table", "column", "type", "nullable", "in_key", "default"), empty="no such table")


@destination.command("duplicate")
@click.argument("name")
@click.argument("new_name")
@json_option
def duplicate(name: str, new_name: str, as_json: bool) -> None:
    """Copy a destination with its credentials under another name."""
    with catalog_session() as session:
        found = duplicate_destination(session, name, new_name)
    if as_json:
        print_json(found)
    else:
        click.echo(f"created destination {new_name}")


@destination.command("remove")
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Remove a destination that no pipeline uses; its tables stay."""
    with catalog_session() as session:
        result = service.remove_destination(session, name)
    if as_json:
        print_json(result.as_json())
    else:
        click.echo("\n".join(result.as_lines()))


destination.add_command(rename_destination)
