"""`rosetta dlq …`: the dead letters of a pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rosetta_dagster.cli.catalog import catalog_engine
from rosetta_dagster.cli.output import json_option, print_fields, print_json, print_table

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _scope_options(function: _Function) -> _Function:
    function = click.option("--table", help="Only this target table, schema.table.")(function)
    return click.option("--destination", help="Only this destination of the pipeline.")(function)


def _entry_option(function: _Function) -> _Function:
    return click.option("--entry", help="Only the key of this entry.")(function)


@click.group()
def dlq() -> None:
    """Changes that a destination refused, and those that wait behind them."""


@dlq.command("list")
@click.argument("pipeline")
@_scope_options
@_entry_option
@json_option
def list_letters(pipeline: str, as_json: bool, **scope: str | None) -> None:
    """List what waits in PIPELINE's dead-letter queues, oldest first; no values of rows."""
    from cdc_runner.services import dead_letters as service

    with catalog_engine() as engine:
        rows = service.list_letters(engine, service.Scope(pipeline, **scope))
    if as_json:
        print_json(rows)
        return
    columns = ("entry", "destination", "table", "operation", "position", "attempts", "in_redis", "reason")
    print_table(rows, columns, empty="no dead letters")


@dlq.command("inspect")
@click.argument("pipeline")
@click.argument("entry")
@json_option
def inspect(pipeline: str, entry: str, as_json: bool) -> None:
    """Show an ENTRY with the values of its row, and what else waits for the same key."""
    from cdc_runner.services import dead_letters as service

    with catalog_engine() as engine:
        found = service.inspect_letter(engine, service.Scope(pipeline, entry=entry))
    if as_json:
        print_json(found)
    else:
        print_fields(found)


@dlq.command("edit")
@click.argument("pipeline")
@click.argument("entry")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.option("--replay", is_flag=True, help="Replay the entry's key at once.")
@json_option
def edit(pipeline: str, entry: str, file: Any, replay: bool, as_json: bool) -> None:
    """Give an ENTRY other values: FILE (or - for standard input) is a JSON object of column and PostgreSQL text.

    Values come from a file, as arguments are seen by every user of the machine.
    """
    from cdc_runner.services import dead_letters as service

    try:
        values = json.load(file)
    except ValueError:
        raise click.UsageError("FILE is not JSON") from None
    if not isinstance(values, dict) or not all(one is None or isinstance(one, str) for one in values.values()):
        raise click.UsageError('FILE must be an object of texts (or null): {"column": "value"}')
    with catalog_engine() as engine:
        scope = service.Scope(pipeline, entry=entry)
        result = service.edit_letter(engine, scope, values)
        if replay:
            result["replay"] = service.replay_letters(engine, scope)
    if as_json:
        print_json(result)
    else:
        print_fields(result)


@dlq.command("replay")
@click.argument("pipeline")
@_scope_options
@_entry_option
@click.option("--dry-run", is_flag=True, help="Only count what would be replayed.")
@json_option
def replay(pipeline: str, dry_run: bool, as_json: bool, **scope: str | None) -> int:
    """Bring what waits into the destinations, in order for each key; what is refused again stays.

    The exit code is 1 when something was refused again.
    """
    from cdc_runner.services import dead_letters as service

    with catalog_engine() as engine:
        results = service.replay_letters(engine, service.Scope(pipeline, **scope), dry_run=dry_run)
    if as_json:
        print_json(results)
    else:
        for result in results:
            print_fields(result)
    return 1 if any(one.get("keys_refused") or one.get("stuck_tables") for one in results) else 0


@dlq.command("export")
@click.argument("pipeline")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_scope_options
@json_option
def export(pipeline: str, file: Path, as_json: bool, **scope: str | None) -> None:
    """Write what waits to FILE as JSON lines, with the values of the rows; only you can read it."""
    from cdc_runner.services import dead_letters as service

    with catalog_engine() as engine:
        count = service.export_letters(engine, service.Scope(pipeline, **scope), file)
    if as_json:
        print_json({"file": str(file), "entries": count})
    else:
        click.echo(f"{count} entries written to {file}")


@dlq.command("purge")
@click.argument("pipeline")
@_scope_options
@_entry_option
@click.option("--yes", is_flag=True, help="Really remove them; without it this is a dry run.")
@json_option
def purge(pipeline: str, yes: bool, as_json: bool, **scope: str | None) -> None:
    """Remove what waits without applying it; it is recorded as an event. A dry run without --yes."""
    from cdc_runner.services import dead_letters as service

    with catalog_engine() as engine:
        results = service.purge_letters(engine, service.Scope(pipeline, **scope), dry_run=not yes)
    if as_json:
        print_json(results)
        return
    for result in results:
        print_fields(result)
    if not yes:
        click.echo("dry run: nothing was removed; --yes removes")
