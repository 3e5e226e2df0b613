"""`rosetta tag …`."""

from __future__ import annotations

import click

from cdc_runner.services import tags as service
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_json, print_table


@click.group()
def tag() -> None:
    """Give smart tags to tables, take them off, find them, rename them."""


@tag.command("list")
@click.argument("search", default="")
@click.option("--source", help="Only where tables of this source carry it.")
@click.option("--pipeline", help="Only where this pipeline's tables carry it.")
@click.option("--destination", help="Only where tables of this destination carry it.")
@json_option
def list_tags(search: str, source: str | None, pipeline: str | None, destination: str | None, as_json: bool) -> None:
    """List tags with the number of their tables; SEARCH is a part of the name."""
    with catalog_session() as session:
        rows = service.list_tags(session, search, source=source, pipeline=pipeline, destination=destination)
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("tag", "tables", "pipelines", "destinations"), empty="no tags")


@tag.command("suggest")
@click.argument("begun")
@click.option("--limit", default=10, show_default=True, help="Most names, 50 at most.")
def suggest(begun: str, limit: int) -> None:
    """Print tags that begin with BEGUN, or hold it, the most used first: for shell completion."""
    with catalog_session() as session:
        names = service.suggest_tags(session, begun, limit)
    for name in names:
        click.echo(name)


@tag.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show where a tag is used: pipeline, destination, tables."""
    with catalog_session() as session:
        tree = service.tag_usage(session, name)
    if as_json:
        print_json(tree)
        return
    for pipeline, destinations in tree.items():
        click.echo(pipeline)
        for destination, tables in destinations.items():
            click.echo(f"  {destination}")
            for one in tables:
                click.echo(f"    {one['table']}{' -> ' + one['target'] if one['target'] else ''}")


@tag.command("relations")
@json_option
def relations(as_json: bool) -> None:
    """List pairs of tags with the number of tables that carry both."""
    with catalog_session() as session:
        rows = service.tag_relations(session)
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("tag", "other", "shared_tables"), empty="no two tags share a table")


_TABLES = click.option(
    "--table", "tables", required=True, multiple=True, help="schema.table, a pattern, or as declared; repeatable."
)
_DESTINATION = click.option("--destination", help="Only of this destination. Default: all of the pipeline.")


@tag.command("add")
@click.argument("pipeline")
@click.argument("tags", nargs=-1, required=True)
@_TABLES
@_DESTINATION
@json_option
def add(pipeline: str, tags: tuple[str, ...], tables: tuple[str, ...], destination: str | None, as_json: bool) -> None:
    """Give TAGS to tables of a PIPELINE."""
    with catalog_session() as session:
        count = service.add_tags(session, pipeline, tables, tags, destination)
    _report(as_json, "added", count, f"{count} tags were added")


@tag.command("remove")
@click.argument("pipeline")
@click.argument("tags", nargs=-1, required=True)
@_TABLES
@_DESTINATION
@json_option
def remove(
    pipeline: str, tags: tuple[str, ...], tables: tuple[str, ...], destination: str | None, as_json: bool
) -> None:
    """Take TAGS off tables of a PIPELINE; a tag that nothing carries any more is removed."""
    with catalog_session() as session:
        count = service.remove_tags(session, pipeline, tables, tags, destination)
    _report(as_json, "removed", count, f"{count} tags were taken off")


@tag.command("rename")
@click.argument("name")
@click.argument("new_name")
@click.option("--merge", is_flag=True, help="Make it one with a tag that has the new name already.")
@json_option
def rename(name: str, new_name: str, merge: bool, as_json: bool) -> None:
    """Give a tag another name wherever it is used."""
    with catalog_session() as session:
        count = service.rename_tag(session, name, new_name, merge=merge)
    _report(as_json, "places", count, f"tag {name} is {new_name} now, at {count} places")


@tag.command("delete")
@click.argument("name")
@json_option
def delete(name: str, as_json: bool) -> None:
    """Take a tag off everything."""
    with catalog_session() as session:
        count = service.delete_tag(session, name)
    _report(as_json, "places", count, f"tag {name} was taken off {count} places")


def _report(as_json: bool, field: str, count: int, line: str) -> None:
    if as_json:
        print_json({field: count})
    else:
        click.echo(line)
