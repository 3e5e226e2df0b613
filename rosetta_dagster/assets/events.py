"""Observations and materializations: numbers that Dagster plots, and one line each that a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    MetadataValue,
    TableColumn,
    TableRecord,
    TableSchema,
)

from cdc_runner.position import format_lsn
from rosetta_dagster.assets.numbers import readable
from rosetta_dagster.assets.specs import pipeline_key, table_key
from rosetta_dagster.monitoring.load_progress import LoadProgress
from rosetta_dagster.resources.pipeline_health import PipelineHealth, StreamHealth, TableHealth

Metadata = dict[str, MetadataValue]

_STREAM_COLUMNS = TableSchema(
    columns=[
        TableColumn("destination"),
        TableColumn("lag ms"),
        TableColumn("lag bytes"),
        TableColumn("batch ms"),
        TableColumn("applied"),
        TableColumn("error"),
    ]
)
_TABLE_COLUMNS = TableSchema(
    columns=[
        TableColumn("table"),
        TableColumn("destination"),
        TableColumn("state"),
        TableColumn("rows"),
        TableColumn("error"),
    ]
)
_LISTED_TABLES = 12
_LISTED_ERROR_CHARACTERS = 300
"""The page loads a hundred of these events at once; a table's own event has the whole error."""


def pipeline_event(
    health: PipelineHealth, rows: int, rows_per_second: float | None, loads: Sequence[LoadProgress] = ()
) -> AssetMaterialization | AssetObservation:
    """Return the event of a pipeline at this time.

    A pipeline that keeps up with its source is materialized, which is what keeps its asset fresh; any other is
    observed.
    """
    metadata = pipeline_metadata(health, rows, rows_per_second)
    description = pipeline_summary(health)
    own = [load for load in loads if load.pipeline == health.pipeline]
    if own:
        metadata["initial load"] = MetadataValue.text("; ".join(f"{load.destination}: {load.line}" for load in own))
        metadata["load percent"] = MetadataValue.float(min(load.percent for load in own))
    kind = AssetMaterialization if health.keeps_up else AssetObservation
    return kind(asset_key=pipeline_key(health.pipeline), description=description, metadata=metadata)


def pipeline_summary(health: PipelineHealth) -> str:
    """Return a pipeline's state in one line."""
    errors = [stream.error for stream in health.streams if stream.error]
    if health.state == "ERROR" or errors:
        return f"{health.state}: {health.last_error or errors[0]}"
    if health.slot_status == "ERROR":
        return f"{health.state}: {health.slot_problem}"
    if health.keeps_up and health.caught_up_at is not None:
        return f"{health.state}: caught up as of {health.caught_up_at:%Y-%m-%d %H:%M:%S} UTC at the source"
    loading = sum(table.load_state in ("PENDING", "LOADING") for table in health.tables)
    if loading:
        return f"{health.state}: initial load, {loading} of {len(health.tables)} tables to go"
    if health.worst_lag_ms is not None:
        return f"{health.state}: {health.worst_lag_ms} ms behind the source"
    return health.state


