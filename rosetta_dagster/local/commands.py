"""Commands that start and stop Rosetta on this machine: `up`, `down`, `demo`.

Each is a click command without a group; the command line adds them to its own.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from rosetta_dagster.embedded import home_directory
from rosetta_dagster.local.up import LocalRosetta, Running

EXIT_NOT_EQUAL = 1
EXIT_INTERRUPTED = 130
_DEFAULT_RATE = 100.0


@click.command()
@click.option("--detach", is_flag=True, help="Return when everything runs; `rosetta down` stops it.")
@click.option("--dagster/--no-dagster", default=True, show_default=True, help="Also start Dagster.")
@click.option("--json", "as_json", is_flag=True, help="Print addresses as JSON.")
def up(detach: bool, dagster: bool, as_json: bool) -> None:
    """Start embedded servers, the runner and Dagster; Ctrl-C stops them all."""
    with _interruption() as interrupted:
        local = LocalRosetta(home_directory(), dagster=dagster, say=_say, interrupted=interrupted)
        started = False
        try:
            running = local.start()
            _show(running, as_json)
            started = True
            if not detach and not interrupted.is_set():
                _say("Ctrl-C stops everything.")
                interrupted.wait()
        finally:
            # A failed start leaves nothing behind; a detached one is left running on purpose.
            if not (detach and started) or interrupted.is_set():
                local.stop()


@click.command()
def down() -> None:
    """Stop what `rosetta up --detach` started; data are kept."""
    LocalRosetta(home_directory(), say=_say).stop()


@click.command()
@click.option("--headless", is_flag=True, help="Write for --seconds, then compare every table; exit code 0 when equal.")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 86_400),
    help="How long to write after the initial load. [headless: 30, else until Ctrl-C]",
)
@click.option(
    "--rate", type=click.FloatRange(2, 100_000), default=_DEFAULT_RATE, show_default=True, help="Transactions/s."
)
@click.option("--dagster/--no-dagster", default=True, show_default=True, help="Also start Dagster.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object; progress goes to stderr.")
@click.pass_context
def demo(
    context: click.Context, headless: bool, seconds: float | None, rate: float, dagster: bool, as_json: bool
) -> None:
    """Replicate a shop that is written to without pause into two targets.

    Starts everything embedded, writes to the source with a shop's transactions and pgbench, and prints rows and lag
    every second; lag is measured from outside, from the commit at the source until the row shows at the target.
    """
    from rosetta_dagster.demo.run import Demo, DemoOptions

    duration = 30.0 if headless and seconds is None else seconds
    with _interruption() as interrupted:
        options = DemoOptions(home_directory(), duration, rate, dagster, compare=duration is not None)
        report = Demo(options, _say, interrupted).run()
        if as_json:
            click.echo(json.dumps(report))
        else:
            _show_report(report)
        if duration is None:
            return
        if interrupted.is_set():
            context.exit(EXIT_INTERRUPTED)
        if not report["equal"]:
            context.exit(EXIT_NOT_EQUAL)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _show(running: Running, as_json: bool) -> None:
    if as_json:
        servers = running.servers.as_json()
        click.echo(json.dumps({"servers": servers, "health": running.health_url, "dagster": running.dagster_url}))
        return
    for line in running.lines():
        click.echo(line)


def _show_report(report: dict[str, object]) -> None:
    for name, value in report.items():
        if name != "differences":
            click.echo(f"{name:>22}  {value}")
    differences = report.get("differences")
    for difference in differences if isinstance(differences, list) else []:
        click.echo(json.dumps(difference))


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set, in place of an exception in the middle of something.

    The event is set by a thread: in a signal handler its lock might be held by the very code that was interrupted.
    """
    event = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=event.set, daemon=True).start()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
