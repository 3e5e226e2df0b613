"""Changes into Snowflake: events into landing tables through channels, exactly once by their offset tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import psycopg2.extensions
import pyarrow as pa
import structlog

from cdc_runner.capture.publication import SnapshotSlot
from cdc_runner.destinations.base import Applied, Computed, ReloadNeeded, TableLoad, TableState
from cdc_runner.destinations.chunks import plan_chunks
from cdc_runner.destinations.letters import LetterSink, Refusal, RowChange
from cdc_runner.destinations.snowflake.channel import RowsRejected
from cdc_runner.destinations.snowflake.divert import MISFIT
from cdc_runner.destinations.snowflake.load import SnowflakeLoad
from cdc_runner.destinations.snowflake.memory import SnowflakeMemory
from cdc_runner.destinations.snowflake.refusals import REJECTED
from cdc_runner.destinations.snowflake.replay import REPLAY_ORDINAL, refused_keys, replay_events
from cdc_runner.destinations.snowflake.rows import Shape
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.events import event_plan
from cdc_runner.shaping.evolution import ChangeKind, SchemaChange, diff
from cdc_runner.shaping.moves import without_moves
from cdc_runner.shaping.net import NetChange
from cdc_runner.spec import PostgresAddress, ResolvedSync

log = structlog.get_logger()

POSITION_SECONDS = 1.0
"""Least time between two rows that say how far the stream is."""

MAX_PENDING_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Taking:
    """Where refused rows of a batch go (None: nowhere), and the batch's position and commit time."""

    sink: LetterSink | None
    at: tuple[Position, float]