def pipeline_metadata(health: PipelineHealth, rows: int, rows_per_second: float | None) -> Metadata:
    """Return the numbers and tables of a pipeline."""
    metadata: Metadata = {
        "state": MetadataValue.text(f"{health.state} (set to {health.wanted})"),
        "rows applied": MetadataValue.int(rows),
    }
    if rows_per_second is not None:
        metadata["rows per second"] = MetadataValue.float(rows_per_second)
    if health.worst_lag_ms is not None:
        metadata["lag ms"] = MetadataValue.int(health.worst_lag_ms)
    if health.worst_lag_bytes is not None:
        metadata["lag bytes"] = MetadataValue.int(health.worst_lag_bytes)
    batches = [stream.batch_ms for stream in health.streams if stream.batch_ms is not None]
    if batches:
        metadata["batch ms"] = MetadataValue.int(max(batches))
    if health.retained_wal_bytes is not None:
        metadata["slot WAL bytes"] = MetadataValue.int(health.retained_wal_bytes)
    if health.slot_status is not None:
        problem = f": {health.slot_problem}" if health.slot_problem else ""
        metadata["slot"] = MetadataValue.text(f"{health.slot_status}{problem}")
    if health.caught_up_at is not None:
        metadata["last source commit"] = MetadataValue.timestamp(health.caught_up_at)
    if health.streams:
        # Of the slot, so the same for every destination; the table of destinations has no room for more columns.
        metadata["captured position"] = MetadataValue.text(format_lsn(max(one.captured_lsn for one in health.streams)))
        acknowledged = min(one.acknowledged_lsn for one in health.streams)
        metadata["acknowledged position"] = MetadataValue.text(format_lsn(acknowledged))
    if health.last_error:
        metadata["last error"] = MetadataValue.text(health.last_error)
    metadata |= {
        "tables": MetadataValue.int(len(health.tables)),
        "tables streaming": MetadataValue.int(sum(table.load_state == "STREAMING" for table in health.tables)),
        "tables in error": MetadataValue.int(sum(table.error is not None for table in health.tables)),
        "dead letters": MetadataValue.int(sum(table.dead_letters for table in health.tables)),
        "destinations": MetadataValue.table([_stream_record(one) for one in health.streams], _STREAM_COLUMNS),
        "largest tables": MetadataValue.table(_table_records(health.tables), _TABLE_COLUMNS),
    }
    return metadata


def key_of_table(table: TableHealth) -> AssetKey:
    """Return the key of a replicated table's asset."""
    return table_key(table.pipeline, table.destination, table.target_schema, table.target_table)


def table_event(table: TableHealth, stream: StreamHealth | None) -> AssetMaterialization | AssetObservation:
    """Return the event of a replicated table; `stream` is the one that feeds it.

    A table that streams is materialized, its data having changed; any other is observed.
    """
    metadata: Metadata = {
        "state": MetadataValue.text(table.load_state),
        "rows applied": MetadataValue.int(table.applied_rows),
        "rows loaded": MetadataValue.int(table.loaded_rows),
        "dead letters": MetadataValue.int(table.dead_letters),
    }
    if stream is not None:
        metadata["applied position"] = MetadataValue.text(format_lsn(stream.applied_lsn))
        if stream.lag_ms is not None:
            metadata["lag ms"] = MetadataValue.int(stream.lag_ms)
        if stream.lag_bytes is not None:
            metadata["lag bytes"] = MetadataValue.int(stream.lag_bytes)
        if stream.commit_at is not None:
            metadata["last source commit"] = MetadataValue.timestamp(stream.commit_at)
    if table.snapshot_lsn is not None:
        metadata["loaded at position"] = MetadataValue.text(format_lsn(table.snapshot_lsn))
    if table.error:
        metadata["error"] = MetadataValue.text(table.error)
    kind = AssetMaterialization if table.load_state == "STREAMING" and not table.error else AssetObservation
    return kind(
        asset_key=key_of_table(table),
        description=f"{table.load_state}: {table.error}" if table.error else table.load_state,
        metadata=metadata,
    )


def _stream_record(stream: StreamHealth) -> TableRecord:
    return TableRecord(
        {
            "destination": stream.destination,
            "lag ms": "" if stream.lag_ms is None else readable(stream.lag_ms),
            "lag bytes": "" if stream.lag_bytes is None else readable(stream.lag_bytes),
            "batch ms": "" if stream.batch_ms is None else readable(stream.batch_ms),
            "applied": format_lsn(stream.applied_lsn),
            "error": stream.error or "",
        }
    )


def _table_records(tables: tuple[TableHealth, ...]) -> list[TableRecord]:
    # Those in trouble first, then the largest; an event of a thousand tables would be too large for the log.
    ranked = sorted(tables, key=lambda table: (table.error is None, -(table.loaded_rows + table.applied_rows)))
    return [
        TableRecord(
            {
                "table": f"{table.target_schema}.{table.target_table}",
                "destination": table.destination,
                "state": table.load_state,
                "rows": readable(table.loaded_rows + table.applied_rows),
                "error": shorten(table.error or "", _LISTED_ERROR_CHARACTERS, placeholder=" …"),
            }
        )
        for table in ranked[:_LISTED_TABLES]
    ]
