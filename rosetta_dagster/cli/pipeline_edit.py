"""`rosetta pipeline add-destination|remove-destination|add-table|remove-table|set`."""

from __future__ import annotations

from typing import Any

import click

from cdc_runner.catalog.plan import Plan
from cdc_runner.services import pipeline_edit as service
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_json


def _tell(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json(plan.as_json())
    else:
        click.echo(plan.as_text())


_DESTINATION = click.argument("destination")


@click.command("add-destination")
@click.argument("name")
@_DESTINATION
@json_option
def add_destination(name: str, destination: str, as_json: bool) -> None:
    """Let a pipeline feed one more DESTINATION; it is loaded while the others go on."""
    with catalog_session() as session:
        plan = service.add_destination(session, name, destination)
    _tell(plan, as_json=as_json)


@click.command("remove-destination")
@click.argument("name")
@_DESTINATION
@json_option
def remove_destination(name: str, destination: str, as_json: bool) -> None:
    """Let a paused pipeline feed DESTINATION no more; its tables stay, its positions go."""
    with catalog_session() as session:
        result = service.remove_destination(session, name, destination)
    if as_json:
        print_json(result.as_json())
    else:
        click.echo("\n".join(result.as_lines()))


def _pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for one in given:
        column, sign, value = one.partition("=")
        if not column or not sign:
            raise click.UsageError(f"{option} takes COLUMN=…")
        pairs[column] = value
    return pairs


def _places(given: tuple[str, ...], *, table: bool, otherwise: str) -> tuple[str, str]:
    """Return destination and table of the command line, either empty when it is left out."""
    if not table <= len(given) <= 1 + table:
        raise click.UsageError(otherwise)
    places = given[:-1] if table else given
    return (places[0] if places else "", given[-1] if table else "")


def _masks(given: tuple[str, ...]) -> dict[str, Any]:
    masks: dict[str, Any] = {}
    for column, text in _pairs(given, "--mask").items():
        kind, _, value = text.partition(":")
        if kind == "truncate" and value.isascii() and value.isdigit():
            masks[column] = {"truncate": int(value)}
        elif kind == "constant":
            masks[column] = {"constant": value}
        else:
            masks[column] = text
    return masks


@click.command("add-table")
@click.argument("name")
@click.argument("places", nargs=-1, metavar="[DESTINATION] [TABLE]")
@click.option("--preset", help="Instead of TABLE: every table of this preset of the source.")
@click.option("--target", help="Another name at the target.")
@click.option("--filter", "condition", help="Only rows that pass this condition are copied.")
@click.option("--column", "columns", multiple=True, help="The only columns to copy; repeatable.")
@click.option("--exclude", multiple=True, help="A column to leave out; repeatable.")
@click.option("--rename", multiple=True, help="COLUMN=NAME at the target; repeatable.")
@click.option("--mask", multiple=True, help="COLUMN=hash, null, truncate:NUMBER or constant:TEXT; repeatable.")
@click.option("--mode", help="mirror (default), soft_delete or history.")
@click.option("--custom-sql", help="SELECT that shapes the rows; docs/custom-sql.md says what it may hold.")
@click.option("--key", multiple=True, help="A column of its result that identifies a row; repeatable.")
@click.option("--tag", "tags", multiple=True, help="A smart tag; repeatable.")
@json_option
def add_table(name: str, places: tuple[str, ...], preset: str | None, as_json: bool, **options: Any) -> None:
    """Declare TABLE, or a pattern, of a pipeline's DESTINATION. With the first one only declared ones are copied.

    DESTINATION may be left out where there is only one. One with the same table and target takes the place of the one
    before.
    """
    destination, table = _places(places, table=preset is None, otherwise="give one of TABLE and --preset")
    tags = options.pop("tags")
    shape = {
        "target": options["target"],
        "filter": options["condition"],
        "columns": list(options["columns"]),
        "exclude": list(options["exclude"]),
        "rename": _pairs(options["rename"], "--rename"),
        "mask": _masks(options["mask"]),
        "mode": options["mode"],
        "custom_sql": options["custom_sql"],
        "key": list(options["key"]),
    }
    if preset is not None and any(shape.values()):
        raise click.UsageError("a preset's tables take --tag only")
    with catalog_session() as session:
        destination = service.destination_of(session, name, destination)
        if preset is not None:
            plan = service.add_preset(session, name, destination, preset, tags)
        else:
            plan = service.add_table(session, name, destination, {"table": table, "tags": list(tags), **shape})
    _tell(plan, as_json=as_json)


@click.command("remove-table")
@click.argument("name")
@click.argument("places", nargs=-1, required=True, metavar="[DESTINATION] TABLE")
@click.option("--target", help="Its other name at the target, if it has one.")
@json_option
def remove_table(name: str, places: tuple[str, ...], target: str | None, as_json: bool) -> None:
    """Take a declared TABLE from a pipeline's DESTINATION, or from its only one; the target table stays."""
    destination, table = _places(places, table=True, otherwise="give one TABLE")
    with catalog_session() as session:
        destination = service.destination_of(session, name, destination)
        plan = service.remove_table(session, name, destination, table, target)
    _tell(plan, as_json=as_json)


@click.command("set")
@click.argument("name")
@click.argument("settings", nargs=-1, required=True)
@json_option
def set_settings(name: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Give a pipeline settings of its own: SETTING=VALUE, and SETTING= to go back to the global one."""
    with catalog_session() as session:
        plan = service.change_settings(session, name, _pairs(settings, "set"))
    _tell(plan, as_json=as_json)


PIPELINE_EDITS = (add_destination, remove_destination, add_table, remove_table, set_settings)
