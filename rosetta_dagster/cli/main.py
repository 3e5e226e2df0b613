"""Entry point of the command line.

COMMANDS   name -> where the command is defined and what it does; add a line to add a command
main()     runs one and returns the exit code: 0, 2 for bad input, 1 for any other failure
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import click

from cdc_runner.errors import ErrorKind, RosettaError


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command that is imported when it is needed: `module:attribute`, and its line in the help."""

    target: str
    help: str


COMMANDS: dict[str, LazyCommand] = {
    "apply": LazyCommand("rosetta_dagster.cli.apply:apply", "Bring the configuration in line with a file."),
    "backfill": LazyCommand("rosetta_dagster.cli.backfill:backfill", "Copy tables again beside the stream."),
    "demo": LazyCommand("rosetta_dagster.local.commands:demo", "Replicate a busy shop into two targets, embedded."),
    "destination": LazyCommand("rosetta_dagster.cli.destination:destination", "List, show, test, create, change, ..."),
    "dlq": LazyCommand("rosetta_dagster.cli.dlq:dlq", "List, inspect, edit, replay, export, purge dead letters."),
    "doctor": LazyCommand("rosetta_dagster.cli.doctor:doctor", "Check everything that a pipeline needs."),
    "down": LazyCommand("rosetta_dagster.local.commands:down", "Stop what `rosetta up --detach` started."),
    "keygen": LazyCommand("rosetta_dagster.cli.keygen:keygen", "Print a new credential encryption key."),
    "lineage": LazyCommand("rosetta_dagster.cli.lineage:lineage", "Show where the columns of targets come from."),
    "notification": LazyCommand("rosetta_dagster.cli.notification:notification", "List; create and test channels."),
    "pipeline": LazyCommand("rosetta_dagster.cli.pipeline:pipeline", "List, show, create, start, pause, remove, ..."),
    "repair": LazyCommand("rosetta_dagster.cli.verify:repair", "Fetch rows that differ again; delete extra ones."),
    "preset": LazyCommand("rosetta_dagster.cli.preset:preset", "List, create, change, remove, register presets."),
    "preview": LazyCommand("rosetta_dagster.cli.preview:preview", "Run a SELECT over sampled rows, in a sandbox."),
    "rotate-key": LazyCommand("rosetta_dagster.cli.keygen:rotate_key", "Store credentials with a new key."),
    "runner": LazyCommand("rosetta_dagster.cli.runner:runner", "Run the pipelines until stopped."),
    "settings": LazyCommand("rosetta_dagster.cli.settings:settings", "List, get and set settings."),
    "source": LazyCommand("rosetta_dagster.cli.source:source", "List, show, test, create, change, tables, ..."),
    "status": LazyCommand("rosetta_dagster.cli.status:status", "Show state, positions, lag and last error."),
    "tag": LazyCommand("rosetta_dagster.cli.tag:tag", "Give, take off, find and rename smart tags of tables."),
    "verify": LazyCommand("rosetta_dagster.cli.verify:verify", "Compare source and destinations at one position."),
    "up": LazyCommand("rosetta_dagster.local.commands:up", "Start embedded servers, the runner and Dagster."),
}  # fmt: skip


class LazyGroup(click.Group):
    """A group that knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = lazy.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of the commands from the registry."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in sorted(COMMANDS.items())])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rosetta-dagster", prog_name="rosetta")
def rosetta() -> None:
    """Copy PostgreSQL tables into other databases, continuously and exactly."""


BAD_INPUT = frozenset({ErrorKind.CONFIG_INVALID, ErrorKind.NOT_FOUND, ErrorKind.CREDENTIAL_KEY_INVALID})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; an error is one line on stderr, no traceback unless ROSETTA_DEBUG=1."""
    try:
        result = rosetta.main(
            args=list(sys.argv[1:] if arguments is None else arguments), prog_name="rosetta", standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        return 2
    except click.ClickException as error:
        _say(error.format_message())
        return 2
    except RosettaError as error:
        _say_error(error)
        return 2 if error.kind in BAD_INPUT else 1
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`); what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        _debug()
        _say(f"unexpected {type(error).__name__} - run again with ROSETTA_DEBUG=1 and report what it shows")
        return 1
    return result if isinstance(result, int) else 0


def _say(message: str) -> None:
    click.echo(f"error: {message}", err=True)


def _say_error(error: RosettaError) -> None:
    _debug()
    problems = getattr(error, "problems", None) or (error.message,)
    for problem in problems[:-1]:
        _say(problem)
    _say(f"{problems[-1]} - {error.policy.solution}")


def _debug() -> None:
    if os.environ.get("ROSETTA_DEBUG", "") not in ("", "0"):
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
