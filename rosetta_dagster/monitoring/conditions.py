"""From what the monitors see to what a person is to be told. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdc_runner.catalog.notifications import Condition
from rosetta_dagster.resources.pipeline_health import PipelineHealth

LATE_REPORT_SECONDS = 300


def pipeline_conditions(pipelines: Sequence[PipelineHealth]) -> dict[str, Condition]:
    """Return a condition for each pipeline that is in error although it is to run."""
    return {
        f"pipeline_error:{one.pipeline}": Condition(
            "ERROR",
            "pipeline_error",
            one.last_error or "it reports an error",
            f"Pipeline {one.pipeline} is in error",
            at_once=False,
        )
        for one in pipelines
        if one.wanted != "PAUSE" and one.state == "ERROR"
    }


def worker_conditions(*, runners: int, wanted: Sequence[str], held: set[str]) -> dict[str, Condition]:
    """Return a condition when nobody runs the pipelines that are to run, or some of them."""
    if wanted and not runners:
        text = f"{len(wanted)} pipelines are to run, and no runner lives"
        return {"runner:none": Condition("ERROR", "runner", text, "No runner lives", at_once=False)}
    return {
        f"runner:{name}": Condition(
            "WARNING", "runner", f"pipeline {name} is to run, and no runner holds it", at_once=False
        )
        for name in wanted
        if name not in held
    }


def lag_conditions(pipelines: Sequence[PipelineHealth], warning_ms: int) -> dict[str, Condition]:
    """Return a condition for each destination that is too far behind, in error, or silent."""
    found: dict[str, Condition] = {}
    for one in pipelines:
        if one.wanted == "PAUSE":
            continue
        for stream in one.streams:
            key, title = f"destination:{one.pipeline}/{stream.destination}", f"{one.pipeline} → {stream.destination}"
            if stream.error:
                found[key] = Condition(
                    "ERROR", "destination_error", stream.error, f"{title} is in error", at_once=False
                )
            elif stream.lag_ms is not None and stream.lag_ms > warning_ms:
                text = f"{stream.lag_ms / 1000:.0f} s behind the source ({stream.lag_bytes or 0} bytes of WAL)"
                found[key] = Condition("WARNING", "lag", text, f"{title} is behind", at_once=False)
            elif one.state == "RUNNING" and (stream.age_seconds or 0) > LATE_REPORT_SECONDS:
                text = f"nothing was reported for {stream.age_seconds:.0f} s"
                found[key] = Condition("WARNING", "lag", text, f"{title} is silent", at_once=False)
    return found


def table_conditions(pipelines: Sequence[PipelineHealth]) -> dict[str, Condition]:
    """Return a condition for each pipeline with tables in error: one a pipeline, however many tables."""
    found: dict[str, Condition] = {}
    for one in pipelines:
        bad = [table for table in one.tables if table.error]
        if bad:
            first = bad[0]
            more = f", and {len(bad) - 1} more tables" if len(bad) > 1 else ""
            text = f"{first.target_schema}.{first.target_table} in {first.destination}: {first.error}{more}"
            title = f"{len(bad)} tables of {one.pipeline} are in error"
            found[f"tables:{one.pipeline}"] = Condition("ERROR", "table_error", text, title, at_once=False)
    return found


def wal_conditions(verdicts: Mapping[str, tuple[str, str | None]]) -> dict[str, Condition]:
    """Return a condition for each source whose slot is not OK; `verdicts` is source -> status and reason."""
    return {
        f"wal:{source}": Condition(
            "ERROR" if status == "ERROR" else "WARNING",
            "wal",
            reason or status,
            f"Slot of source {source}: {status}",
            at_once=False,
        )
        for source, (status, reason) in verdicts.items()
        if status != "OK"
    }
