"""What Rosetta keeps inside a PostgreSQL destination: positions, epochs and table states in the schema `_rosetta`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import psycopg2.extensions

from cdc_runner.destinations.base import LoadChunk, TableState
from cdc_runner.destinations.postgres import membership
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.spec import ResolvedSync

Connection = psycopg2.extensions.connection

_CREATE = """
CREATE SCHEMA IF NOT EXISTS _rosetta;
CREATE TABLE IF NOT EXISTS _rosetta.stream_position (
    pipeline text PRIMARY KEY,
    epoch bigint NOT NULL,
    end_lsn bigint,
    commit_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS _rosetta.table_state (
    pipeline text NOT NULL,
    target_schema text NOT NULL,
    target_table text NOT NULL,
    source_schema text NOT NULL,
    source_table text NOT NULL,
    ready boolean NOT NULL,
    snapshot_lsn bigint NOT NULL,
    source_definition jsonb NOT NULL,
    PRIMARY KEY (pipeline, target_schema, target_table)
);
CREATE TABLE IF NOT EXISTS _rosetta.load_chunk (
    pipeline text NOT NULL,
    target_schema text NOT NULL,
    target_table text NOT NULL,
    chunk integer NOT NULL,
    relation_schema text NOT NULL,
    relation_name text NOT NULL,
    filenode bigint,
    from_page bigint NOT NULL,
    to_page bigint,
    row_count bigint,
    PRIMARY KEY (pipeline, target_schema, target_table, chunk)
);
COMMENT ON SCHEMA _rosetta IS 'Positions of Rosetta pipelines; removed with the pipeline';
"""


def create(connection: psycopg2.extensions.connection) -> None:
    """Create the tables unless they are there. Commits."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('_rosetta.load_chunk') IS NOT NULL")
        row = cursor.fetchone()
        if row is not None and row[0]:
            return
        # IF NOT EXISTS is no protection against two pipelines that create at once.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('rosetta state'))")
        cursor.execute(_CREATE)


def take_epoch(connection: psycopg2.extensions.connection, pipeline: str) -> int:
    """Raise the pipeline's epoch and return it: writers with a lower one are fenced from now on. Commits."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO _rosetta.stream_position AS p (pipeline, epoch) VALUES (%s, 1) "
            "ON CONFLICT (pipeline) DO UPDATE SET epoch = p.epoch + 1, updated_at = now() RETURNING epoch",
            (pipeline,),
        )
        row = cursor.fetchone()
    assert row is not None, "RETURNING gives a row"
    return int(row[0])


def read_epoch(connection: psycopg2.extensions.connection, pipeline: str) -> int:
    """Return the pipeline's epoch without raising it; 0 when the pipeline has never been here. Commits."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT epoch FROM _rosetta.stream_position WHERE pipeline = %s", (pipeline,))
        row = cursor.fetchone()
    return int(row[0]) if row is not None else 0


def lock_position(cursor: psycopg2.extensions.cursor, pipeline: str, epoch: int) -> Position | None:
    """Lock the pipeline's position for this transaction and return it.

    Raises:
        RosettaError: FENCED when another writer has taken a newer epoch.
    """
    cursor.execute("SELECT epoch, end_lsn FROM _rosetta.stream_position WHERE pipeline = %s FOR UPDATE", (pipeline,))
    row = cursor.fetchone()
    if row is None or row[0] != epoch:
        raise RosettaError(ErrorKind.FENCED, "another runner of this pipeline writes to this destination now")
    return None if row[1] is None else Position(row[1])


def read_position(cursor: psycopg2.extensions.cursor, pipeline: str) -> Position | None:
    """Return the pipeline's position as the cursor's transaction sees it; None when there is none."""
    cursor.execute("SELECT end_lsn FROM _rosetta.stream_position WHERE pipeline = %s", (pipeline,))
    row = cursor.fetchone()
    return None if row is None or row[0] is None else Position(row[0])


def store_position(cursor: psycopg2.extensions.cursor, pipeline: str, position: Position, commit_time: float) -> None:
    """Store the position in the current transaction."""
    cursor.execute(
        "UPDATE _rosetta.stream_position SET end_lsn = %s, commit_at = to_timestamp(%s), updated_at = now() "
        "WHERE pipeline = %s",
        (position.lsn, commit_time or None, pipeline),
    )


def read_tables(cursor: psycopg2.extensions.cursor, pipeline: str) -> list[TableState]:
    """Return the states of a pipeline's target tables."""
    cursor.execute(
        "SELECT source_schema, source_table, target_schema, target_table, ready, snapshot_lsn, source_definition::text "
        "FROM _rosetta.table_state WHERE pipeline = %s ORDER BY 3, 4",
        (pipeline,),
    )
    return [
        TableState(
            sync=ResolvedSync(None, TableId(row[0], row[1]), TableId(row[2], row[3])),
            ready=row[4],
            snapshot=Position(row[5]),
            schema=schema_from_json(row[6]),
            **_more_from_json(row[6]),
        )
        for row in cursor.fetchall()
    ]


def write_table(cursor: psycopg2.extensions.cursor, pipeline: str, state: TableState) -> None:
    """Store the state of a target table in the current transaction."""
    sync = state.sync
    cursor.execute(
        """INSERT INTO _rosetta.table_state (pipeline, target_schema, target_table, source_schema, source_table, ready,
                                             snapshot_lsn, source_definition)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
           ON CONFLICT (pipeline, target_schema, target_table) DO UPDATE SET
               source_schema = EXCLUDED.source_schema, source_table = EXCLUDED.source_table, ready = EXCLUDED.ready,
               snapshot_lsn = EXCLUDED.snapshot_lsn, source_definition = EXCLUDED.source_definition""",
        (
            pipeline,
            sync.target.schema,
            sync.target.name,
            sync.source.schema,
            sync.source.name,
            state.ready,
            state.snapshot.lsn,
            _definition(state),
        ),
    )


