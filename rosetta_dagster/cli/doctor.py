"""`rosetta doctor`."""

from __future__ import annotations

import textwrap

import click

from cdc_runner.doctor.finding import Report
from cdc_runner.doctor.run import examine_subject, read_subjects
from rosetta_dagster.cli.catalog import catalog_session
from rosetta_dagster.cli.output import json_option, print_json

_MARKS = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}


@click.command()
@click.argument("pipeline", required=False)
@json_option
def doctor(pipeline: str | None, as_json: bool) -> int:
    """Check source, destinations, rights, tables and slot of PIPELINE, or of all; nothing is changed.

    The exit code is 1 when there is an error.
    """
    return examine(pipeline, as_json)


def examine(pipeline: str | None, as_json: bool) -> int:
    """Print the reports and return the exit code."""
    with catalog_session() as session:
        subjects = read_subjects(session, pipeline)
    reports = [examine_subject(subject) for subject in subjects]
    if as_json:
        print_json({"ok": all(report.ok for report in reports), "pipelines": [report.as_json() for report in reports]})
    else:
        _print(reports)
    return 0 if all(report.ok for report in reports) else 1


def _print(reports: list[Report]) -> None:
    if not reports:
        click.echo("no pipelines; `rosetta apply FILE` creates them")
    for report in reports:
        click.echo(f"pipeline {report.pipeline}")
        for finding in report.findings:
            click.echo(f"  {_MARKS[finding.level]} {finding.subject}: {finding.what}")
            if finding.solution:
                click.echo(textwrap.indent(f"-> {finding.solution}", " " * 10))
        click.echo(f"  {report.count('error')} errors, {report.count('warning')} warnings")
