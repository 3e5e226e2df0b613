"""Net changes into PostgreSQL: staged as text by COPY, merged on the server, in one transaction with the position."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import structlog

from cdc_runner.connections import classify, connect
from cdc_runner.destinations.base import Applied, RowFetcher, TableState
from cdc_runner.destinations.postgres import ddl, state, statements, types
from cdc_runner.destinations.postgres.encode import BinaryEncoder
from cdc_runner.destinations.postgres.order import foreign_key_order
from cdc_runner.destinations.postgres.statements import TargetShape
from cdc_runner.destinations.postgres.type_names import TypePlaces
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.evolution import ChangeKind, SchemaChange, diff
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import DestinationSpec, PipelineSettings, ResolvedSync

log = structlog.get_logger()

SchemaListener = Callable[[ResolvedSync, TableSchema, TableSchema, Sequence[SchemaChange]], None]


@dataclass(frozen=True, slots=True)
class _Target:
    """A target table in this session: its shape for one source schema, and the number of its staging tables."""

    schema: TableSchema
    shape: TargetShape
    number: int


class PostgresDestination:
    """See `cdc_runner.destinations.base.Destination`. `apply` is atomic with its position."""

    def __init__(
        self,
        spec: DestinationSpec,
        pipeline: str,
        settings: PipelineSettings,
        *,
        directory: Path,
        fetch: RowFetcher,
        source: Callable[[], psycopg2.extensions.connection],
        on_schema_change: SchemaListener | None = None,
    ) -> None:
        """Args:
        spec: where to write.
        pipeline: the pipeline's name, under which positions are kept.
        settings: bounds and policies.
        directory: for short-lived files.
        fetch: reads rows from the source that the target turns out not to have.
        source: a connection to the source's catalogs, for types that the target lacks.
        on_schema_change: told of each change of a source table, after it is committed.
        """
        self.name = spec.name
        self._spec = spec
        self._pipeline = pipeline
        self._settings = settings
        self._fetch = fetch
        self._source = source
        self.map_schema = TypePlaces(lambda schema: spec.schema or schema)
        self._on_schema_change = on_schema_change
        self._encoder = BinaryEncoder(directory)
        self._connection: psycopg2.extensions.connection | None = None
        self.epoch = 0
        self._states: dict[TableId, TableState] = {}
        self._targets: dict[TableId, _Target] = {}
        self._stagings: set[str] = set()
        self._filled: set[str] = set()
        self._numbers: dict[TableId, int] = {}
        self._order: list[TableId] | None = None

    # -- session -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, create the state tables, fence earlier writers and read what is known."""
        self.close()
        self._connection = self.connect()
        try:
            state.create(self._connection)
            self.epoch = state.take_epoch(self._connection, self._pipeline)
            with self._connection, self._connection.cursor() as cursor:
                self._states = {one.sync.target: one for one in state.read_tables(cursor, self._pipeline)}
            self._order = self._become_replica()
            with self._connection:
                self.map_schema.learn(self._connection)
        except psycopg2.Error as error:
            self.close()
            raise classify(error, "destination") from error

    def connect(self) -> psycopg2.extensions.connection:
        """Open a further session with the settings of an apply session."""
        return connect(
            self._spec.address,
            application_name=f"rosetta {self._pipeline}",
            side="destination",
            settings={
                "synchronous_commit": self._settings.synchronous_commit,
                "lock_timeout": "60s",
                "idle_in_transaction_session_timeout": "0",
                "statement_timeout": "0",
            },
        )

    @property
    def ordered(self) -> bool:
        """Whether foreign keys of the targets are checked, so that tables have an order."""
        return bool(self._order)

    def connect_writer(self) -> psycopg2.extensions.connection:
        """Open a further session that checks triggers and foreign keys just as the apply session does."""
        connection = self.connect()
        if self._order is None:
            with connection, connection.cursor() as cursor:
                cursor.execute("SET session_replication_role = replica")
        return connection

    def _become_replica(self) -> list[TableId] | None:
        """Turn off triggers and foreign key checks where the role may; else return targets with parents first."""
        assert self._connection is not None, "the destination is open"
        try:
            with self._connection, self._connection.cursor() as cursor:
                cursor.execute("SET session_replication_role = replica")
            return None
        except psycopg2.errors.InsufficientPrivilege:
            with self._connection, self._connection.cursor() as cursor:
                return foreign_key_order(cursor, list(self._states))

    def close(self) -> None:
        """Give up the session; whatever was not committed is gone."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._targets.clear()
        self._stagings.clear()

    def _session(self) -> psycopg2.extensions.connection:
        if self._connection is None:
            raise RosettaError(ErrorKind.DESTINATION_UNAVAILABLE, f"destination {self.name} is not connected")
        return self._connection

    # -- what is kept ------------------------------------------------------------------------------------------------

    def position(self) -> Position | None:
        """Return the stored position."""
        with self._session() as connection, connection.cursor() as cursor:
            return state.lock_position(cursor, self._pipeline, self.epoch)

    def start_at(self, position: Position) -> None:
        """Store the position at which a new stream begins."""
        with self._session() as connection, connection.cursor() as cursor:
            state.lock_position(cursor, self._pipeline, self.epoch)
            state.store_position(cursor, self._pipeline, position, 0.0)

    def table_states(self) -> list[TableState]:
        """Return what is remembered of each target table."""
        return list(self._states.values())

    def remember(self, cursor: psycopg2.extensions.cursor, table: TableState) -> None:
        """Store a table's state in the caller's transaction of this session."""
        state.write_table(cursor, self._pipeline, table)
        self._states[table.sync.target] = table
        self._targets.pop(table.sync.target, None)

    def remember_all(self, tables: Sequence[TableState]) -> None:
        """Store states of tables in one transaction."""
        with self._session() as connection, connection.cursor() as cursor:
            state.lock_position(cursor, self._pipeline, self.epoch)
            for table in tables:
                self.remember(cursor, table)

    def load_again(self, target: TableId) -> None:
        """Note that a target table has to be loaded anew before the stream goes on."""
        with self._session() as connection, connection.cursor() as cursor:
            state.lock_position(cursor, self._pipeline, self.epoch)
            state.forget_chunks(cursor, self._pipeline, target)
            self.remember(cursor, replace(self._states[target], ready=False))

    def reload_states(self) -> None:
        """Read the tables' states again, after other sessions changed them."""
        with self._session() as connection, connection.cursor() as cursor:
            self._states = {one.sync.target: one for one in state.read_tables(cursor, self._pipeline)}
        self._targets.clear()
        if self._order is not None:
            with self._session() as connection, connection.cursor() as cursor:
                self._order = foreign_key_order(cursor, list(self._states))

    # -- what a refused batch may need -------------------------------------------------------------------------------

    def refresh_enums(self) -> None:
        """Give the target's enums the labels that the source's have by now."""
        with self._session() as connection:
            schemas = [one.schema for one in self._states.values()]
            types.refresh_enums(self._source(), connection, schemas, self.map_schema)

    def widen(self, present: Callable[[TableId], TableSchema | None]) -> bool:
        """Bring types and nullability of the targets to what the source has by now; tell whether anything changed.

        The change stream does not tell of everything that an ALTER TABLE does, a dropped NOT NULL for one.

        Args:
            present: reads a source table's present schema.
        """
        changed = False
        with self._session() as connection, connection.cursor() as cursor:
            for known in list(self._states.values()):
                schema = present(known.sync.source)
                if schema is None or not known.ready:
                    continue
                kinds = (ChangeKind.CHANGE_TYPE, ChangeKind.NULLABILITY)
                changes = [change for change in diff(known.schema, schema) if change.kind in kinds]
                if changes:
                    self._alter(cursor, known.sync.target, changes, schema)
                    wider = {change.column.number: change.column for change in changes if change.column is not None}
                    columns = tuple(wider.get(column.number, column) for column in known.schema.columns)
                    self.remember(cursor, replace(known, schema=replace(known.schema, columns=columns)))
                    changed = True
        return changed

    def _alter(
        self,
        cursor: psycopg2.extensions.cursor,
        table: TableId,
        changes: Sequence[SchemaChange],
        schema: TableSchema,
    ) -> None:
        types.ensure_types(self._source(), cursor.connection, [schema], self.map_schema)
        drop = self._settings.drop_columns
        ddl.evolve(cursor.connection, table, changes, schema, self.map_schema, drop_columns=drop)

    # -- apply -------------------------------------------------------------------------------------------------------

    def apply(
        self,
        segments: Iterable[Sequence[tuple[ResolvedSync, NetChange]]],
        through: Position,
        commit_time: float = 0.0,
        *,
        careful: bool = False,
    ) -> Applied:
        """Apply segments and store the position in one transaction.

        Args:
            segments: net changes, in order.
            through: position of the last transaction among them.
            commit_time: its commit time at the source, seconds since the epoch.
            careful: delete rows before they are written again, so that unique values may change places.
        """
        connection = self._session()
        self._filled.clear()
        events: dict[ResolvedSync, int] = {}
        evolved: list[tuple[ResolvedSync, TableSchema, TableSchema, list[SchemaChange]]] = []
        try:
            with connection.cursor() as cursor:
                stored = state.lock_position(cursor, self._pipeline, self.epoch)
                if stored is not None and through <= stored:
                    connection.rollback()
                    return Applied({}, stored)
                for segment in segments:
                    self._segment(cursor, segment, events, evolved, careful)
                state.store_position(cursor, self._pipeline, through, commit_time)
            connection.commit()
        except BaseException as error:
            # Nothing is inferred from a transaction that failed: the session goes, the position is read again.
            self.close()
            if isinstance(error, psycopg2.Error):
                raise classify(error, "destination") from error
            raise
        if self._on_schema_change is not None:
            for change in evolved:
                self._on_schema_change(*change)
        return Applied(events, through)

    def _segment(
        self,
        cursor: psycopg2.extensions.cursor,
        segment: Sequence[tuple[ResolvedSync, NetChange]],
        events: dict[ResolvedSync, int],
        evolved: list[tuple[ResolvedSync, TableSchema, TableSchema, list[SchemaChange]]],
        careful: bool,
    ) -> None:
        for sync, change in segment:
            change_list = self._evolve(cursor, sync, change.version.schema)
            if change_list:
                evolved.append(change_list)
            events[sync] = events.get(sync, 0) + change.events
        if self._order is None or len({sync.target for sync, _ in segment}) < len(segment):
            for sync, change in segment:
                staging = self._stage(cursor, sync, change)
                self._take_away(cursor, sync, change, staging)
                self._put(cursor, sync, change, staging, careful)
            return
        # Foreign keys are checked: children lose rows first, parents gain rows first.
        rank = {table: place for place, table in enumerate(self._order)}
        ordered = sorted(segment, key=lambda one: rank.get(one[0].target, -1))
        staged = [(sync, change, self._stage(cursor, sync, change)) for sync, change in ordered]
        for sync, change, staging in reversed(staged):
            self._take_away(cursor, sync, change, staging)
        for sync, change, staging in staged:
            self._put(cursor, sync, change, staging, careful)

    def _target(self, sync: ResolvedSync, schema: TableSchema) -> _Target:
        target = self._targets.get(sync.target)
        if target is not None and target.schema == schema:
            return target
        number = self._numbers[sync.target] = self._numbers.get(sync.target, 0) + 1
        column_types = [types.target_type(column, self.map_schema) for column in schema.stream_columns]
        only = None
        if self._settings.schema_policy == "freeze":
            only = set(self._states[sync.target].schema.column_names)
        shape = TargetShape.of(sync.target, schema, column_types, only)
        target = _Target(schema, shape, len(self._numbers) * 1_000_000 + number)
        self._targets[sync.target] = target
        return target

    def _stage(self, cursor: psycopg2.extensions.cursor, sync: ResolvedSync, change: NetChange) -> str:
        """Copy the rows into the session's staging table for this target; return its name."""
        target = self._target(sync, change.version.schema)
        name = f"pg_temp.rosetta_{target.number}_{change.kind.value}"
        if change.rows.num_rows == 0:
            return name
        if name not in self._stagings:
            cursor.execute(statements.create_staging(change.kind, target.shape, name))
            self._stagings.add(name)
        elif name in self._filled:
            # It empties itself at commit only; an earlier segment of this transaction has used it.
            cursor.execute(f"TRUNCATE {name}")
        self._filled.add(name)
        columns = statements.staging_columns(change.kind, target.shape)
        with self._encoder.encoded(change.rows, columns) as file:
            cursor.copy_expert(f"COPY {name} FROM STDIN (FORMAT binary)", file, size=1 << 18)
        return name

    def _take_away(
        self, cursor: psycopg2.extensions.cursor, sync: ResolvedSync, change: NetChange, staging: str
    ) -> None:
        shape = self._target(sync, change.version.schema).shape
        if change.truncate:
            self._truncate(cursor, shape.table)
        if not change.deletes or change.rows.num_rows == 0:
            return
        if change.kind is NetKind.MERGE:
            cursor.execute(statements.delete_keys(shape, staging))
        elif change.kind is NetKind.MULTISET:
            cursor.execute(statements.delete_multiset(shape, staging))

    def _put(
        self,
        cursor: psycopg2.extensions.cursor,
        sync: ResolvedSync,
        change: NetChange,
        staging: str,
        careful: bool,
    ) -> None:
        if change.rows.num_rows == 0:
            return
        shape = self._target(sync, change.version.schema).shape
        if change.kind is NetKind.MOVE:
            cursor.execute(statements.move(shape, staging))
        elif change.kind is NetKind.MULTISET:
            cursor.execute(statements.insert_multiset(shape, staging))
        else:
            if change.partial:
                self._fetch_missing(cursor, shape, change.version.schema, staging)
            if careful:
                if change.partial:
                    cursor.execute(statements.complete_partial(shape, staging))
                cursor.execute(statements.delete_upserted(shape, staging))
            elif change.partial:
                cursor.execute(statements.update_partial(shape, staging))
            cursor.execute(statements.upsert(shape, staging, partial=change.partial))

    def _fetch_missing(
        self, cursor: psycopg2.extensions.cursor, shape: TargetShape, schema: TableSchema, staging: str
    ) -> None:
        """Complete rows that the target does not hold although the stream only says what changed of them.

        That is so when a row moved between chunks of an initial load that was interrupted. The source's present row is
        taken: later changes of it are still to come. A row that is gone by now is left out: its delete is to come.
        """
        cursor.execute(statements.missing_partial(shape, staging))
        keys = [tuple(row) for row in cursor.fetchall()]
        if not keys:
            return
        log.info("apply.rows_fetched", table=str(shape.table), rows=len(keys))
        found = self._fetch(schema, keys)
        where = " AND ".join(f"c{number} = %s" for number in shape.key)
        for key in keys:
            values = found.get(key)
            if values is None:
                cursor.execute(f"DELETE FROM {staging} WHERE {where}", key)
                continue
            changes = ", ".join(f"c{number} = %s" for number in range(len(values)))
            cursor.execute(f"UPDATE {staging} SET x = NULL, {changes} WHERE {where}", (*values, *key))

    def _truncate(self, cursor: psycopg2.extensions.cursor, table: TableId) -> None:
        """Empty a table; one that foreign keys point to cannot be truncated by itself."""
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM pg_constraint WHERE contype = 'f' AND confrelid = %s::regclass)",
            (table.quoted,),
        )
        row = cursor.fetchone()
        referenced = row is not None and row[0]
        cursor.execute(f"DELETE FROM {table.quoted}" if referenced else f"TRUNCATE {table.quoted}")

    def _evolve(
        self, cursor: psycopg2.extensions.cursor, sync: ResolvedSync, schema: TableSchema
    ) -> tuple[ResolvedSync, TableSchema, TableSchema, list[SchemaChange]] | None:
        """Bring the target to a new schema of its source table, in the current transaction."""
        target = self._targets.get(sync.target)
        if target is not None and target.schema == schema:
            return None
        known = self._states.get(sync.target)
        if known is None:
            raise RosettaError(ErrorKind.DESTINATION_SCHEMA, f"target {sync.target} was never prepared")
        if known.schema == schema:
            return None
        changes = diff(known.schema, schema)
        policy = self._settings.schema_policy
        if changes and policy == "pause":
            texts = "; ".join(change.text for change in changes)
            raise RosettaError(ErrorKind.SCHEMA_CHANGE_HELD, f"table {sync.source} changed: {texts}")
        if policy == "freeze":
            return (sync, known.schema, schema, changes) if changes else None
        if changes:
            self._alter(cursor, sync.target, changes, schema)
        self.remember(cursor, replace(known, schema=schema))
        return (sync, known.schema, schema, changes) if changes else None
