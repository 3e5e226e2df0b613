"""`rosetta source change|duplicate|tables|register|unregister|columns|history|publish`."""

from __future__ import annotations

import click

from cdc_runner.services.edit import change_source, duplicate_source
from rosetta_dagster.cli.address import change_options, given_changes
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_changes, print_json, print_table


@click.command("change")
@click.argument("name")
@change_options
@click.option("--slot", help="Refused while a pipeline uses the source.")
@click.option("--publication", help="Refused while a pipeline uses the source.")
@click.option("--table", "tables", multiple=True, help="Patterns that take the place of the present ones; repeatable.")
@click.option("--capture-engine", help="debezium or pgoutput.")
@json_option
def change(name: str, as_json: bool, **options: object) -> None:
    """Change a source; what is not given stays. A running pipeline starts anew with it."""
    with catalog_session() as session:
        changed = change_source(session, name, given_changes(options))
    print_changes(f"source {name}", changed, as_json=as_json)


@click.command("duplicate")
@click.argument("name")
@click.argument("new_name")
@json_option
def duplicate(name: str, new_name: str, as_json: bool) -> None:
    """Copy a source with credentials and presets; slot and publication get names of their own."""
    with catalog_session() as session:
        found = duplicate_source(session, name, new_name)
    if as_json:
        print_json(found)
    else:
        click.echo(f"created source {new_name}")


@click.command("tables")
@click.argument("name")
@json_option
def tables(name: str, as_json: bool) -> None:
    """List the tables of a source as they are now: registered, published, size, key, and what hinders their copying."""
    from cdc_runner.services.source_tables import list_tables

    with catalog_session() as session:
        rows = list_tables(session, name)
    if as_json:
        print_json(rows)
    else:
        columns = ("table", "registered", "published", "columns", "key", "estimated_rows", "size_bytes", "hindrance")
        print_table(rows, columns, empty="no tables")


_PATTERNS = click.argument("patterns", nargs=-1, required=True)


@click.command("register")
@click.argument("name")
@_PATTERNS
@json_option
def register(name: str, patterns: tuple[str, ...], as_json: bool) -> None:
    """Let a source take more tables or patterns; a running pipeline publishes and loads them within seconds."""
    from cdc_runner.services.source_tables import register_tables

    with catalog_session() as session:
        added = register_tables(session, name, patterns)
    if as_json:
        print_json({"added": added})
    else:
        click.echo(f"registered: {', '.join(added) or 'nothing new'}")


@click.command("unregister")
@click.argument("name")
@_PATTERNS
@json_option
def unregister(name: str, patterns: tuple[str, ...], as_json: bool) -> None:
    """Let a source take tables or patterns no more; what was copied stays at the targets."""
    from cdc_runner.services.source_tables import unregister_tables

    with catalog_session() as session:
        removed = unregister_tables(session, name, patterns)
    if as_json:
        print_json({"removed": removed})
    else:
        click.echo(f"taken off: {', '.join(removed)}")


@click.command("columns")
@click.argument("name")
@click.argument("table", default="*.*")
@json_option
def columns(name: str, table: str, as_json: bool) -> None:
    """List the columns of a source's tables; TABLE is schema.table or a pattern."""
    from cdc_runner.services.source_tables import browse_source

    with catalog_session() as session:
        rows = browse_source(session, name, table)
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("table", "column", "type", "nullable", "in_key", "default"), empty="no such table")


@click.command("history")
@click.argument("name")
@click.argument("table", required=False)
@click.option("--limit", default=100, show_default=True, help="Newest versions to show.")
@json_option
def history(name: str, table: str | None, limit: int, as_json: bool) -> None:
    """Show the versions of the tables' schemas with what differs from one to the next, the newest first."""
    from cdc_runner.services.schema_history import schema_history

    with catalog_session() as session:
        rows = schema_history(session, name, table, limit)
    if as_json:
        print_json(rows)
    else:
        shown = ("table", "version", "change", "differences", "position", "seen_at")
        print_table(rows, shown, empty="no table was seen yet")


@click.command("publish")
@click.argument("name")
@click.argument("patterns", nargs=-1)
@click.option("--preset", help="The tables of this preset of the source, too.")
@json_option
def publish(name: str, patterns: tuple[str, ...], preset: str | None, as_json: bool) -> None:
    """Make a source's publication now, or add tables to it; a pipeline does this by itself when it starts."""
    from cdc_runner.services.presets import tables_of_preset
    from cdc_runner.services.source_tables import create_publication

    with catalog_session() as session:
        wanted = [*patterns, *(tables_of_preset(session, name, preset) if preset else [])]
        made = create_publication(session, name, wanted)
    if as_json:
        print_json(made)
    else:
        click.echo(f"publication {made['publication']}: {len(made['added'])} tables were added")


SOURCE_EDITS = (change, duplicate, tables, register, unregister, columns, history, publish)