class SnowflakeDestination(SnowflakeMemory):
    """See `cdc_runner.destinations.base.Destination`.

    `apply` is not one transaction. Each table has a channel, whose offset token says which of its events are durable;
    an event is sent above that token only. The position of the stream is the token of one more channel, written after
    everything before it is durable, so it never says too much.
    """

    takes_events = True
    makes = frozenset({"table_destination", "table_landing", "stream", "task"})

    # -- initial load ------------------------------------------------------------------------------------------------

    def plan_load(
        self,
        source: psycopg2.extensions.connection,
        wanted: Sequence[tuple[ResolvedSync, TableSchema]],
        computed: Mapping[TableId, Computed],
    ) -> list[TableLoad]:
        """Make what belongs to the targets, remove what an interrupted load left, and return what has to be loaded."""
        session = self._open_session()
        loads: list[TableLoad] = []
        tasks = session.store.tasks()
        for sync, source_schema in wanted:
            known, fingerprint = self._states.get(sync.target), sync.shape.fingerprint
            if known is not None and known.ready and known.shape == fingerprint:
                session.objects.keep_task(sync, session.objects.shape(known.schema, sync), tasks.get(sync.target))
                continue
            plan = event_plan(sync, source_schema)
            schema = source_schema if plan is None else plan.target
            alike = known is not None and known.shape == fingerprint
            if known is not None and not alike:
                # Nothing is merged while the rows of the new shape come, and no value of the old one is left behind.
                self.load_again(sync.target)
                session.objects.empty_landing(sync)
            session.objects.make(
                sync,
                session.objects.shape(schema, sync),
                known.schema if known is not None and alike else None,
                ours=known is not None,
            )
            if known is not None:
                SnowflakeLoad.remove_left_rows(session, known)
                self.refusals.forget(sync.target)
            chunks = plan_chunks(source, source_schema, self._settings.load_chunk_bytes)
            origin = None if plan is None else source_schema
            table = TableState(sync, False, Position(0), schema, source_schema=origin, shape=fingerprint)
            loads.append(TableLoad(table, chunks, resumed=False, plan=plan))
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
        sink = self.load_sink
        keep = None if sink is None else lambda aside, at: self.refusals.keep_loaded(aside, sink, at)
        SnowflakeLoad(
            session, source, self._pipeline, self._settings, snapshot, self._patience, stopping, progress, keep
        ).run(loads)

    # -- apply -------------------------------------------------------------------------------------------------------

    def apply(
        self,
        segments: Iterable[Sequence[tuple[ResolvedSync, NetChange]]],
        through: Position,
        commit_time: float = 0.0,
        *,
        careful: bool = False,
        sink: LetterSink | None = None,
    ) -> Applied:
        """Send the events that are not durable yet, wait until they are, and note the position.

        Args:
            segments: events, in order.
            through: position of the last transaction among them.
            commit_time: its commit time at the source, seconds since the epoch.
            careful: of no meaning here.
            sink: takes the rows that are refused, and those that wait behind them; without it one ends the batch.
        """
        known = self.position()
        if known is not None and through <= known:
            return Applied({}, known)
        taking = Taking(sink, (through, commit_time))
        events: dict[ResolvedSync, int] = {}
        touched: dict[TableId, ResolvedSync] = {}
        for segment in segments:
            for sync, change in segment:
                self._follow_schema(sync, change, taking)
                self._send(sync, change, taking)
                touched[sync.target] = sync
                events[sync] = events.get(sync, 0) + change.events
                if sum(self._channels[one].pending_bytes for one in touched) > MAX_PENDING_BYTES:
                    self._settle(touched, taking)
        self._settle(touched, taking)
        self._applied_through = through
        self._note_position(through, commit_time)
        return Applied(events, self.position() or Position(0))

    def _send(self, sync: ResolvedSync, change: NetChange, taking: Taking) -> None:
        if not self._states[sync.target].ready:
            raise ReloadNeeded(sync.target, "the service rejected rows of it while nobody looked")
        channel = self._table_channel(sync)
        shape = self._shape(sync, change.version.schema)
        rows = without_moves(change.rows, change.version.schema, self._fetch)
        rows = self.refusals.take_out(sync, shape, rows, self._writer, channel.committed, taking.sink, taking.at)
        for request in self._writer.requests(shape, rows, channel.committed):
            channel.send(request)

    def _settle(self, touched: Mapping[TableId, ResolvedSync], taking: Taking) -> None:
        for target, sync in touched.items():
            while True:
                try:
                    self._channels[target].settle()
                    break
                except RowsRejected as error:
                    self._take_rejected(sync, error, taking)

    def _take_rejected(self, sync: ResolvedSync, error: RowsRejected, taking: Taking) -> None:
        channel, shape = self._channels[sync.target], self._shapes[sync.target]
        if self.refusals.take_rejected(sync, shape, channel, error, taking.sink, taking.at):
            return
        # The token is past the rows that were dropped, so only a new load brings them.
        self.load_again(sync.target)
        self.refusals.account(channel)
        raise RosettaError(
            ErrorKind.DESTINATION_ROW_REJECTED,
            f"Snowflake dropped {error.missing} rows of table {sync.source} up to {error.through}: "
            "the table is loaded again at the next start; Snowflake's reasons are in its view "
            "SNOWPIPE_STREAMING_CHANNEL_HISTORY and in the landing table's error table",
            {"table": str(sync.source), "rows": error.missing},
        ) from None

    # -- dead letters ------------------------------------------------------------------------------------------------

    def replay_position(self, target: TableId) -> Position | None:
        """Return a position for what is brought back: above all that was sent for a table, below all that is to come.

        None while that cannot be told: some of a batch may have been sent before a crash, and the rest is to come.
        """
        said = self._channels[target].committed if target in self._channels else None
        held = Position.parse(said) if said else Position(0)
        through = self.position() if self._applied_through is None else self._applied_through
        if through is None or held.lsn > through.lsn:
            return None
        return max(Position(through.lsn, REPLAY_ORDINAL), Position(held.lsn, held.ordinal + 1))

    def bring_back(
        self, sync: ResolvedSync, changes: Sequence[tuple[RowChange, Sequence[str]]], first: Position
    ) -> dict[str, Refusal]:
        """Send changes of waiting keys as events at new positions; return those that are refused again, by key.

        Args:
            sync: source and target.
            changes: net change of each key, and the entries that it stands for.
            first: position of the first event.
        """
        schema = self._states[sync.target].schema
        shape, channel = self._shape(sync, schema), self._table_channel(sync)
        events, last = replay_events(schema, [change for change, _ in changes], first, time.time())
        misfits = self._writer.misfits(shape, events, None)
        refused = refused_keys(changes, last, misfits)
        kept = [place for place, key in enumerate(events.column("key").to_pylist()) if key not in refused]
        for change, entries in changes:
            if change.key_hash not in refused:
                self.refusals.store.note_replay(entries, last[change.key_hash])
        for request in self._writer.requests(shape, events.take(pa.array(kept, pa.int64())), channel.committed):
            channel.send(request)
        try:
            channel.settle()
        except RowsRejected as error:
            refused |= self._refused_again(sync, error, events)
            for change, entries in changes:
                if change.key_hash in refused:
                    self.refusals.store.note_replay(entries, None)
        return refused

    def rewrite(self, changes: Sequence[tuple[ResolvedSync, NetChange]]) -> None:
        """Send events of rows that are true at the present position; they are durable at the end.

        Keys that wait are left alone: what waits for them is older than these rows.

        Args:
            changes: events at positions between what was sent and what is to come.

        Raises:
            RosettaError: DESTINATION_ROW_REJECTED for rows that Snowflake does not take, and destination kinds.
        """
        for sync, change in changes:
            shape, channel = self._shape(sync, change.version.schema), self._table_channel(sync)
            rows = change.rows
            misfits = self._writer.misfits(shape, rows, None)
            if misfits:
                raise _not_taken(sync, len(misfits), misfits[min(misfits)])
            if sync.target in self.diversion.tables:
                rows = self.diversion.split(sync, shape.schema, rows, {}).rows
            for request in self._writer.requests(shape, rows, channel.committed):
                channel.send(request)
            try:
                channel.settle()
            except RowsRejected as error:
                self.refusals.account(channel)
                raise _not_taken(sync, error.missing, REJECTED) from None

    def _refused_again(self, sync: ResolvedSync, error: RowsRejected, events: pa.Table) -> dict[str, Refusal]:
        missing = self.refusals.rejected_positions(sync, error)
        if missing is None:
            self.load_again(sync.target)
        self.refusals.account(self._channels[sync.target])
        if missing is None:
            raise ReloadNeeded(sync.target, "the service rejected rows that were brought back")
        stamps = zip(*(events.column(name).to_pylist() for name in ("lsn", "seq", "key")), strict=True)
        keys = {key for lsn, seq, key in stamps if str(Position(lsn, seq)) in missing}
        return {key: Refusal(MISFIT, REJECTED) for key in keys}

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
            shape = self._open_session().objects.shape(schema, sync)
            if self._settings.schema_policy == "freeze":
                held = self._states[sync.target].schema.column_names
                kept = {name: stored for name, stored in shape.columns.items() if name in held}
                shape = replace(shape, columns=kept)
            self._shapes[sync.target] = shape
        return shape

    def _follow_schema(self, sync: ResolvedSync, change: NetChange, taking: Taking) -> None:
        schema, origin = change.version.schema, None if change.origin is None else change.origin.schema
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
            self._settle({sync.target: sync}, taking)
            drop = self._settings.drop_columns
            self._open_session().objects.evolve(sync, known, schema, changes, drop_columns=drop)
        self.remember_all([replace(known, schema=schema, source_schema=origin)])
        self._tell(sync, known.schema, schema, changes)

    def _tell(self, sync: ResolvedSync, old: TableSchema, new: TableSchema, changes: Sequence[SchemaChange]) -> None:
        if changes and self._on_schema_change is not None:
            self._on_schema_change(sync, old, new, changes)


def _not_taken(sync: ResolvedSync, rows: int, why: str) -> RosettaError:
    return RosettaError(
        ErrorKind.DESTINATION_ROW_REJECTED, f"table {sync.target}: {rows} rows cannot be written: {why}"
    )
