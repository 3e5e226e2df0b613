"""Changes into Snowflake: events into landing tables through channels, exactly once by their offset tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import psycopg2.extensions
import structlog

from cdc_runner.capture.publication import SnapshotSlot
from cdc_runner.destinations.base import Applied, RowFetcher, SchemaListener, TableLoad, TableState
from cdc_runner.destinations.chunks import plan_chunks
from cdc_runner.destinations.snowflake import state
from cdc_runner.destinations.snowflake.channel import Channel, Patience, RowsRejected
from cdc_runner.destinations.snowflake.load import SnowflakeLoad
from cdc_runner.destinations.snowflake.moves import without_moves
from cdc_runner.destinations.snowflake.rows import RowWriter, Shape
from cdc_runner.destinations.snowflake.session import Session
from cdc_runner.destinations.snowflake.streaming import Pipe
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.evolution import ChangeKind, SchemaChange, diff
from cdc_runner.shaping.net import NetChange
from cdc_runner.spec import DestinationSpec, PipelineSettings, PostgresAddress, ResolvedSync

log = structlog.get_logger()

POSITION_SECONDS = 1.0
"""Least time between two rows that say how far the stream is."""

MAX_PENDING_BYTES = 64 * 1024 * 1024


class SnowflakeDestination:
    """See `cdc_runner.destinations.base.Destination`.

    `apply` is not one transaction. Each table has a channel, whose offset token says which of its events are durable;
    an event is sent above that token only. The position of the stream is the token of one more channel, written after
    everything before it is durable, so it never says too much.
    """

    takes_events = True
    makes = frozenset({"table_destination", "table_landing", "stream", "task"})

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
        patience: Patience | None = None,
    ) -> None:
        """Args:
        spec: where to write.
        pipeline: the pipeline's name, under which positions are kept.
        settings: bounds and policies.
        directory: not used; rows stay in memory until they are durable.
        fetch: reads rows from the source whose key changed while values stayed out of the stream.
        source: not used; no type of the source has to be made at Snowflake.
        on_schema_change: told of each change of a source table, after the target follows it.
        patience: how long channels wait.
        """
        self.name = spec.name
        self._address = spec.snowflake
        self._pipeline = pipeline
        self._settings = settings
        self._fetch = fetch
        self._on_schema_change = on_schema_change
        self._patience = patience or Patience()
        self._session: Session | None = None
        self._states: dict[TableId, TableState] = {}
        self._channels: dict[TableId, Channel] = {}
        self._shapes: dict[TableId, Shape] = {}
        self._stream: Channel | None = None
        self._started: Position | None = None
        self._position_at = 0.0
        self._writer = RowWriter(self._address.compression)

    # -- session -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the pipeline over and open a channel for each loaded table, which cuts earlier writers off."""
        self.close()
        session = Session(self._address, self._pipeline, self.name)
        self._session = session
        try:
            session.objects.create_schemas()
            session.store.create()
            self._started = session.store.take_over()
            self._stream = self._channel(session.naming.state_pipe(state.POSITION), session.naming.channel("POSITION"))
            self._stream.open()
            self.reload_states()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up connections; rows that are not durable are sent again after the next `open`."""
        if self._session is not None:
            self._session.close()
        self._session = None
        self._stream = None
        self._channels.clear()
        self._shapes.clear()

    def _open_session(self) -> Session:
        if self._session is None:
            raise RosettaError(ErrorKind.DESTINATION_UNAVAILABLE, f"destination {self.name} is not connected")
        return self._session

    def _channel(self, pipe: Pipe, name: str) -> Channel:
        session = self._open_session()
        return Channel(session.streaming, pipe, name, fence=session.store.check_holder, patience=self._patience)

    def _table_channel(self, sync: ResolvedSync) -> Channel:
        channel = self._channels.get(sync.target)
        if channel is None:
            names = self._open_session().naming.table(sync.target)
            channel = self._channel(names.pipe, names.channel)
            channel.open()
            self._channels[sync.target] = channel
        return channel

    # -- what is kept ------------------------------------------------------------------------------------------------

    def position(self) -> Position | None:
        """Return the higher one of where the stream was begun and what its own channel says."""
        self._open_session()
        assert self._stream is not None, "the destination is open"
        said = self._stream.committed
        found = [one for one in (self._started, Position.parse(said) if said else None) if one is not None]
        return max(found) if found and self._started is not None else None

    def start_at(self, position: Position) -> None:
        """Store the position at which a new stream begins."""
        self._open_session().store.start_at(position)
        self._started = position

    def table_states(self) -> list[TableState]:
        """Return what is remembered of each target table."""
        return list(self._states.values())

    def remember_all(self, tables: Sequence[TableState]) -> None:
        """Store states of tables, one by one."""
        session = self._open_session()
        for table in tables:
            session.store.write(table, session.naming.table(table.sync.target).target)
            self._states[table.sync.target] = table
            self._shapes.pop(table.sync.target, None)

    def reload_states(self) -> None:
        """Read the tables' states again, and open the channels of those that are loaded."""
        self._states = {one.sync.target: one for one in self._open_session().store.tables()}
        self._shapes.clear()
        for one in self._states.values():
            if one.ready:
                self._table_channel(one.sync)

    def load_again(self, target: TableId) -> None:
        """Note that a target table has to be loaded anew before the stream goes on."""
        session = self._open_session()
        session.store.mark_ready(session.naming.table(target).target, False)
        self._states[target] = replace(self._states[target], ready=False)

    def reset(self) -> None:
        """Forget the position and what went through the channels, and have every table loaded anew.

        Landed rows are removed: the load that follows replaces what they would have made of the targets.
        """
        session = self._open_session()
        assert self._stream is not None, "the destination is open"
        session.store.start_at(None)
        session.store.forget_merges()
        self._stream.drop()
        for one in self._states.values():
            names = session.naming.table(one.sync.target)
            self._channel(names.pipe, names.channel).drop()
            session.sql.run(f"DELETE FROM {names.landing.quoted}", "empty a landing table")
        self.open()

    # -- initial load ------------------------------------------------------------------------------------------------

    def plan_load(
        self, source: psycopg2.extensions.connection, wanted: Sequence[tuple[ResolvedSync, TableSchema]]
    ) -> list[TableLoad]:
        """Make what belongs to the targets, remove what an interrupted load left, and return what has to be loaded."""
        session = self._open_session()
        loads: list[TableLoad] = []
        for sync, schema in wanted:
            known = self._states.get(sync.target)
            if known is not None and known.ready:
                continue
            session.objects.make(sync, session.objects.shape(schema), None if known is None else known.schema)
            if known is not None:
                SnowflakeLoad.remove_left_rows(session, known)
            chunks = plan_chunks(source, schema, self._settings.load_chunk_bytes)
            table = TableState(sync, ready=False, snapshot=Position(0), schema=schema)
            loads.append(TableLoad(table, chunks, resumed=False))
        return loads

    def load(
        self,
        source: PostgresAddress,
        loads: Sequence[TableLoad],
        snapshot: SnapshotSlot,
        *,
        stopping: threading.Event,
        progress: Callable[[ResolvedSync, int], None],
    ) -> None:
        """Stream the rows into the landing tables in parallel, a channel for each worker and table."""
        session = self._open_session()
        SnowflakeLoad(
            session, source, self._pipeline, self._settings, snapshot, self._patience, stopping, progress
        ).run(loads)

    # -- apply -------------------------------------------------------------------------------------------------------

    def apply(
        self,
        segments: Iterable[Sequence[tuple[ResolvedSync, NetChange]]],
        through: Position,
        commit_time: float = 0.0,
        *,
        careful: bool = False,
    ) -> Applied:
        """Send the events that are not durable yet, wait until they are, and note the position.

        Args:
            segments: events, in order.
            through: position of the last transaction among them.
            commit_time: its commit time at the source, seconds since the epoch.
            careful: of no meaning here.
        """
        known = self.position()
        if known is not None and through <= known:
            return Applied({}, known)
        events: dict[ResolvedSync, int] = {}
        touched: dict[TableId, ResolvedSync] = {}
        for segment in segments:
            for sync, change in segment:
                self._follow_schema(sync, change.version.schema)
                self._send(sync, change)
                touched[sync.target] = sync
                events[sync] = events.get(sync, 0) + change.events
                if sum(self._channels[one].pending_bytes for one in touched) > MAX_PENDING_BYTES:
                    self._settle(touched)
        self._settle(touched)
        self._note_position(through, commit_time)
        return Applied(events, self.position() or Position(0))

    def _send(self, sync: ResolvedSync, change: NetChange) -> None:
        channel = self._table_channel(sync)
        shape = self._shape(sync, change.version.schema)
        rows = without_moves(change.rows, change.version.schema, self._fetch)
        for request in self._writer.requests(shape, rows, channel.committed):
            channel.send(request)

    def _settle(self, touched: dict[TableId, ResolvedSync]) -> None:
        for target, sync in touched.items():
            try:
                self._channels[target].settle()
            except RowsRejected as error:
                # The token is past the rows that were dropped, so only a new load brings them.
                self.load_again(target)
                raise RosettaError(
                    ErrorKind.DESTINATION_ROW_REJECTED,
                    f"Snowflake dropped {error.missing} rows of table {sync.source} up to {error.through}: "
                    "the table is loaded again at the next start; Snowflake's reasons are in its view "
                    "SNOWPIPE_STREAMING_CHANNEL_HISTORY and in the landing table's error table",
                    {"table": str(sync.source), "rows": error.missing},
                ) from None

    def _note_position(self, through: Position, commit_time: float) -> None:
        """Write the position into its own channel; what was written before may be durable by now."""
        stream = self._stream
        assert stream is not None, "the destination is open"
        now = time.monotonic()
        if now - self._position_at >= POSITION_SECONDS:
            self._position_at = now
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(commit_time)) if commit_time else None
            values = [("PIPELINE", self._pipeline), ("POSITION", str(through)), ("COMMITTED_AT", at)]
            stream.send(self._writer.plain(values, str(through)))
        stream.glance()

    # -- schema changes ----------------------------------------------------------------------------------------------

    def catch_up_schema(self, present: Callable[[TableId], TableSchema | None]) -> bool:
        """Landing tables take any text, so nothing that the stream does not tell of refuses a batch."""
        return False

    def _shape(self, sync: ResolvedSync, schema: TableSchema) -> Shape:
        shape = self._shapes.get(sync.target)
        if shape is None or shape.schema != schema:
            shape = self._open_session().objects.shape(schema)
            if self._settings.schema_policy == "freeze":
                held = self._states[sync.target].schema.column_names
                shape = Shape(schema, {name: stored for name, stored in shape.columns.items() if name in held})
            self._shapes[sync.target] = shape
        return shape

    def _follow_schema(self, sync: ResolvedSync, schema: TableSchema) -> None:
        known = self._states.get(sync.target)
        if known is None:
            raise RosettaError(ErrorKind.DESTINATION_SCHEMA, f"target {sync.target} was never prepared")
        shape = self._shapes.get(sync.target)
        if known.schema == schema or (shape is not None and shape.schema == schema):
            return
        changes = diff(known.schema, schema)
        policy = self._settings.schema_policy
        if changes and policy == "pause":
            texts = "; ".join(change.text for change in changes)
            raise RosettaError(ErrorKind.SCHEMA_CHANGE_HELD, f"table {sync.source} changed: {texts}")
        if policy == "freeze":
            self._tell(sync, known.schema, schema, changes)
            return
        if any(change.kind is not ChangeKind.NULLABILITY for change in changes):
            self._table_channel(sync)
            self._settle({sync.target: sync})
            drop = self._settings.drop_columns
            self._open_session().objects.evolve(known, schema, changes, drop_columns=drop)
        self.remember_all([replace(known, schema=schema)])
        self._tell(sync, known.schema, schema, changes)

    def _tell(self, sync: ResolvedSync, old: TableSchema, new: TableSchema, changes: Sequence[SchemaChange]) -> None:
        if changes and self._on_schema_change is not None:
            self._on_schema_change(sync, old, new, changes)