def mark_ready(cursor: psycopg2.extensions.cursor, pipeline: str, target: TableId) -> None:
    """Mark a target table as completely loaded, in the current transaction."""
    cursor.execute(
        "UPDATE _rosetta.table_state SET ready = true WHERE pipeline = %s AND target_schema = %s AND target_table = %s",
        (pipeline, target.schema, target.name),
    )


def read_chunks(cursor: psycopg2.extensions.cursor, pipeline: str, target: TableId) -> list[LoadChunk]:
    """Return the plan of a target table's load; empty when there is none."""
    cursor.execute(
        "SELECT chunk, relation_schema, relation_name, filenode, from_page, to_page, row_count "
        "FROM _rosetta.load_chunk "
        "WHERE pipeline = %s AND target_schema = %s AND target_table = %s ORDER BY chunk",
        (pipeline, target.schema, target.name),
    )
    return [LoadChunk(row[0], TableId(row[1], row[2]), *row[3:]) for row in cursor.fetchall()]


def write_chunks(
    cursor: psycopg2.extensions.cursor, pipeline: str, target: TableId, chunks: Sequence[LoadChunk]
) -> None:
    """Replace the plan of a target table's load."""
    forget_chunks(cursor, pipeline, target)
    for chunk in chunks:
        cursor.execute(
            "INSERT INTO _rosetta.load_chunk VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, NULL)",
            (
                pipeline,
                target.schema,
                target.name,
                chunk.number,
                chunk.relation.schema,
                chunk.relation.name,
                chunk.filenode,
                chunk.from_page,
                chunk.to_page,
            ),
        )


def finish_chunk(
    cursor: psycopg2.extensions.cursor, pipeline: str, epoch: int, target: TableId, chunk: LoadChunk, rows: int
) -> None:
    """Record, in the transaction that copies it, that a chunk is in its target table.

    Raises:
        RosettaError: FENCED when another writer has taken a newer epoch.
    """
    # Shared: several chunks are copied at once, while a new writer's epoch must wait for them or be seen by them.
    cursor.execute("SELECT epoch FROM _rosetta.stream_position WHERE pipeline = %s FOR SHARE", (pipeline,))
    row = cursor.fetchone()
    if row is None or row[0] != epoch:
        raise RosettaError(ErrorKind.FENCED, "another runner of this pipeline writes to this destination now")
    cursor.execute(
        "UPDATE _rosetta.load_chunk SET row_count = %s "
        "WHERE pipeline = %s AND target_schema = %s AND target_table = %s AND chunk = %s",
        (rows, pipeline, target.schema, target.name, chunk.number),
    )


def forget_chunks(cursor: psycopg2.extensions.cursor, pipeline: str, target: TableId) -> None:
    """Remove the plan of a target table's load."""
    cursor.execute(
        "DELETE FROM _rosetta.load_chunk WHERE pipeline = %s AND target_schema = %s AND target_table = %s",
        (pipeline, target.schema, target.name),
    )


def reset_pipeline(cursor: psycopg2.extensions.cursor, pipeline: str) -> None:
    """Forget position and loads of a pipeline, in the current transaction; its targets stay known as its own."""
    cursor.execute("UPDATE _rosetta.stream_position SET end_lsn = NULL WHERE pipeline = %s", (pipeline,))
    cursor.execute("UPDATE _rosetta.table_state SET ready = false WHERE pipeline = %s", (pipeline,))
    cursor.execute("DELETE FROM _rosetta.load_chunk WHERE pipeline = %s", (pipeline,))


def forget_pipeline(connection: psycopg2.extensions.connection, pipeline: str) -> None:
    """Remove everything kept for a pipeline. Commits."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('_rosetta.stream_position') IS NOT NULL")
        row = cursor.fetchone()
        if row is not None and row[0]:
            for table in ("load_chunk", "table_state", "stream_position"):
                cursor.execute(f"DELETE FROM _rosetta.{table} WHERE pipeline = %s", (pipeline,))
            cursor.execute("SELECT to_regclass('_rosetta.waiting_key') IS NOT NULL")
            row = cursor.fetchone()
            if row is not None and row[0]:
                cursor.execute("DELETE FROM _rosetta.waiting_key WHERE pipeline = %s", (pipeline,))
            membership.forget_pipeline(cursor, pipeline)


def _definition(state: TableState) -> str:
    content = dataclasses.asdict(state.schema)
    if state.shape:
        content["shape"] = state.shape
        content["source_schema"] = dataclasses.asdict(state.captured_schema)
    if state.joining:
        content["joining"] = True
    return json.dumps(content)


def _more_from_json(text: str) -> dict[str, Any]:
    value = json.loads(text)
    found: dict[str, Any] = {"joining": value.get("joining", False)}
    if "shape" in value:
        found |= {"shape": value["shape"], "source_schema": schema_from_json(json.dumps(value["source_schema"]))}
    return found


def schema_to_json(schema: TableSchema) -> str:
    """Return a table schema as JSON."""
    return json.dumps(dataclasses.asdict(schema))


def schema_from_json(text: str) -> TableSchema:
    """Return the table schema of its JSON."""
    value = json.loads(text)
    return TableSchema(
        table=TableId(**value["table"]),
        columns=tuple(Column(**column) for column in value["columns"]),
        key=tuple(value["key"]),
        primary_key=tuple(value["primary_key"]),
        replica_identity=ReplicaIdentity(value["replica_identity"]),
        partitioned=value["partitioned"],
        oid=value.get("oid", 0),
        filenode=value.get("filenode", 0),
    )
