"""The state of everything: runners, and for each pipeline and destination positions, lag, load progress, last error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cdc_runner.catalog.backfills import JOINS, OPEN, listed
from cdc_runner.catalog.dead_letters import DestinationLetters, read_dead_letters
from cdc_runner.catalog.leases import live_runners
from cdc_runner.catalog.models import (
    BackfillChunk,
    Pipeline,
    PipelineDestination,
    PipelineMetadata,
    QueueBackfill,
    RunnerLease,
    StreamOffset,
    TableSync,
)
from cdc_runner.catalog.repositories import list_pipelines
from cdc_runner.position import format_lsn

LOAD_STATES = ("PENDING", "LOADING", "STREAMING", "EXCLUDED", "ERROR")


def read_status(session: Session, pipeline: str | None = None) -> dict[str, Any]:
    """Return the state of every pipeline, or of one.

    `alive` tells whether a runner holds the pipeline's lease now; `state` is what its process reported last.
    """
    metadata = {row.pipeline_id: row for row in session.scalars(select(PipelineMetadata))}
    offsets = {row.pipeline_destination_id: row for row in session.scalars(select(StreamOffset))}
    live = set(
        session.scalars(
            select(RunnerLease.pipeline_id).where(
                RunnerLease.holder.is_not(None), RunnerLease.expires_at > func.clock_timestamp()
            )
        )
    )
    chunks = _chunk_counts(session)
    backfills = _backfill_counts(session)
    open_backfills = listed(session, open_only=True, limit=1000)
    letters = read_dead_letters(session)
    return {
        "runners": _runners(session),
        "pipelines": [
            {
                **_pipeline(one, metadata.get(one.id), alive=one.id in live),
                "destinations": [
                    _destination(
                        row,
                        offsets.get(row.id),
                        chunks.get(row.id, Counter()),
                        backfills.get((one.id, row.id), Counter()) + backfills.get((one.id, None), Counter()),
                        _state(one, metadata.get(one.id), row, alive=one.id in live),
                        letters[row.id],
                        [
                            shown
                            for shown in open_backfills
                            if (shown["pipeline"], shown["destination"]) == (one.name, row.destination.name)
                        ],
                    )
                    for row in one.destinations
                ],
            }
            for one in list_pipelines(session)
            if pipeline is None or one.name == pipeline
        ],
    }


def _runners(session: Session) -> list[dict[str, Any]]:
    return [
        {
            "runner": row.runner_id,
            "host": row.host,
            "pid": row.pid,
            "state": row.state,
            "health_port": row.health_port,
            "version": row.version,
            "started_at": row.started_at.isoformat(),
            "heartbeat_at": row.heartbeat_at.isoformat(),
            "last_error": row.last_error,
        }
        for row in live_runners(session)
    ]


def _pipeline(pipeline: Pipeline, metadata: PipelineMetadata | None, *, alive: bool) -> dict[str, Any]:
    return {
        "pipeline": pipeline.name,
        "source": pipeline.source.name,
        "status": pipeline.status,
        "state": metadata.status if metadata else "PAUSED",
        "alive": alive,
        "last_start_at": metadata.last_start_at.isoformat() if metadata and metadata.last_start_at else None,
        "last_error": metadata.last_error if metadata else None,
        "last_error_at": metadata.last_error_at.isoformat() if metadata and metadata.last_error_at else None,
    }


def _state(pipeline: Pipeline, metadata: PipelineMetadata | None, row: PipelineDestination, *, alive: bool) -> str:
    reported = metadata.status if metadata else "PAUSED"
    if row.is_error or reported == "ERROR":
        return "ERROR"
    if pipeline.status == "PAUSE":
        return "PAUSED"
    if reported != "RUNNING" or not alive:
        # To run, but no process of a live runner says that it does.
        return "STOPPED"
    states = {sync.load_state for sync in row.table_syncs if sync.origin == "RESOLVED"}
    return "LOADING" if states & {"PENDING", "LOADING"} else "RUNNING"


def _destination(
    row: PipelineDestination,
    offset: StreamOffset | None,
    chunks: Mapping[str, int],
    backfills: Mapping[str, int],
    state: str,
    letters: DestinationLetters,
    open_backfills: list[dict[str, Any]],
) -> dict[str, Any]:
    tables = [sync for sync in row.table_syncs if sync.origin == "RESOLVED"]
    return {
        "destination": row.destination.name,
        "type": row.destination.type,
        "state": state,
        "captured_position": format_lsn(offset.captured_lsn) if offset else None,
        "applied_position": format_lsn(offset.applied_lsn) if offset else None,
        "acknowledged_position": format_lsn(offset.acknowledged_lsn) if offset else None,
        "lag_bytes": offset.lag_bytes if offset else None,
        "lag_ms": offset.lag_ms if offset else None,
        "source_commit_at": offset.commit_at.isoformat() if offset and offset.commit_at else None,
        "reported_at": offset.updated_at.isoformat() if offset else None,
        "rows_applied": sum(sync.applied_rows for sync in tables),
        "rows_loaded": sum(sync.loaded_rows for sync in tables),
        **_letters(letters),
        "load": _load(tables, chunks),
        "backfills": dict(backfills),
        "open_backfills": open_backfills,
        "last_error": row.error_message,
        "last_error_at": row.last_error_at.isoformat() if row.last_error_at else None,
        "table_errors": [
            {"table": f"{sync.source_schema}.{sync.source_table}", "error": sync.error_message}
            for sync in tables
            if sync.is_error
        ],
        "excluded_tables": [
            {"table": f"{sync.source_schema}.{sync.source_table}", "reason": sync.load_state_reason}
            for sync in tables
            if sync.load_state == "EXCLUDED"
        ],
    }


def _letters(letters: DestinationLetters) -> dict[str, Any]:
    return {
        "dead_letters": letters.entries,
        "dead_letter_keys": letters.keys,
        "dead_letters_lost": letters.lost,
        "dead_letter_queue": letters.state,
        "dead_letter_queue_problem": letters.problem,
        "parked_batches": letters.parked_batches,
        "parked_bytes": letters.parked_bytes,
        "dead_letter_tables": [
            {
                "table": str(one.target),
                "keys": one.keys,
                "entries": one.entries,
                "lost": one.lost,
                "oldest_at": one.oldest_at.isoformat() if one.oldest_at else None,
                "reason": one.reason,
            }
            for one in letters.tables
        ],
    }


def _load(tables: list[TableSync], chunks: Mapping[str, int]) -> dict[str, Any]:
    counted = Counter(sync.load_state for sync in tables)
    total, done = sum(chunks.values()), chunks.get("COMPLETED", 0)
    # Chunks are of the table that joins just now; of the others only those that are done count.
    wanted, finished = len(tables) - counted["EXCLUDED"], counted["STREAMING"] + (done / total if total else 0)
    return {
        "tables": {state.lower(): counted[state] for state in LOAD_STATES},
        "chunks": total,
        "chunks_completed": done,
        "percent": round(100 * finished / wanted, 1) if wanted else None,
    }


def _chunk_counts(session: Session) -> dict[int, Counter[str]]:
    counts: dict[int, Counter[str]] = {}
    columns = (BackfillChunk.pipeline_destination_id, BackfillChunk.state)
    query = select(*columns, func.count()).join(QueueBackfill, QueueBackfill.id == BackfillChunk.backfill_id)
    joining = (QueueBackfill.requested_by == JOINS, QueueBackfill.status.in_(OPEN))
    for identifier, state, count in session.execute(query.where(*joining).group_by(*columns)):
        counts.setdefault(identifier, Counter())[state] = count
    return counts


def _backfill_counts(session: Session) -> dict[tuple[int, int | None], Counter[str]]:
    counts: dict[tuple[int, int | None], Counter[str]] = {}
    columns = (QueueBackfill.pipeline_id, QueueBackfill.pipeline_destination_id, QueueBackfill.status)
    for pipeline_id, destination_id, status, count in session.execute(
        select(*columns, func.count()).group_by(*columns)
    ):
        counts.setdefault((pipeline_id, destination_id), Counter())[status.lower()] = count
    return counts
