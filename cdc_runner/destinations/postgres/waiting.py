"""Which keys of which targets wait, kept in the destination: written in the transaction that holds the position.

A row of `_rosetta.waiting_key` is one change that is not applied: its payload is in the dead-letter queue, its mark is
here. The marks are the truth about what waits: a payload without a mark belongs to a transaction that was rolled back,
a mark without a payload tells that the queue has lost something. `waiting_version` in `_rosetta.stream_position` rises
with each change of the marks, so that a session notices what another one did.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psycopg2.extensions
from psycopg2.extras import execute_values

from cdc_runner.destinations.letters import StoredLetter, identity_columns, key_text
from cdc_runner.destinations.marks import Mark, Selection, WaitingTable
from cdc_runner.schema import TableId

Cursor = psycopg2.extensions.cursor

_CREATE = """
CREATE TABLE IF NOT EXISTS _rosetta.waiting_key (
    pipeline text NOT NULL,
    target_schema text NOT NULL,
    target_table text NOT NULL,
    key_hash text NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    entry text NOT NULL,
    stream_id text NOT NULL,
    source_schema text NOT NULL,
    source_table text NOT NULL,
    key_columns text NOT NULL,
    key_text text,
    end_lsn bigint NOT NULL,
    operation text NOT NULL,
    sqlstate text,
    reason text,
    attempts integer NOT NULL DEFAULT 0,
    last_attempt_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, target_schema, target_table, key_hash, number)
);
CREATE UNIQUE INDEX IF NOT EXISTS waiting_key_entry ON _rosetta.waiting_key (pipeline, entry);
ALTER TABLE _rosetta.stream_position ADD COLUMN IF NOT EXISTS waiting_version bigint NOT NULL DEFAULT 0;
COMMENT ON TABLE _rosetta.waiting_key IS 'Changes in the dead-letter queue: their keys wait until they are replayed';
"""


def create(connection: psycopg2.extensions.connection) -> None:
    """Create the table unless it is there. Commits."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('_rosetta.waiting_key') IS NOT NULL")
        row = cursor.fetchone()
        if row is not None and row[0]:
            return
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('rosetta state'))")
        cursor.execute(_CREATE)


def read_version(cursor: Cursor, pipeline: str) -> int:
    """Return the version of a pipeline's marks."""
    cursor.execute("SELECT waiting_version FROM _rosetta.stream_position WHERE pipeline = %s", (pipeline,))
    row = cursor.fetchone()
    return int(row[0]) if row is not None else 0


def raise_version(cursor: Cursor, pipeline: str) -> int:
    """Tell other sessions, from the commit on, that the marks have changed."""
    cursor.execute(
        "UPDATE _rosetta.stream_position SET waiting_version = waiting_version + 1 WHERE pipeline = %s "
        "RETURNING waiting_version",
        (pipeline,),
    )
    row = cursor.fetchone()
    return int(row[0]) if row is not None else 0


def read_waiting(cursor: Cursor, pipeline: str) -> dict[TableId, WaitingTable]:
    """Return the waiting keys of every target."""
    cursor.execute(
        "SELECT target_schema, target_table, source_schema, source_table, key_hash, min(key_text), count(*), "
        "(array_agg(key_columns ORDER BY number))[1], extract(epoch FROM min(created_at))::float8 "
        "FROM _rosetta.waiting_key WHERE pipeline = %s GROUP BY 1, 2, 3, 4, 5",
        (pipeline,),
    )
    found: dict[TableId, WaitingTable] = {}
    for schema, table, source_schema, source_table, key, text, count, columns, since in cursor.fetchall():
        one = found.get(TableId(schema, table))
        if one is None:
            one = WaitingTable(TableId(source_schema, source_table), tuple(json.loads(columns)))
            one.first_values = None if text is None else set()
            found[TableId(schema, table)] = one
        one.counts[key] = count
        one.oldest_at = since if one.oldest_at is None else min(one.oldest_at, since)
        if text is None:
            one.first_values = None
        elif one.first_values is not None:
            one.first_values.add(json.loads(text)[0])
    return found


