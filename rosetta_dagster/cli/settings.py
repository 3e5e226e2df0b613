"""`rosetta settings …`."""

from __future__ import annotations

from typing import Any

import click

from cdc_runner.catalog import settings as catalog_settings
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_fields, print_json, print_table


@click.group()
def settings() -> None:
    """List, get and set settings."""


def _describe(key: str, value: catalog_settings.Value) -> dict[str, Any]:
    known = catalog_settings.definition(key)
    bounded = known.kind in ("integer", "number")
    return {
        "setting": key,
        "value": "(secret)" if known.secret and value else value,
        "default": known.default,
        "unit": known.unit or None,
        "kind": known.kind,
        "minimum": known.minimum if bounded else None,
        "maximum": known.maximum if bounded else None,
        "choices": list(known.choices),
        "per_pipeline": known.pipeline,
        "description": known.description,
    }


@settings.command("list")
@json_option
def list_settings(as_json: bool) -> None:
    """List every setting with its value."""
    with catalog_session() as session:
        rows = [_describe(key, value) for key, value in catalog_settings.all_settings(session).items()]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("setting", "value", "default", "unit", "description"), empty="no settings")


@settings.command("get")
@click.argument("key")
@json_option
def get_setting(key: str, as_json: bool) -> None:
    """Show one setting."""
    with catalog_session() as session:
        row = _describe(key, catalog_settings.get_setting(session, key))
    if as_json:
        print_json(row)
    else:
        print_fields(row)


@settings.command("set")
@click.argument("key")
@click.argument("value", required=False)
@click.option("--default", "to_default", is_flag=True, help="Go back to the default.")
@json_option
def set_setting(key: str, value: str | None, to_default: bool, as_json: bool) -> None:
    """Set a setting; pipelines that read it are started anew."""
    if (value is None) != to_default:
        raise click.UsageError("give either a VALUE or --default")
    with catalog_session() as session:
        if value is None:
            stored = catalog_settings.reset_setting(session, key)
        else:
            stored = catalog_settings.set_setting(session, key, value)
        row = _describe(key, stored)
    if as_json:
        print_json(row)
    else:
        click.echo(f"{key} = {row['value']}")
