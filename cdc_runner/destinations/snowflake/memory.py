"""What a Snowflake destination has while it is open, and what it remembers: channels, positions, states of tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import psycopg2.extensions
import structlog

from cdc_runner.destinations.base import RowFetcher, SchemaListener, TableState
from cdc_runner.destinations.letters import LetterSink
from cdc_runner.destinations.snowflake import held, retire, state
from cdc_runner.destinations.snowflake.channel import Channel, Patience
from cdc_runner.destinations.snowflake.divert import EventDiversion
from cdc_runner.destinations.snowflake.refusals import Refusals
from cdc_runner.destinations.snowflake.rows import RowWriter, Shape
from cdc_runner.destinations.snowflake.session import Session
from cdc_runner.destinations.snowflake.streaming import Pipe
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId
from cdc_runner.spec import DestinationSpec, PipelineSettings, ResolvedSync

log = structlog.get_logger()


class SnowflakeMemory:
    """The session and memory of a Snowflake destination: see `cdc_runner.destinations.base.Destination`."""

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
        pipeline: the pipeline's identity, under which positions are kept.
        settings: bounds and policies.
        directory: not used; rows stay in memory until they are durable.
        fetch: reads rows from the source whose key changed while values stayed out of the stream.
        source: not used; no type of the source has to be made at Snowflake.
        on_schema_change: told of each change of a source table, after the target follows it.
        patience: how long channels wait.
        """
        self.name = spec.name
        self._identity = spec.identity
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
        self.diversion = EventDiversion()
        """What waits, as it was last read."""
        self._refusals: Refusals | None = None
        self._applied_through: Position | None = None
        self._position_at = 0.0
        self.load_sink: LetterSink | None = None
        """Takes the rows of a load that cannot be carried; without it such a row ends the load."""
        self._writer = RowWriter(self._address.compression)

    # -- session -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the pipeline over and open a channel for each loaded table, which cuts earlier writers off."""
        self.close()
        session = Session(self._address, self._pipeline, self._identity)
        self._session = session
        try:
            session.objects.create_schemas()
            session.store.create()
            self._started = session.store.take_over()
            self._stream = self._channel(session.naming.state_pipe(state.POSITION), session.naming.channel("POSITION"))
            self._stream.open()
            self._refusals = Refusals(session, self.diversion)
            self._refusals.open()
            self.reload_states()
            self._end_replays()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up connections; rows that are not durable are sent again after the next `open`."""
        if self._session is not None:
            self._session.close()
        self._session = None
        self._stream = None
        self._applied_through = None
        self._channels.clear()
        self._shapes.clear()

    @property
    def is_open(self) -> bool:
        """Whether there is a session; after an error that session must be opened again."""
        return self._session is not None

    @property
    def refusals(self) -> Refusals:
        """What waits; the destination is open."""
        assert self._refusals is not None, "the destination is open"
        return self._refusals

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

    def hold(self) -> str:
        """Keep the tasks from merging for a while, so that the targets can be compared; return the hold's name.

        Raises:
            RosettaError: a destination kind; also when a merge that is at work takes too long.
        """
        token = held.new_token()
        self._open_session().store.hold(token, held.HOLD_SECONDS, limit_seconds=held.WAIT_SECONDS)
        return token

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
        self.refusals.reload()
        self._shapes.clear()
        for one in list(self._states.values()):
            if not one.ready:
                continue
            channel = self._table_channel(one.sync)
            if self.refusals.unaccounted(channel):
                # Rows were rejected while nobody looked: only the source knows what they were.
                log.warning("snowflake.rejected_unseen", table=str(one.sync.target))
                self.load_again(one.sync.target)
                self.refusals.account(channel)

    def _end_replays(self) -> None:
        """Take the marks away of what was brought back by a session that died before it could say so."""
        done = []
        for one in self.diversion.marks:
            channel = self._channels.get(one.mark.target)
            if one.replay and channel is not None and channel.committed and channel.committed >= one.replay:
                done.append(one.mark.entry)
        if done:
            self.refusals.store.forget_entries(done)
            self.diversion.remove(done)

    def load_again(self, target: TableId) -> None:
        """Note that a target table has to be loaded anew before the stream goes on."""
        session = self._open_session()
        session.store.mark_ready(session.naming.table(target).target, False)
        self._states[target] = replace(self._states[target], ready=False)

    def let_go(self, wanted: Collection[TableId]) -> None:
        """Merge what has landed for targets that are not fed any more, and remove what was made beside them.

        One that cannot be merged keeps everything, and is tried again at the next start.
        """
        session = self._open_session()
        gone = [one for one in self._states.values() if one.sync.target not in wanted]
        tasks = session.store.tasks() if gone else {}
        for one in gone:
            target = one.sync.target
            if not one.ready and tasks.get(target) == retire.RETIRED:
                continue
            try:
                self._table_channel(one.sync).drop()
                dropped = retire.retire(session, one)
            except RosettaError as error:
                log.warning("snowflake.left_over", table=str(target), error=str(error))
                self._channels.pop(target, None)
                continue
            log.info("snowflake.let_go", table=str(target), dropped=dropped)
            self.refusals.forget(target)
            self._channels.pop(target, None)
            self._shapes.pop(target, None)
            self._states[target] = replace(one, ready=False)

    def reset(self) -> None:
        """Forget the position and what went through the channels, and have every table loaded anew.

        Landed rows are removed: the load that follows replaces what they would have made of the targets.
        """
        session = self._open_session()
        assert self._stream is not None, "the destination is open"
        session.store.start_at(None)
        session.store.forget_merges()
        session.waiting.forget()
        for target in list(self.diversion.tables):
            self.diversion.forget(target)
        self._stream.drop()
        for one in self._states.values():
            names = session.naming.table(one.sync.target)
            self._channel(names.pipe, names.channel).drop()
            session.objects.empty_landing(one.sync)
        self.open()