def add_marks(cursor: Cursor, pipeline: str, letters: Sequence[StoredLetter], end_lsn: int) -> None:
    """Write the marks of stored changes."""
    rows = []
    for letter in letters:
        change = letter.change
        sync, refusal = change.sync, change.refusal
        text = key_text(change.key) if change.schema.key else None
        rows.append((
            pipeline, sync.target.schema, sync.target.name, change.key_hash, letter.entry, letter.stream_id,
            sync.source.schema, sync.source.name, json.dumps(identity_columns(change.schema)), text, end_lsn,
            change.operation.value, refusal and refusal.sqlstate, refusal and refusal.message,
        ))  # fmt: skip
    execute_values(
        cursor,
        "INSERT INTO _rosetta.waiting_key (pipeline, target_schema, target_table, key_hash, entry, stream_id, "
        "source_schema, source_table, key_columns, key_text, end_lsn, operation, sqlstate, reason) VALUES %s",
        rows,
        page_size=1000,
    )


def forget_target(cursor: Cursor, pipeline: str, target: TableId) -> int:
    """Remove the marks of a target that was emptied or is loaded anew; return how many there were."""
    cursor.execute(
        "DELETE FROM _rosetta.waiting_key WHERE pipeline = %s AND target_schema = %s AND target_table = %s",
        (pipeline, target.schema, target.name),
    )
    return int(cursor.rowcount)


def forget_pipeline(cursor: Cursor, pipeline: str) -> int:
    """Remove all marks of a pipeline; return how many there were."""
    cursor.execute("DELETE FROM _rosetta.waiting_key WHERE pipeline = %s", (pipeline,))
    return int(cursor.rowcount)


def forget_entries(cursor: Cursor, pipeline: str, entries: Iterable[str]) -> None:
    """Remove the marks of entries."""
    cursor.execute(
        "DELETE FROM _rosetta.waiting_key WHERE pipeline = %s AND entry = ANY(%s)", (pipeline, list(entries))
    )


def note_attempts(cursor: Cursor, pipeline: str, refused: Mapping[str, tuple[str, str]]) -> None:
    """Count a refused replay of entries.

    Args:
        cursor: of the caller's transaction.
        pipeline: its identity.
        refused: entry -> SQLSTATE and reason.
    """
    execute_values(
        cursor,
        "UPDATE _rosetta.waiting_key w SET attempts = w.attempts + 1, last_attempt_at = now(), sqlstate = v.sqlstate, "
        "reason = v.reason FROM (VALUES %s) v(pipeline, entry, sqlstate, reason) "
        "WHERE w.pipeline = v.pipeline AND w.entry = v.entry",
        [(pipeline, entry, sqlstate, reason) for entry, (sqlstate, reason) in refused.items()],
        page_size=1000,
    )


_COLUMNS = (
    "source_schema, source_table, target_schema, target_table, key_hash, number, entry, stream_id, key_columns, "
    "key_text, end_lsn, operation, sqlstate, reason, attempts, last_attempt_at, created_at"
)


def _mark(row: Sequence[object]) -> Mark:
    columns, text = row[8], row[9]
    return Mark(
        TableId(str(row[0]), str(row[1])),
        TableId(str(row[2]), str(row[3])),
        str(row[4]),
        int(str(row[5])),
        str(row[6]),
        str(row[7]),
        tuple(json.loads(str(columns))),
        None if text is None else tuple(json.loads(str(text))),
        *row[10:],  # type: ignore[arg-type]  # the rest has the types of the table
    )


def read_marks(
    cursor: Cursor, pipeline: str, *, target: TableId | None = None, entry: str | None = None, limit: int = 1000
) -> list[Mark]:
    """Return marks in their order, for people."""
    where, values = _where(pipeline, Selection(target, entry))
    cursor.execute(
        f"SELECT {_COLUMNS} FROM _rosetta.waiting_key WHERE {where} ORDER BY number LIMIT %s", (*values, limit)
    )
    return [_mark(row) for row in cursor.fetchall()]


def last_number(cursor: Cursor, pipeline: str) -> int:
    """Return the number of a pipeline's newest mark."""
    cursor.execute("SELECT coalesce(max(number), 0) FROM _rosetta.waiting_key WHERE pipeline = %s", (pipeline,))
    row = cursor.fetchone()
    return int(row[0]) if row is not None else 0


