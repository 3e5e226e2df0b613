"""How commands report: one JSON document with `--json`, else aligned columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])


def json_option(function: _Function) -> _Function:
    """Add `--json` to a command, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def print_json(value: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, empty: str) -> None:
    """Print columns of rows, aligned; `empty` when there are none."""
    if not rows:
        click.echo(empty)
        return
    lines = [[column.replace("_", " ").upper() for column in columns]]
    lines.extend([_cell(row.get(column)) for column in columns] for row in rows)
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_changes(subject: str, changed: Mapping[str, Sequence[Any]], *, as_json: bool) -> None:
    """Print changed fields with their values before and after."""
    if as_json:
        print_json(changed)
        return
    rows = [{"field": name, "before": before, "after": after} for name, (before, after) in changed.items()]
    print_table(rows, ("field", "before", "after"), empty=f"{subject} has these values already")


def print_fields(value: Mapping[str, Any], indent: int = 0) -> None:
    """Print a mapping, one field a line; lists of mappings below it."""
    for name, one in value.items():
        label = " " * indent + name.replace("_", " ")
        if isinstance(one, Mapping):
            click.echo(f"{label}:")
            print_fields(one, indent + 2)
        elif isinstance(one, Sequence) and not isinstance(one, str) and any(isinstance(item, Mapping) for item in one):
            click.echo(f"{label}:")
            for number, item in enumerate(one, 1):
                click.echo(f"{' ' * indent}  {number}.")
                print_fields(item, indent + 4)
        else:
            click.echo(f"{label}: {_cell(one)}")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    # An error text may hold line breaks, a table row may not.
    return " ".join(str(value).split())
