"""What the administrative jobs have in common: one operation each, a picker, readable results, secrets by reference."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dagster import (
    DynamicPartitionsDefinition,
    JobDefinition,
    MetadataValue,
    OpDefinition,
    TableColumn,
    TableRecord,
    TableSchema,
    in_process_executor,
    job,
)

from cdc_runner.errors import ErrorKind, RosettaError
from rosetta_dagster.jobs.partitions import one_at_a_time

LISTED = 500
Cell = str | int | float | bool


def verb_job(
    operation: OpDefinition,
    *,
    name: str,
    description: str,
    picker: DynamicPartitionsDefinition | None = None,
    max_runtime_seconds: int = 300,
    tags: Mapping[str, str] | None = None,
    kind: str | None = None,
) -> JobDefinition:
    """Return the job of one operation; with a picker the launchpad offers the names.

    Args:
        operation: all that it does.
        name: its name.
        description: what it does, for the pages.
        picker: whose names it takes; None for a job that takes none.
        max_runtime_seconds: after which Dagster ends it.
        tags: of its runs.
        kind: runs of one kind (`change`, …) follow each other for each name of the picker; None for one that looks.
    """
    settings: dict[str, Any] = {"config": one_at_a_time(picker, kind)} if picker and kind else {}

    @job(
        name=name,
        partitions_def=picker,
        executor_def=in_process_executor,
        tags={"dagster/max_runtime": str(max_runtime_seconds), **(tags or {})},
        description=description,
        **settings,
    )
    def single() -> None:
        operation()

    return single


def reference(field: str, variable: str, file: str, *, required: bool = True) -> dict[str, str] | None:
    """Return a secret's reference, as in a configuration file, from the two fields of a launchpad.

    Raises:
        RosettaError: CONFIG_INVALID, both are given, or none although one must be.
    """
    if variable and file:
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"give one of {field}_env and {field}_file, not both")
    if not variable and not file:
        if required:
            raise RosettaError(
                ErrorKind.CONFIG_INVALID, f"give {field}_env or {field}_file: a secret is never typed here"
            )
        return None
    return {"env": variable} if variable else {"file": file}


def given(values: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    """Return the fields that were filled in: a text, number or list that is empty or 0 was not."""
    return {name: value for name, value in values.items() if name not in left_out and value not in ("", 0, [], None)}


def table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> MetadataValue:
    """Return rows as a table of the pages, LISTED at the most."""
    names = list(columns)
    if not rows:
        return MetadataValue.text("none")
    return MetadataValue.table(
        [TableRecord({name: _cell(row.get(name)) for name in names}) for row in rows[:LISTED]],
        TableSchema(columns=[TableColumn(name) for name in names]),
    )


def fields(values: Mapping[str, Any]) -> dict[str, MetadataValue]:
    """Return facts as metadata, each with its name; what is not known is left out."""
    return {
        name.replace("_", " "): MetadataValue.text(str(_cell(value)))
        for name, value in values.items()
        if value not in (None, "", [])
    }


def findings_table(findings: Sequence[Mapping[str, Any]]) -> MetadataValue:
    """Return what the doctor found, the worst first."""
    ranked = sorted(findings, key=lambda one: ("error", "warning", "ok").index(one["level"]))
    return table(ranked, ("level", "subject", "what", "solution", "check"))


def _cell(value: Any) -> Cell:
    if value is None:
        return ""
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str | int) for one in value):
        return ", ".join(map(str, value))
    return json.dumps(value, default=str)
