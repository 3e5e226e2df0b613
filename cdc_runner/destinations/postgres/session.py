"""The session of a PostgreSQL destination, and what it remembers: positions, epochs, states of tables, waiting keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import structlog

from cdc_runner.connections import classify, connect
from cdc_runner.destinations.base import RowFetcher, SchemaListener, TableState
from cdc_runner.destinations.letters import LetterSink
from cdc_runner.destinations.postgres import ddl, state, waiting
from cdc_runner.destinations.postgres.divert import Diversion
from cdc_runner.destinations.postgres.encode import BinaryEncoder
from cdc_runner.destinations.postgres.isolate import IsolatingWriter
from cdc_runner.destinations.postgres.journal import Journal
from cdc_runner.destinations.postgres.order import foreign_key_order
from cdc_runner.destinations.postgres.shadow import Shadows
from cdc_runner.destinations.postgres.type_names import TypePlaces
from cdc_runner.destinations.postgres.writer import TableWriter
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId
from cdc_runner.spec import DestinationSpec, PipelineSettings

log = structlog.get_logger()


class PostgresSession:
    """What `PostgresDestination` stands on: its session, and what is kept at the destination."""

    takes_events = False
    makes = frozenset({"table_destination"})

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
        pipeline: the pipeline's identity, under which positions are kept.
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
        self._source = source
        self.map_schema = TypePlaces(lambda schema: spec.schema or schema)
        self._on_schema_change = on_schema_change
        self._encoder = BinaryEncoder(directory)
        self._connection: psycopg2.extensions.connection | None = None
        self.epoch = 0
        self._states: dict[TableId, TableState] = {}
        self._writer = TableWriter(self._encoder, fetch, self.map_schema)
        self._order: list[TableId] | None = None
        self.diversion = Diversion(pipeline, fetch)
        self.load_sink: LetterSink | None = None
        """Takes the rows that are refused during a load; without it such a row stops the load."""
        self._isolating = IsolatingWriter(self._writer, self._encoder, self.diversion.refuse)
        self.journal = Journal(pipeline, self._encoder)
        self.shadows = Shadows(pipeline, self._writer, self.journal)

    # -- session -----------------------------------------------------------------------------------------------------

    def open(self, *, beside: bool = False) -> None:
        """Connect, create the state tables, fence earlier writers and read what is known.

        Args:
            beside: do not fence the present writer: for short work beside it, each transaction under its lock.
        """
        self.close()
        self._connection = self.connect()
        try:
            state.create(self._connection)
            waiting.create(self._connection)
            take = state.read_epoch if beside else state.take_epoch
            self.epoch = take(self._connection, self._pipeline)
            with self._connection, self._connection.cursor() as cursor:
                self._states = {one.sync.target: one for one in state.read_tables(cursor, self._pipeline)}
                self.diversion.load(cursor)
                self.shadows.load(cursor)
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
                # The planner knows nothing of staged rows; where it guesses high, compiling takes longer than applying.
                "jit": "off",
            },
        )

    @property
    def is_open(self) -> bool:
        """Whether there is a session."""
        return self._connection is not None

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
        self._writer.forget_session()
        self._isolating.forget_session()
        self.journal.forget_session()

    def _session(self) -> psycopg2.extensions.connection:
        if self._connection is None:
            raise RosettaError(ErrorKind.DESTINATION_UNAVAILABLE, f"destination {self.name} is not connected")
        return self._connection

    @contextmanager
    def transaction(self) -> Iterator[psycopg2.extensions.cursor]:
        """Give a cursor of a transaction of the session, committed at the end of the block.

        Raises:
            RosettaError: destination kinds; nothing was changed. A server that goes away in the middle closes the
                session, whose rollback then fails by itself: that is the same outage, not an error of its own.
        """
        try:
            with self._session() as connection, connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error as error:
            raise classify(error, "destination") from error

    # -- what is kept ------------------------------------------------------------------------------------------------

    def position(self) -> Position | None:
        """Return the stored position."""
        with self.transaction() as cursor:
            return state.lock_position(cursor, self._pipeline, self.epoch)

    def start_at(self, position: Position) -> None:
        """Store the position at which a new stream begins."""
        with self.transaction() as cursor:
            state.lock_position(cursor, self._pipeline, self.epoch)
            state.store_position(cursor, self._pipeline, position, 0.0)

    def table_states(self) -> list[TableState]:
        """Return what is remembered of each target table."""
        return list(self._states.values())

    def remember(self, cursor: psycopg2.extensions.cursor, table: TableState) -> None:
        """Store a table's state in the caller's transaction of this session."""
        state.write_table(cursor, self._pipeline, table)
        self._states[table.sync.target] = table
        self.journal.void(table.sync.target, "its schema or its load changed")
        self._writer.forget_target(table.sync.target)

    def remember_all(self, tables: Sequence[TableState]) -> None:
        """Store states of tables in one transaction."""
        with self.transaction() as cursor:
            state.lock_position(cursor, self._pipeline, self.epoch)
            for table in tables:
                self.remember(cursor, table)

    def join(self, tables: Sequence[TableState]) -> None:
        """Have targets written by the stream from their snapshots on; what was before comes beside it, by a resync.

        Args:
            tables: of new or emptied targets with a key, and the position from which each is written.
        """
        with self.transaction() as cursor:
            state.lock_position(cursor, self._pipeline, self.epoch)
            for table in tables:
                ddl.add_key(cursor.connection, table.sync.target, table.schema)
                state.forget_chunks(cursor, self._pipeline, table.sync.target)
                self.remember(cursor, replace(table, ready=True, joining=True))

    def joined(self, target: TableId) -> None:
        """Note, in a session of its own, that a target that was joining holds everything."""
        connection = self.connect_writer()
        try:
            with connection, connection.cursor() as cursor:
                # Schema changes are remembered under this lock, too.
                state.lock_position(cursor, self._pipeline, self.epoch)
                known = self._states.get(target)
                if known is None or not known.joining:
                    return
                state.write_table(cursor, self._pipeline, replace(known, joining=False))
                self._states[target] = replace(known, joining=False)
        except psycopg2.Error as error:
            raise classify(error, "destination") from error
        finally:
            connection.close()

    def load_again(self, target: TableId) -> None:
        """Note that a target table has to be loaded anew before the stream goes on."""
        with self.transaction() as cursor:
            state.lock_position(cursor, self._pipeline, self.epoch)
            state.forget_chunks(cursor, self._pipeline, target)
            self.diversion.superseded += waiting.forget_target(cursor, self._pipeline, target)
            self.remember(cursor, replace(self._states[target], ready=False, joining=False))
            self.diversion.load(cursor)

    def let_go(self, wanted: Collection[TableId]) -> None:
        """Have targets that are not fed any more loaded anew if they ever are again: they miss changes from now on."""
        for one in list(self._states.values()):
            if one.sync.target in wanted:
                continue
            log.info("destination.not_fed", destination=self.name, table=str(one.sync.target))
            if one.ready:
                self.load_again(one.sync.target)

    def reset(self) -> None:
        """Forget the position, and have every table loaded anew."""
        with self.transaction() as cursor:
            state.lock_position(cursor, self._pipeline, self.epoch)
            state.reset_pipeline(cursor, self._pipeline)
            self.diversion.superseded += waiting.forget_pipeline(cursor, self._pipeline)
        self.reload_states()

    def reload_states(self) -> None:
        """Read the tables' states again, after other sessions changed them."""
        with self.transaction() as cursor:
            self._states = {one.sync.target: one for one in state.read_tables(cursor, self._pipeline)}
            self.diversion.load(cursor)
        self._writer.forget_targets()
        if self._order is not None:
            with self.transaction() as cursor:
                self._order = foreign_key_order(cursor, list(self._states))