def read_page(
    cursor: Cursor, pipeline: str, selection: Selection, after: int, limit: int, *, through: int | None = None
) -> list[Mark]:
    """Return all marks of the next keys, in order.

    Args:
        cursor: of a transaction that holds the position's lock.
        pipeline: its identity.
        selection: which keys.
        after: number of the first mark of the last key that was seen.
        limit: most keys.
        through: only keys whose first mark has at most this number.
    """
    where, values = _where(pipeline, selection)
    having: list[object] = [after]
    due = ""
    if through is not None:
        due = " AND min(number) <= %s"
        having.append(through)
    if selection.retry_seconds is not None:
        due += (
            " AND coalesce(max(last_attempt_at), min(created_at)) < now() - "
            "least(%s * power(2, least(max(attempts), 20)), 21600) * interval '1 second'"
        )
        having.append(selection.retry_seconds)
    if selection.retries is not None:
        due += " AND max(attempts) < %s"
        having.append(selection.retries)
    cursor.execute(
        f"WITH chosen AS (SELECT target_schema, target_table, key_hash, min(number) AS first "
        f"FROM _rosetta.waiting_key WHERE {where} GROUP BY 1, 2, 3 HAVING min(number) > %s{due} "
        f"ORDER BY first LIMIT %s) "
        f"SELECT {', '.join('w.' + name for name in _COLUMNS.split(', '))} FROM _rosetta.waiting_key w "
        f"JOIN chosen c USING (target_schema, target_table, key_hash) WHERE w.pipeline = %s ORDER BY w.number",
        (*values, *having, limit, pipeline),
    )
    return [_mark(row) for row in cursor.fetchall()]


def _where(pipeline: str, selection: Selection) -> tuple[str, list[str]]:
    where, values = ["pipeline = %s"], [pipeline]
    if selection.target is not None:
        where.append("target_schema = %s AND target_table = %s")
        values += [selection.target.schema, selection.target.name]
    if selection.entry is not None:
        where.append(
            "(target_schema, target_table, key_hash) = (SELECT target_schema, target_table, key_hash "
            "FROM _rosetta.waiting_key WHERE pipeline = %s AND entry = %s)"
        )
        values += [pipeline, selection.entry]
    return " AND ".join(where), values


def count(cursor: Cursor, pipeline: str, selection: Selection) -> tuple[int, int]:
    """Return how many keys and changes a selection has."""
    where, values = _where(pipeline, selection)
    cursor.execute(
        "SELECT count(DISTINCT (target_schema, target_table, key_hash)), count(*) "
        f"FROM _rosetta.waiting_key WHERE {where}",
        values,
    )
    row = cursor.fetchone()
    assert row is not None, "an aggregate returns a row"
    return int(row[0]), int(row[1])


def count_by_source(cursor: Cursor, pipeline: str) -> dict[TableId, int]:
    """Return how many changes of each source table wait."""
    cursor.execute(
        "SELECT source_schema, source_table, count(*) FROM _rosetta.waiting_key WHERE pipeline = %s GROUP BY 1, 2",
        (pipeline,),
    )
    return {TableId(row[0], row[1]): int(row[2]) for row in cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class MarkedEntry:
    """The tables of a marked entry."""

    source: TableId
    target: TableId


def read_entries(cursor: Cursor, pipeline: str) -> dict[str, MarkedEntry]:
    """Return every marked entry by name."""
    cursor.execute(
        "SELECT entry, source_schema, source_table, target_schema, target_table FROM _rosetta.waiting_key "
        "WHERE pipeline = %s",
        (pipeline,),
    )
    return {row[0]: MarkedEntry(TableId(row[1], row[2]), TableId(row[3], row[4])) for row in cursor.fetchall()}


def read_reasons(cursor: Cursor, pipeline: str) -> dict[TableId, str]:
    """Return why the first change of each target was refused."""
    cursor.execute(
        "SELECT DISTINCT ON (target_schema, target_table) target_schema, target_table, reason "
        "FROM _rosetta.waiting_key WHERE pipeline = %s AND reason IS NOT NULL ORDER BY 1, 2, number",
        (pipeline,),
    )
    return {TableId(row[0], row[1]): row[2] for row in cursor.fetchall()}
