"""`rosetta preset …`."""

from __future__ import annotations

import click

from cdc_runner.services import presets as service
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_json, print_table


@click.group()
def preset() -> None:
    """List, create, change and remove named lists of a source's tables; register or publish them together."""


@preset.command("list")
@click.argument("source", required=False)
@json_option
def list_presets(source: str | None, as_json: bool) -> None:
    """List the presets of SOURCE, or of every source."""
    with catalog_session() as session:
        rows = service.list_presets(session, source)
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("source", "preset", "tables"), empty="no presets")


_TABLE = click.option("--table", "tables", multiple=True, help="schema.table, or a pattern with * and ?; repeatable.")


@preset.command("create")
@click.argument("source")
@click.argument("name")
@_TABLE
@json_option
def create(source: str, name: str, tables: tuple[str, ...], as_json: bool) -> None:
    """Make a preset of SOURCE."""
    with catalog_session() as session:
        service.create_preset(session, source, name, tables)
        found = {"source": source, "preset": name, "tables": service.tables_of_preset(session, source, name)}
    if as_json:
        print_json(found)
    else:
        click.echo(f"created preset {name} of source {source}")


@preset.command("change")
@click.argument("source")
@click.argument("name")
@_TABLE
@click.option("--name", "new_name", help="Another name.")
@json_option
def change(source: str, name: str, tables: tuple[str, ...], new_name: str | None, as_json: bool) -> None:
    """Give a preset other tables, which take the place of its present ones, or another name."""
    with catalog_session() as session:
        changed = service.change_preset(session, source, name, tables=tables, new_name=new_name)
    if as_json:
        print_json(changed)
    else:
        click.echo(f"changed preset {name} of source {source}: {', '.join(changed) or 'nothing'}")


@preset.command("remove")
@click.argument("source")
@click.argument("name")
@json_option
def remove(source: str, name: str, as_json: bool) -> None:
    """Remove a preset; what was registered or published by it stays."""
    with catalog_session() as session:
        tables = service.remove_preset(session, source, name)
    if as_json:
        print_json({"source": source, "preset": name, "tables": tables})
    else:
        click.echo(f"removed preset {name} of source {source}")


@preset.command("register")
@click.argument("source")
@click.argument("name")
@json_option
def register(source: str, name: str, as_json: bool) -> None:
    """Let SOURCE take the tables of a preset; a running pipeline publishes and loads them within seconds."""
    from cdc_runner.services.source_tables import register_tables

    with catalog_session() as session:
        added = register_tables(session, source, service.tables_of_preset(session, source, name))
    if as_json:
        print_json({"added": added})
    else:
        click.echo(f"registered: {', '.join(added) or 'nothing new'}")
