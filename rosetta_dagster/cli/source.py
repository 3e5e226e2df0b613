"""`rosetta source …`."""

from __future__ import annotations

import click

from cdc_runner.services import source as service
from cdc_runner.services.create import create_source
from rosetta_dagster.cli.address import address_options, given_address
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_fields, print_json, print_table
from rosetta_dagster.cli.rename import rename_source
from rosetta_dagster.cli.source_edit import SOURCE_EDITS


@click.group()
def source() -> None:
    """List, show, test, create, change, rename, copy and remove sources, and say which tables they send."""


@source.command("list")
@json_option
def list_sources(as_json: bool) -> None:
    """List all sources."""
    with catalog_session() as session:
        rows = service.describe_sources(session)
    if as_json:
        print_json(rows)
    else:
        columns = ("name", "host", "port", "database", "username", "slot", "tables", "pipelines", "last_error")
        print_table(rows, columns, empty="no sources")


@source.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a source, without its password."""
    with catalog_session() as session:
        found = service.describe_source(session, name)
    if as_json:
        print_json(found)
    else:
        print_fields(found)


@source.command("test")
@click.argument("name")
@json_option
def test(name: str, as_json: bool) -> int:
    """Connect to a source; `rosetta doctor` checks everything else."""
    with catalog_session() as session:
        found = service.check_source(session, name)
    if as_json:
        print_json(found)
    else:
        print_fields(found)
    return 0 if found["ok"] else 1


@source.command("create")
@click.argument("name")
@address_options
@click.option("--slot", help="Replication slot; made when absent. Default: rosetta_NAME.")
@click.option("--publication", help="Publication; made when absent. Default: rosetta_NAME.")
@click.option("--table", "tables", multiple=True, help="Pattern such as public.*; repeatable. Default: public.*.")
@click.option("--capture-engine", help="debezium (default) or pgoutput.")
@json_option
def create(name: str, as_json: bool, **options: object) -> None:
    """Create a source. The password comes from a variable or a file, never from the command line."""
    with catalog_session() as session:
        create_source(session, name, given_address(options))
        found = service.describe_source(session, name)
    if as_json:
        print_json(found)
    else:
        click.echo(f"created source {name}")


@source.command("remove")
@click.argument("name")
@click.option("--keep-slot", is_flag=True, help="Leave slot and publication on the server; they are listed.")
@json_option
def remove(name: str, keep_slot: bool, as_json: bool) -> None:
    """Remove a source that no pipeline uses, with its slot and publication."""
    with catalog_session() as session:
        result = service.remove_source(session, name, keep_slot=keep_slot)
    if as_json:
        print_json(result.as_json())
    else:
        click.echo("\n".join(result.as_lines()))


for _command in (*SOURCE_EDITS, rename_source):
    source.add_command(_command)
