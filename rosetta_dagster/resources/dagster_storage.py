"""Removes what Dagster keeps and never throws away by itself: events, runs, old ticks and files.

Ticks have a retention in dagster.yaml, but for sensors that still exist only. Events have none at all. What is removed
here was tried out: pages, freshness and checks stay right, as the newest events of every asset are kept.

The page of an asset loads every event of the last seven days, with all its content, a hundred at a time. An event each
minute is thirty megabytes and more in three days, and a browser that is busy for minutes: so older events are thinned.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dagster import AssetKey, DagsterInstance, DagsterRunStatus, RunsFilter
from dagster_postgres import PostgresEventLogStorage, PostgresScheduleStorage
from sqlalchemy import text

KEPT_EVENTS = 60
"""Newest events of each asset and kind; of older ones the last of each hour stays. A plot shows a hundred."""
KEPT_CHECKS = 200
"""Newest outcomes of each check."""
_ROWS_AT_ONCE = 10_000
_THINNED_AT_ONCE = 1000
_RUNS_AT_ONCE = 100
_FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]

# Two that thin at once do not wait for each other.
_EVENTS = """
    DELETE FROM event_logs WHERE id IN (
        SELECT id FROM event_logs WHERE id IN (
            SELECT id FROM (
                SELECT id, timestamp,
                       row_number() OVER (PARTITION BY asset_key, dagster_event_type ORDER BY id DESC) AS rank,
                       row_number() OVER (
                           PARTITION BY asset_key, dagster_event_type,
                                        floor(extract(epoch FROM timestamp) / :period_seconds)
                           ORDER BY id DESC
                       ) AS rank_in_period
                FROM event_logs
                WHERE {which} AND dagster_event_type IN (
                    'ASSET_OBSERVATION', 'ASSET_MATERIALIZATION', 'FRESHNESS_STATE_CHANGE')
            ) ranked
            WHERE rank > :kept AND (rank_in_period > 1 OR timestamp < :before) LIMIT :at_once
        ) FOR UPDATE SKIP LOCKED)
    """
_EVERY_ASSET = text(_EVENTS.format(which="run_id = '' AND asset_key IS NOT NULL"))
_SOME_ASSETS = text(_EVENTS.format(which="asset_key = ANY(:keys)"))

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
            WHERE rank > {KEPT_CHECKS} AND create_timestamp < :before LIMIT {_ROWS_AT_ONCE})
        RETURNING evaluation_event_storage_id, run_id
    )
    DELETE FROM event_logs USING old WHERE event_logs.id = old.evaluation_event_storage_id AND event_logs.run_id = ''
    """
)


def prune_events(instance: DagsterInstance, days: int) -> int:
    """Thin the events of every asset, and remove those older than `days`; return how many went.

    The newest KEPT_EVENTS of each asset and kind stay, however old; of those before, the last of each hour.
    Events of runs go with their run. Does nothing with another storage than PostgreSQL.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, PostgresEventLogStorage):
        return 0
    before = _days_ago(days)
    events = {"before": before, "kept": KEPT_EVENTS, "period_seconds": 3600, "at_once": _ROWS_AT_ONCE}
    removed = 0
    for statement, values in ((_EVERY_ASSET, events), (_CHECKS, {"before": before})):
        while True:
            with storage.index_connection() as connection:
                count = connection.execute(statement, values).rowcount
            removed += count
            if count < _ROWS_AT_ONCE:
                break
    return removed


def thin_events(
    instance: DagsterInstance,
    keys: Collection[AssetKey],
    *,
    kept: int = KEPT_EVENTS,
    then_one_each: timedelta = timedelta(hours=1),
) -> int:
    """Thin the events of some assets, those of runs too; return how many went, a thousand at most.

    The newest `kept` of each asset and kind stay, and of those before the last of each hour, or other time. Cheap when
    there is nothing to do: meant for whoever tells of these assets. Does nothing with another storage than PostgreSQL.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, PostgresEventLogStorage):
        return 0
    values = {
        "keys": [key.to_string() for key in keys],
        "before": "-infinity",
        "kept": kept,
        "period_seconds": then_one_each.total_seconds(),
        "at_once": _THINNED_AT_ONCE,
    }
    with storage.index_connection() as connection:
        return int(connection.execute(_SOME_ASSETS, values).rowcount)


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
    with storage.connect() as connection:
        statement = text("DELETE FROM job_ticks WHERE timestamp < :before")
        return int(connection.execute(statement, {"before": _days_ago(days)}).rowcount)


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


def _days_ago(days: int) -> datetime:
    # Dagster stores the time without a zone, in UTC.
    return (datetime.now(UTC) - timedelta(days=days)).replace(tzinfo=None)
