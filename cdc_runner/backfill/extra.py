"""Rows of a target that its source does not have, removed beside the stream."""

from __future__ import annotations

import psycopg2.extensions
import structlog

from cdc_runner.backfill import statements as sql
from cdc_runner.backfill.pace import Pace
from cdc_runner.backfill.rows import RowSource
from cdc_runner.backfill.window import Side, Window, Work
from cdc_runner.destinations.base import LoadChunk
from cdc_runner.destinations.postgres.pipe import copy_across
from cdc_runner.spec import SyncMode

log = structlog.get_logger()

_STEP_ROWS = 2_000


def clear(writer: psycopg2.extensions.connection, window: Window) -> None:
    """Begin with no keys beside the target."""
    with writer, writer.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {sql.KEYS}, {sql.EXTRA}")
        cursor.execute(sql.create_keys(window.watch))


def stage_keys(
    reader: psycopg2.extensions.connection,
    writer: psycopg2.extensions.connection,
    rows: RowSource,
    chunk: LoadChunk,
    pace: Pace,
) -> int:
    """Copy the keys of a chunk's rows beside the target, under the snapshot of the session that reads."""
    with writer, writer.cursor() as cursor:
        columns = ", ".join(f"k{place}" for place in range(len(rows.shape.key)))
        copy_in = f"COPY {sql.KEYS} ({columns}) FROM STDIN"
        copy_across(reader, rows.copy_keys(chunk), cursor, copy_in, rows.key_masker(), pace)
        return int(cursor.rowcount)


def remove_extra(
    writer: psycopg2.extensions.connection, side: Side, rows: RowSource, window: Window, work: Work
) -> int:
    """Delete the target's rows whose keys were not staged, once the destination has reached the snapshot.

    Keys that the stream has touched since the snapshot stay, and so do those that wait in the dead-letter queue. Where
    deleted rows are kept, they are marked.

    Returns:
        How many rows were removed or marked.

    Raises:
        Interrupted, WindowVoid: what is removed so far is right.
        RosettaError: the destination's kinds.
    """
    shape, watch = rows.shape, window.watch
    soft = rows.sync.shape.mode is SyncMode.SOFT_DELETE
    with writer, writer.cursor() as cursor:
        cursor.execute(f"ANALYZE {sql.KEYS}")
        cursor.execute(sql.create_extra(shape, watch, soft=soft))
        last = int(cursor.rowcount)
        cursor.execute(f"CREATE INDEX ON {sql.EXTRA} (r)")
        cursor.execute(f"ANALYZE {sql.EXTRA}")
    removed = 0
    for low in range(1, last + 1, _STEP_ROWS):
        work.check()
        with writer, writer.cursor() as cursor:
            window.lock(cursor)
            high = low + _STEP_ROWS - 1
            lsn = window.position.lsn
            cursor.execute(sql.remove_extra(shape, watch, lsn, side.pipeline, low, high, soft=soft))
            removed += cursor.rowcount
    if removed:
        log.info("backfill.rows_removed", target=str(shape.table), rows=removed)
    return removed
