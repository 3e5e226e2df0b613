"""`rosetta backfill`."""

from __future__ import annotations

import getpass
import time
from collections.abc import Mapping
from typing import Any

import click

from cdc_runner.catalog.backfills import OPEN
from cdc_runner.catalog.database import session_scope
from cdc_runner.services import backfill as service
from cdc_runner.services import rebuild as rebuild_service
from rosetta_dagster.cli.catalog import catalog_engine
from rosetta_dagster.cli.output import json_option, print_json, print_table

_COLUMNS = (
    "id",
    "pipeline",
    "destination",
    "table",
    "mode",
    "status",
    "priority",
    "rows",
    "total",
    "percent",
    "eta_seconds",
    "changed",
    "deleted",
    "kept",
    "note",
)
_table = click.option("--table", "tables", multiple=True, help="Pattern schema.table of source or target; repeatable.")
_LOOK_SECONDS = 1.0
_MODES = ["backfill", "resync", "reload", "rebuild"]


@click.group()
def backfill() -> None:
    """Copy tables again beside the running stream."""


@backfill.command()
@click.argument("pipeline")
@_table
@click.option("--destination", "destinations", multiple=True, help="Name of a destination; repeatable.")
@click.option("--mode", type=click.Choice(_MODES), default="backfill", show_default=True,
              help="backfill: write rows that differ. resync: also delete rows that the source does not have. "
              "reload: empty the table and load it again; the stream waits, unless it is large. "
              "rebuild: fill a new table aside, compare it, put it in the old one's place.")  # fmt: skip
@click.option("--filter", "condition", help="SQL condition on rows of the source, or its builder form as JSON.")
@click.option("--priority", type=click.IntRange(-1000, 1000), default=0, show_default=True, help="Higher comes first.")
@click.option("--all", "everything", is_flag=True, help="Every table of the pipeline; else --table is needed.")
@click.option("--wait", is_flag=True, help="Wait until all of them have ended.")
@json_option
def start(
    pipeline: str,
    tables: tuple[str, ...],
    destinations: tuple[str, ...],
    mode: str,
    condition: str | None,
    priority: int,
    everything: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Queue backfills of PIPELINE, one for each target table; the running pipeline does them, whoever runs it.

    With --wait the exit code is 1 when one has failed or was cancelled.
    """
    if bool(tables) == everything:
        raise click.UsageError("give --table, or --all for every table of the pipeline")
    request = service.BackfillRequest(pipeline, tables, destinations, mode, condition, priority, _who())
    with catalog_engine() as engine:
        with session_scope(engine) as session:
            outcome = service.start_backfill(session, request)
        if wait:
            ids = [one["id"] for one in outcome.queued]
            outcome.queued = _wait(engine, ids)
    if as_json:
        print_json(outcome.as_json())
    else:
        print_table(outcome.queued, _COLUMNS, empty="nothing was queued")
        for name in outcome.open:
            click.echo(f"{name}: a backfill is open already")
        for name, reason in outcome.refused.items():
            click.echo(f"{name}: {reason}")
        _say_errors(outcome.queued)
    failed = wait and any(one["status"] != "COMPLETED" for one in outcome.queued)
    return 1 if failed or (outcome.refused and not outcome.queued) else 0


@backfill.command("list")
@click.argument("pipeline", required=False)
@click.option("--open", "open_only", is_flag=True, help="Only those that are not ended.")
@json_option
def list_(pipeline: str | None, open_only: bool, as_json: bool) -> None:
    """List backfills, the open ones first."""
    with catalog_engine() as engine, session_scope(engine) as session:
        found = service.list_backfills(session, pipeline, open_only=open_only)
    if as_json:
        print_json(found)
    else:
        print_table(found, _COLUMNS, empty="no backfills")


@backfill.command()
@click.argument("identifier", type=int)
@json_option
def show(identifier: int, as_json: bool) -> None:
    """Show one backfill."""
    with catalog_engine() as engine, session_scope(engine) as session:
        found = service.show_backfill(session, identifier)
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if value is not None:
            click.echo(f"{name.replace('_', ' ')}: {value}")


@backfill.command()
@click.argument("pipeline")
@click.option("--id", "ids", type=int, multiple=True, help="Number of a backfill; repeatable.")
@_table
@click.option("--all", "everything", is_flag=True, help="Every open backfill of the pipeline.")
@json_option
def cancel(pipeline: str, ids: tuple[int, ...], tables: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Cancel open backfills of PIPELINE; work on them ends within seconds. Rows that were written stay."""
    if everything == bool(ids or tables):
        raise click.UsageError("give --id or --table, or --all for every open backfill of the pipeline")
    with catalog_engine() as engine, session_scope(engine) as session:
        found = service.cancel_backfills(session, pipeline, ids, tables)
    if as_json:
        print_json(found)
    else:
        print_table(found, _COLUMNS, empty="nothing was cancelled")


@backfill.command()
@click.argument("pipeline")
@click.option("--id", "ids", type=int, multiple=True, help="Number of a rebuild; repeatable.")
@_table
@click.option("--all", "everything", is_flag=True, help="Every old table that the pipeline keeps.")
@json_option
def confirm(pipeline: str, ids: tuple[int, ...], tables: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Drop the tables that rebuilds of PIPELINE have replaced: the new ones are right."""
    if everything == bool(ids or tables):
        raise click.UsageError("give --id or --table, or --all for every old table of the pipeline")
    with catalog_engine() as engine, session_scope(engine) as session:
        found = rebuild_service.confirm_rebuilds(session, pipeline, ids, tables)
    if as_json:
        print_json(found)
    else:
        print_table(found, ("id", "destination", "target", "dropped"), empty="nothing was dropped")


def _wait(engine: Any, ids: list[int]) -> list[dict[str, Any]]:
    while True:
        with session_scope(engine) as session:
            found = [service.show_backfill(session, one) for one in ids]
        if all(one["status"] not in OPEN for one in found):
            return found
        time.sleep(_LOOK_SECONDS)


def _say_errors(found: list[Mapping[str, Any]] | list[dict[str, Any]]) -> None:
    for one in found:
        if one["error"]:
            click.echo(f"{one['destination']}: {one['target']}: {one['error']}")


def _who() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
