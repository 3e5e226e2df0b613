"""What Rosetta keeps at Snowflake: epoch and start of each pipeline, and the state of each target table.

The position of the stream is not here: it is the offset token of a channel of its own (`ROSETTA_POSITION`), which costs
no warehouse. These tables are read at a start and written when a table is loaded, changed or merged.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any

from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.snowflake.naming import Naming, ObjectName
from cdc_runner.destinations.snowflake.sql import SqlSession, literal
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema, quote_identifier
from cdc_runner.spec import ResolvedSync

PIPELINE = "PIPELINE"
TABLE = "TABLE"
POSITION = "POSITION"

_LATER = {"HOLD": "VARCHAR", "HELD_UNTIL": "NUMBER(18,0)", "TASK": "VARCHAR"}
"""Columns of the table states that the first version did not have."""

_NOW = "DATE_PART(EPOCH_SECOND, CURRENT_TIMESTAMP())"


class StateStore:
    """State of one pipeline in one destination. `take_over` fences those who took over before."""

    def __init__(self, sql: SqlSession, naming: Naming, writer: str) -> None:
        """Args:
        sql: runs statements.
        naming: names of the state tables.
        writer: identifies pipeline and destination.
        """
        self._sql = sql
        self._pipeline = naming.state(PIPELINE)
        self.table = naming.state(TABLE)
        self._position = naming.state(POSITION)
        self._writer = writer
        self._holder = uuid.uuid4().hex

    # -- pipelines ---------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the state tables unless they are there."""
        definitions = {
            self._pipeline: "PIPELINE VARCHAR, HOLDER VARCHAR, POSITION VARCHAR",
            self.table: "PIPELINE VARCHAR, TARGET_SCHEMA VARCHAR, TARGET_TABLE VARCHAR, SOURCE_SCHEMA VARCHAR, "
            "SOURCE_TABLE VARCHAR, SYNC_SCHEMA VARCHAR, SYNC_TABLE VARCHAR, READY BOOLEAN, SNAPSHOT VARCHAR, "
            "DEFINITION VARCHAR, MERGED VARCHAR, BOUND VARCHAR, LOW VARCHAR, "
            + ", ".join(f"{name} {type_}" for name, type_ in _LATER.items()),
            self._position: "PIPELINE VARCHAR, POSITION VARCHAR, COMMITTED_AT VARCHAR",
        }
        for table, columns in definitions.items():
            self._sql.run(f"CREATE TABLE IF NOT EXISTS {table.quoted} ({columns})", f"create {table.name}")
        self._add_later_columns()

    def _add_later_columns(self) -> None:
        found = self._sql.run(
            f"SELECT COLUMN_NAME FROM {quote_identifier(self.table.database)}.INFORMATION_SCHEMA.COLUMNS "
            f"WHERE TABLE_SCHEMA = {literal(self.table.schema)} AND TABLE_NAME = {literal(self.table.name)}",
            "read the columns of the state table",
        )
        present = {row[0] for row in found.rows}
        for name, type_ in _LATER.items():
            if name not in present:
                self._sql.run(f"ALTER TABLE {self.table.quoted} ADD COLUMN {name} {type_}", "extend the state table")

    def take_over(self) -> Position | None:
        """Become the one who writes for the pipeline, and return where its stream was last begun."""
        table, writer = self._pipeline.quoted, literal(self._writer)
        self._sql.run(
            f"INSERT INTO {table} (PIPELINE) SELECT {writer} WHERE NOT EXISTS "
            f"(SELECT 1 FROM {table} WHERE PIPELINE = {writer})",
            "note the pipeline",
        )
        self._holder = uuid.uuid4().hex
        self._sql.run(
            f"UPDATE {table} SET HOLDER = {literal(self._holder)} WHERE PIPELINE = {writer}", "take the pipeline over"
        )
        found = self._sql.run(f"SELECT MAX(POSITION) FROM {table} WHERE PIPELINE = {writer}", "read the position").value
        return Position.parse(found) if found else None

    def check_holder(self) -> None:
        """Make sure that nobody took over since.

        Raises:
            RosettaError: FENCED.
        """
        holder = self._sql.run(
            f"SELECT HOLDER FROM {self._pipeline.quoted} WHERE PIPELINE = {literal(self._writer)}", "read the holder"
        ).value
        if holder != self._holder:
            raise RosettaError(ErrorKind.FENCED, "another runner of this pipeline writes to this destination now")

    def start_at(self, position: Position | None) -> None:
        """Store where a new stream begins; None for never."""
        self.check_holder()
        value = literal(None if position is None else str(position))
        where = f"PIPELINE = {literal(self._writer)}"
        self._sql.run(f"UPDATE {self._pipeline.quoted} SET POSITION = {value} WHERE {where}", "store the position")

    # -- tables ------------------------------------------------------------------------------------------------------

    def tables(self) -> list[TableState]:
        """Return the states of the pipeline's tables."""
        found = self._sql.run(
            "SELECT SOURCE_SCHEMA, SOURCE_TABLE, SYNC_SCHEMA, SYNC_TABLE, READY, SNAPSHOT, DEFINITION "
            f"FROM {self.table.quoted} WHERE PIPELINE = {literal(self._writer)} ORDER BY 3, 4",
            "read the table states",
        )
        return [
            TableState(
                sync=ResolvedSync(None, TableId(str(row[0]), str(row[1])), TableId(str(row[2]), str(row[3]))),
                ready=str(row[4]).lower() in ("true", "1"),
                snapshot=Position.parse(str(row[5])),
                **_definition(str(row[6])),
            )
            for row in found.rows
        ]

    def write(self, state: TableState, target: ObjectName) -> None:
        """Store a table's state; how far it was merged is kept."""
        self.check_holder()
        sync, where = state.sync, self.where(target)
        values = {
            "SOURCE_SCHEMA": literal(sync.source.schema),
            "SOURCE_TABLE": literal(sync.source.name),
            "SYNC_SCHEMA": literal(sync.target.schema),
            "SYNC_TABLE": literal(sync.target.name),
            "READY": "TRUE" if state.ready else "FALSE",
            "SNAPSHOT": literal(str(state.snapshot)),
            "DEFINITION": literal(_definition_text(state)),
        }
        table = self.table.quoted
        keys = (literal(self._writer), literal(target.schema), literal(target.name))
        self._sql.run(
            f"INSERT INTO {table} (PIPELINE, TARGET_SCHEMA, TARGET_TABLE, MERGED, BOUND, LOW) "
            f"SELECT {', '.join(keys)}, '', '', '' WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE {where})",
            "note a table",
        )
        settings = ", ".join(f"{name} = {value}" for name, value in values.items())
        self._sql.run(f"UPDATE {table} SET {settings} WHERE {where}", "store a table state")

    def mark_ready(self, target: ObjectName, ready: bool) -> None:
        """Store whether a table is loaded completely."""
        self.check_holder()
        word = "TRUE" if ready else "FALSE"
        self._sql.run(f"UPDATE {self.table.quoted} SET READY = {word} WHERE {self.where(target)}", "mark a table")

    def forget_merges(self) -> None:
        """Have every table loaded anew and merged from the start: positions may begin lower than before."""
        self.check_holder()
        self._sql.run(
            f"UPDATE {self.table.quoted} SET READY = FALSE, MERGED = '', BOUND = '', LOW = '' "
            f"WHERE PIPELINE = {literal(self._writer)}",
            "reset the table states",
        )

    def merged(self, target: ObjectName) -> str:
        """Return the position up to which a table was merged; empty before the first merge."""
        return (
            self._sql.run(
                f"SELECT MERGED FROM {self.table.quoted} WHERE {self.where(target)}", "read a merge position"
            ).value
            or ""
        )

    # -- holds -------------------------------------------------------------------------------------------------------

    def hold(self, token: str, seconds: int, *, limit_seconds: float) -> None:
        """Keep the tasks of the pipeline from merging for so long; a later hold takes the place of an earlier one.

        Args:
            token: tells this hold from others.
            seconds: how long it lasts unless it is prolonged.
            limit_seconds: a merge that is at work is waited for at most so long.
        """
        self._sql.run(
            f"UPDATE {self.table.quoted} SET HOLD = {literal(token)}, HELD_UNTIL = {_NOW} + {seconds} "
            f"WHERE PIPELINE = {literal(self._writer)} AND READY",
            "hold the merges",
            limit_seconds=limit_seconds,
        )

    def prolong(self, token: str, seconds: int) -> None:
        """Have a hold last for so long from now."""
        self._sql.run(
            f"UPDATE {self.table.quoted} SET HELD_UNTIL = {_NOW} + {seconds} "
            f"WHERE PIPELINE = {literal(self._writer)} AND HOLD = {literal(token)}",
            "hold the merges",
        )

    def release(self, token: str, *targets: ObjectName, others: bool = False) -> None:
        """End a hold, of some tables, of all others, or of all; one that another has taken the place of is left alone.

        Args:
            token: of the hold.
            targets: the tables; none for all.
            others: end it for all but these.
        """
        where = f"PIPELINE = {literal(self._writer)} AND HOLD = {literal(token)}"
        if targets:
            named = " OR ".join(f"({self.where(one)})" for one in targets)
            where += f" AND {'NOT ' if others else ''}({named})"
        self._sql.run(
            f"UPDATE {self.table.quoted} SET HOLD = NULL WHERE {where}",
            "let the merges go on",
        )

    # -- tasks -------------------------------------------------------------------------------------------------------

    def tasks(self) -> dict[TableId, str]:
        """Return the digest of each table's task, by the target's name in the configuration."""
        found = self._sql.run(
            f"SELECT SYNC_SCHEMA, SYNC_TABLE, TASK FROM {self.table.quoted} "
            f"WHERE PIPELINE = {literal(self._writer)} AND TASK IS NOT NULL",
            "read the tasks",
        )
        return {TableId(str(row[0]), str(row[1])): str(row[2]) for row in found.rows}

    def note_task(self, target: ObjectName, digest: str) -> None:
        """Store which task a table has."""
        self._sql.run(
            f"UPDATE {self.table.quoted} SET TASK = {literal(digest)} WHERE {self.where(target)}", "note a task"
        )

    def forget_table(self, target: ObjectName) -> None:
        """Remove what is kept of a table."""
        self.check_holder()
        self._sql.run(f"DELETE FROM {self.table.quoted} WHERE {self.where(target)}", "forget a table")

    def forget(self) -> None:
        """Remove everything that is kept for the pipeline."""
        for table in (self.table, self._pipeline):
            self._sql.run(f"DELETE FROM {table.quoted} WHERE PIPELINE = {literal(self._writer)}", "forget the pipeline")

    def where(self, target: ObjectName) -> str:
        """Return the condition for a table's row of the state table."""
        return (
            f"PIPELINE = {literal(self._writer)} AND TARGET_SCHEMA = {literal(target.schema)} "
            f"AND TARGET_TABLE = {literal(target.name)}"
        )


def _definition_text(state: TableState) -> str:
    origin = None if state.source_schema is None else json.loads(schema_to_json(state.source_schema))
    return json.dumps({**json.loads(schema_to_json(state.schema)), "source_schema": origin, "shape": state.shape})


def _definition(text: str) -> dict[str, Any]:
    value = json.loads(text)
    origin = value.get("source_schema")
    return {
        "schema": schema_from_json(text),
        "source_schema": None if origin is None else schema_from_json(json.dumps(origin)),
        "shape": value.get("shape", ""),
    }


def schema_to_json(schema: TableSchema) -> str:
    """Return a table schema as JSON."""
    return json.dumps(dataclasses.asdict(schema), separators=(",", ":"))


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
