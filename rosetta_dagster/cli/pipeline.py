"""`rosetta pipeline …`."""

from __future__ import annotations

import click

from cdc_runner.catalog.pipelines import DesiredStatus
from cdc_runner.services import pipeline as service
from cdc_runner.services.create import create_pipeline
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_fields, print_json, print_table
from rosetta_dagster.cli.pipeline_edit import PIPELINE_EDITS
from rosetta_dagster.cli.rename import rename_pipeline


@click.group()
def pipeline() -> None:
    """List, show, create, start, pause, restart, refresh, rename, test and remove pipelines."""


@pipeline.command("list")
@json_option
def list_pipelines(as_json: bool) -> None:
    """List all pipelines."""
    with catalog_session() as session:
        rows = service.describe_pipelines(session)
    if as_json:
        print_json(rows)
    else:
        columns = ("name", "source", "destination_names", "status", "state", "last_error")
        print_table(rows, columns, empty="no pipelines")


@pipeline.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a pipeline with its destinations and tables."""
    with catalog_session() as session:
        found = service.describe_pipeline(session, name)
    if as_json:
        print_json(found)
    else:
        print_fields(found)


@pipeline.command("create")
@click.argument("name")
@click.option("--source", required=True, help="Name of the source.")
@click.option("--destination", "destinations", required=True, multiple=True, help="Name of a destination; repeatable.")
@click.option("--start", is_flag=True, help="Start it at once; otherwise it is born paused.")
@json_option
def create(name: str, source: str, destinations: tuple[str, ...], start: bool, as_json: bool) -> None:
    """Create a pipeline of every table of a source; choose tables with a file and `rosetta apply`."""
    with catalog_session() as session:
        create_pipeline(session, name, source, destinations, start=start)
        found = service.describe_pipeline(session, name)
    if as_json:
        print_json(found)
    else:
        click.echo(f"created pipeline {name} ({found['status']})")


def _change(name: str, status: DesiredStatus, as_json: bool) -> None:
    with catalog_session() as session:
        changed = service.change_status(session, name, status)
    if as_json:
        print_json({"pipeline": name, "status": status, "changed": changed})
    else:
        click.echo(f"pipeline {name}: {status}{'' if changed else ' (unchanged)'}")


@pipeline.command("start")
@click.argument("name")
@json_option
def start(name: str, as_json: bool) -> None:
    """Let a runner run the pipeline."""
    _change(name, "START", as_json)


@pipeline.command("pause")
@click.argument("name")
@json_option
def pause(name: str, as_json: bool) -> None:
    """Stop the pipeline; the slot keeps its place, and WAL is kept for it."""
    _change(name, "PAUSE", as_json)


@pipeline.command("restart")
@click.argument("name")
@json_option
def restart(name: str, as_json: bool) -> None:
    """End the pipeline's process after its present batch and start another; nothing is copied again."""
    with catalog_session() as session:
        service.restart_pipeline(session, name)
    if as_json:
        print_json({"pipeline": name, "restarted": True})
    else:
        click.echo(f"pipeline {name}: starts anew")


@pipeline.command("flow")
@click.argument("name")
@click.option("--days", default=7, show_default=True, help="The present day and those before it, 30 at most.")
@json_option
def flow(name: str, days: int, as_json: bool) -> None:
    """Show how many rows of each table were applied, by day."""
    from cdc_runner.services.flow import read_flow

    with catalog_session() as session:
        rows = read_flow(session, name, days)
    if as_json:
        print_json(rows)
    else:
        shown = sorted({day for one in rows for day in one["days"]}, reverse=True)
        print_table(
            [{**one, **one["days"]} for one in rows],
            ("table", "destination", "last_5_minutes", *shown),
            empty="no rows were applied",
        )


@pipeline.command("refresh")
@click.argument("name")
@json_option
def refresh(name: str, as_json: bool) -> None:
    """Copy all tables of the pipeline again, consistently, and go on from there."""
    _change(name, "REFRESH", as_json)


@pipeline.command("test")
@click.argument("name")
@json_option
def test(name: str, as_json: bool) -> int:
    """Check everything that the pipeline needs; the same as `rosetta doctor NAME`."""
    from rosetta_dagster.cli.doctor import examine

    return examine(name, as_json)


@pipeline.command("remove")
@click.argument("name")
@click.option("--keep-slot", is_flag=True, help="Leave slot and publication on the source; they are listed.")
@json_option
def remove(name: str, keep_slot: bool, as_json: bool) -> None:
    """Remove a paused pipeline with its slot and publication; target tables stay."""
    with catalog_session() as session:
        result = service.remove_pipeline(session, name, keep_slot=keep_slot)
    if as_json:
        print_json(result.as_json())
    else:
        click.echo("\n".join(result.as_lines()))


for _command in (*PIPELINE_EDITS, rename_pipeline):
    pipeline.add_command(_command)
