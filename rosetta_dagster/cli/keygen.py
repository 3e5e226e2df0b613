"""`rosetta keygen` and `rosetta rotate-key`."""

from __future__ import annotations

import click

from cdc_runner.catalog.credentials import generate_key, key_id, parse_key
from cdc_runner.services.credentials import rotate_credentials
from rosetta_dagster.cli.catalog import catalog_session
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


@click.command("rotate-key")
@json_option
def rotate_key(as_json: bool) -> None:
    """Store every credential with CREDENTIAL_ENCRYPTION_KEY again.

    CREDENTIAL_ENCRYPTION_KEYS_OLD holds the keys that they were stored with.
    """
    with catalog_session() as session:
        rotation = rotate_credentials(session)
    if as_json:
        print_json({"rotated": rotation.rotated, "unchanged": rotation.unchanged})
    else:
        click.echo(f"{rotation.rotated} credentials stored again, {rotation.unchanged} had the current key already")
