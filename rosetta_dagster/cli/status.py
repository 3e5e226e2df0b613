"""`rosetta status`."""

from __future__ import annotations

from typing import Any

import click

from cdc_runner.catalog.environment import read_environment
from cdc_runner.catalog.repositories import get_pipeline
from cdc_runner.catalog.settings import get_setting
from cdc_runner.sandbox.turns import preview_queue
from cdc_runner.services.status import read_status
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_json, print_table


@click.command()
@click.argument("pipeline", required=False)
@json_option
def status(pipeline: str | None, as_json: bool) -> None:
    """Show, for each pipeline and destination, state, positions, lag, rows and last error."""
    with catalog_session() as session:
        if pipeline is not None:
            get_pipeline(session, pipeline)
        report = read_status(session, pipeline)
        queue = preview_queue(read_environment().home, int(get_setting(session, "preview_at_once")))
    report["previews"] = {"running": queue.running, "waiting": queue.waiting}
    if as_json:
        print_json(report)
        return
    if not report["runners"]:
        click.echo("no runner is alive; `rosetta runner` starts one")
    if queue.running:
        click.echo(f"previews on this host: {queue.running} run, {queue.waiting} wait for their turn")
    for runner in report["runners"]:
        click.echo(f"runner {runner['runner']} on {runner['host']}: {runner['state']}")
    columns = (
        "pipeline",
        "destination",
        "state",
        "captured",
        "applied",
        "lag_ms",
        "lag_bytes",
        "rows",
        "load",
        "backfill",
        "dead_letters",
        "parked_mb",
        "error",
    )
    print_table(
        [_row(one, row) for one in report["pipelines"] for row in one["destinations"]], columns, empty="no pipelines"
    )


def _row(pipeline: dict[str, Any], destination: dict[str, Any]) -> dict[str, Any]:
    load = destination["load"]
    tables = load["tables"]
    unfinished = tables["pending"] + tables["loading"]
    return {
        "pipeline": pipeline["pipeline"],
        "destination": destination["destination"],
        "state": destination["state"],
        "captured": destination["captured_position"],
        "applied": destination["applied_position"],
        "lag_ms": destination["lag_ms"],
        "lag_bytes": destination["lag_bytes"],
        "rows": destination["rows_applied"] + destination["rows_loaded"],
        "load": f"{unfinished} tables to load" if unfinished else f"{tables['streaming']} tables",
        "backfill": _backfill(destination["open_backfills"]),
        "dead_letters": destination["dead_letters"],
        "parked_mb": round(destination["parked_bytes"] / 1048576, 1) or None,
        "error": _error(pipeline, destination),
    }


def _backfill(backfills: list[dict[str, Any]]) -> str | None:
    """Return what is at work, in a few words."""
    if not backfills:
        return None
    work = next((one for one in backfills if one["status"] == "EXECUTING"), backfills[-1])
    percent = "" if work["percent"] is None else f" {work['percent']:g}%"
    eta = "" if work["eta_seconds"] is None else f", {work['eta_seconds']} s left"
    more = f" (+{len(backfills) - 1})" if len(backfills) > 1 else ""
    return f"{work['table']}{percent}{eta}{more}"


def _error(pipeline: dict[str, Any], destination: dict[str, Any]) -> str | None:
    if destination["state"] != "ERROR":
        return None
    text = destination["last_error"] or pipeline["last_error"]
    return None if text is None else str(text)
