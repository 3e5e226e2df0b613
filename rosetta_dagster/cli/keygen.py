"""`rosetta keygen`."""

from __future__ import annotations

import click

from cdc_runner.catalog.credentials import generate_key, key_id, parse_key
from rosetta_dagster.cli.output import json_option, print_json


@click.command()
@json_option
def keygen(as_json: bool) -> None:
    """Print a new key for CREDENTIAL_ENCRYPTION_KEY. Keep it: without it stored credentials cannot be read."""
    key = generate_key()
    if as_json:
        print_json({"key": key, "key_id": key_id(parse_key(key))})
    else:
        click.echo(key)
