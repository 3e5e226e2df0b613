"""Removes what Dagster keeps and never throws away by itself: events, runs, old ticks and files.

Ticks have a retention in dagster.yaml, but for sensors that still exist only. Events have none at all. What is removed
here was tried out: pages, freshness and checks stay right, as the newest events of every asset are kept.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dagster import AssetKey, DagsterInstance, DagsterRunStatus, RunsFilter
from dagster_postgres import PostgresEventLogStorage, PostgresScheduleStorage
from sqlalchemy import text

KEPT_EVENTS = 200
"""Newest events of each asset and kind: what a plot shows."""
_ROWS_AT_ONCE = 10_000
_RUNS_AT_ONCE = 100
_FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]

_EVENTS = text(
    f"""
    DELETE FROM event_logs WHERE id IN (
        SELECT id FROM (
            SELECT id, timestamp,
                   row_number() OVER (PARTITION BY asset_key, dagster_event_type ORDER BY id DESC) AS rank
            FROM event_logs
            WHERE run_id = '' AND asset_key IS NOT NULL
              AND dagster_event_type IN ('ASSET_OBSERVATION', 'ASSET_MATERIALIZATION')
        ) ranked
        WHERE rank > {KEPT_EVENTS} AND timestamp < :before LIMIT {_ROWS_AT_ONCE})
    """
)

# Events of checks carry no asset; the table of executions leads to them.
_CHECKS = text(
    f"""
    WITH old AS (
        DELETE FROM asset_check_executions WHERE id IN (
            SELECT id FROM (
                SELECT id, create_timestamp,
                       row_number() OVER (PARTITION BY asset_key, check_name ORDER BY id DESC) AS rank
                FROM asset_check_executions
            ) ranked
            WHERE rank > {KEPT_EVENTS} AND create_timestamp < :before LIMIT {_ROWS_AT_ONCE})
        RETURNING evaluation_event_storage_id, run_id
    )
    DELETE FROM event_logs USING old WHERE event_logs.id = old.evaluation_event_storage_id AND event_logs.run_id = ''
    """
)


def prune_events(instance: DagsterInstance, days: int) -> int:
    """Remove asset events older than `days` beyond the newest KEPT_EVENTS of each asset; return how many went.

    Events of runs go with their run. Does nothing with another storage than PostgreSQL.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, PostgresEventLogStorage):
        return 0
    # Dagster stores the time without a zone, in UTC.
    before = (datetime.now(UTC) - timedelta(days=days)).replace(tzinfo=None)
    removed = 0
    for statement in (_EVENTS, _CHECKS):
        while True:
            with storage.index_connection() as connection:
                count = connection.execute(statement, {"before": before}).rowcount
            removed += count
            if count < _ROWS_AT_ONCE:
                break
    return removed


def prune_runs(instance: DagsterInstance, days: int, limit: int = 2000) -> int:
    """Remove finished runs older than `days` with their events, the oldest first; return how many went."""
    before = datetime.now(UTC) - timedelta(days=days)
    removed = 0
    while removed < limit:
        filters = RunsFilter(statuses=_FINISHED, created_before=before)
        records = instance.get_run_records(filters, limit=_RUNS_AT_ONCE, ascending=True)
        for record in records:
            instance.delete_run(record.dagster_run.run_id)
        removed += len(records)
        if len(records) < _RUNS_AT_ONCE:
            break
    return removed


def prune_ticks(instance: DagsterInstance, days: int) -> int:
    """Remove every tick older than `days`, those of renamed and removed sensors too; return how many went."""
    storage = instance.schedule_storage
    if not isinstance(storage, PostgresScheduleStorage):
        return 0
    before = (datetime.now(UTC) - timedelta(days=days)).replace(tzinfo=None)
    with storage.connect() as connection:
        return int(
            connection.execute(text("DELETE FROM job_ticks WHERE timestamp < :before"), {"before": before}).rowcount
        )


def prune_files(instance: DagsterInstance, days: int) -> int:
    """Remove files of runs and ticks older than `days` below Dagster's storage directory; return how many went."""
    root = Path(instance.storage_directory()).resolve()
    before = time.time() - days * 86_400
    removed = 0
    # Deepest first, so that a directory is empty when its turn comes.
    for path in sorted(root.rglob("*"), key=lambda one: len(one.parts), reverse=True):
        if path.is_symlink() or path.stat().st_mtime >= before:
            continue
        if path.is_file():
            path.unlink(missing_ok=True)
            removed += 1
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return removed


def forget_assets(instance: DagsterInstance, known: Collection[AssetKey]) -> list[AssetKey]:
    """Remove the history of Rosetta's assets that the catalog does not have any more; return their keys."""
    stored = {key for prefix in ("rosetta", "source") for key in instance.get_asset_keys(prefix=[prefix])}
    gone = sorted(stored - set(known))
    if gone:
        instance.wipe_assets(gone)
    return gone
