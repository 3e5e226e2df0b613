"""`rosetta pipeline|source|destination rename`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from sqlalchemy.orm import Session

from cdc_runner.services import rename
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_json


def _command(kind: str, change: Callable[[Session, str, str], dict[str, Any]], text: str) -> click.Command:
    @click.command("rename", help=text)
    @click.argument("name")
    @click.argument("new_name")
    @json_option
    def command(name: str, new_name: str, as_json: bool) -> None:
        with catalog_session() as session:
            found = change(session, name, new_name)
        if as_json:
            print_json(found)
        else:
            click.echo(f"{kind} {name} is called {new_name} now; write that in the configuration file, too")

    return command


rename_pipeline = _command(
    "pipeline",
    rename.rename_pipeline,
    "Give a pipeline another name, whether it runs or not. Nothing is copied again.",
)
rename_source = _command(
    "source",
    rename.rename_source,
    "Give a source another name; slot and publication keep theirs, and nothing is copied again.",
)
rename_destination = _command(
    "destination",
    rename.rename_destination,
    "Give a destination another name. Nothing is copied again.",
)
