"""Net changes into PostgreSQL: staged as text by COPY, merged on the server, in one transaction with the position."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import structlog

from cdc_runner.capture.inspect import read_tables
from cdc_runner.capture.publication import SnapshotSlot
from cdc_runner.capture.publication_drift import has_column_list
from cdc_runner.connections import classify
from cdc_runner.destinations.base import Applied, ApplyMode, Computed, ReloadNeeded, TableLoad
from cdc_runner.destinations.letters import LetterSink
from cdc_runner.destinations.postgres import ddl, state, types
from cdc_runner.destinations.postgres.isolate import IsolatingWriter
from cdc_runner.destinations.postgres.load import InitialLoad
from cdc_runner.destinations.postgres.lookups import PostgresLookups
from cdc_runner.destinations.postgres.membership import PostgresMembership
from cdc_runner.destinations.postgres.plan import LoadPlanner
from cdc_runner.destinations.postgres.session import PostgresSession
from cdc_runner.destinations.postgres.writer import TableWriter
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.failpoints import Failpoint, reach
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.evolution import ChangeKind, SchemaChange, diff
from cdc_runner.shaping.net import LoadAgain, NetChange
from cdc_runner.spec import PostgresAddress, ResolvedSync

log = structlog.get_logger()


_Evolved = tuple[ResolvedSync, TableSchema, TableSchema, list[SchemaChange]]


@dataclass(slots=True)
class _Told:
    """What is told of an apply once it is committed."""

    events: dict[ResolvedSync, int] = field(default_factory=dict)
    evolved: list[_Evolved] = field(default_factory=list)


class PostgresDestination(PostgresSession):
    """See `cdc_runner.destinations.base.Destination`. `apply` is atomic with its position."""

    # -- initial load ------------------------------------------------------------------------------------------------

    def plan_load(
        self,
        source: psycopg2.extensions.connection,
        wanted: Sequence[tuple[ResolvedSync, TableSchema]],
        computed: Mapping[TableId, Computed],
    ) -> list[TableLoad]:
        """Make the targets that are not there, and return what has to be loaded into them."""
        session = self.connect()
        try:
            with session:
                planner = LoadPlanner(source, session, self._pipeline, self._settings, self.map_schema)
                return planner.plan(wanted, self._states, computed)
        except psycopg2.Error as error:
            # Both sides are asked; a session that was lost says which of them went away.
            raise classify(error, "source" if source.closed else "destination") from error
        finally:
            session.close()

    def load(
        self,
        source: PostgresAddress,
        loads: Sequence[TableLoad],
        snapshot: SnapshotSlot,
        *,
        stopping: threading.Event,
        progress: Callable[[ResolvedSync, int], None],
    ) -> None:
        """Copy in parallel; each chunk is one transaction with its own mark."""
        InitialLoad(source, self, self._pipeline, self._settings, snapshot, stopping=stopping, progress=progress).run(
            loads
        )

    # -- what a refused batch may need -------------------------------------------------------------------------------

    def catch_up_schema(self, present: Callable[[TableId], TableSchema | None]) -> bool:
        """Bring types and nullability to what the source has by now; tell whether anything changed."""
        refreshed = self.refresh_types()
        return self.widen(present) or refreshed

    def refresh_types(self) -> bool:
        """Bring enums, composites and domains to what the source has by now; tell whether anything changed."""
        with self.transaction() as cursor:
            schemas = [one.schema for one in self._states.values()]
            return bool(types.refresh_types(self._source(), cursor.connection, schemas, self.map_schema))

    def widen(self, present: Callable[[TableId], TableSchema | None]) -> bool:
        """Bring types and nullability of the targets to what the source has by now; tell whether anything changed.

        The change stream does not tell of everything that an ALTER TABLE does, a dropped NOT NULL for one.

        Args:
            present: reads the present schema that the source's table has for a target, as the sync shapes it.
        """
        changed = False
        with self.transaction() as cursor:
            for known in list(self._states.values()):
                schema = present(known.sync.target)
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
        mode: ApplyMode | None = None,
        sink: LetterSink | None = None,
    ) -> Applied:
        """Apply segments and store the position in one transaction.

        Changes of keys that wait are put aside, in every mode.

        Args:
            segments: net changes, in order.
            through: position of the last transaction among them.
            commit_time: its commit time at the source, seconds since the epoch.
            careful: delete rows before they are written again, so that unique values may change places.
            mode: how, in place of `careful`.
            sink: takes what is put aside.
        """
        mode = mode or ApplyMode(careful=careful)
        connection = self._session()
        self._writer.begin()
        told = _Told()
        with self._given_up_on_error():
            with connection.cursor() as cursor:
                stored = state.lock_position(cursor, self._pipeline, self.epoch)
                if stored is not None and through <= stored:
                    connection.rollback()
                    return Applied({}, stored)
                self.diversion.begin(cursor)
                if mode.immediate:
                    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
                for segment in segments:
                    self._apply_segment(cursor, segment, mode, through, told)
                    self.diversion.flush(cursor, sink, through, commit_time)
                if mode.isolate:
                    # A deferred constraint would else be checked by COMMIT, where a row cannot be told any more.
                    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
                state.store_position(cursor, self._pipeline, through, commit_time)
            reach(Failpoint.BEFORE_COMMIT)
            connection.commit()
            reach(Failpoint.AFTER_COMMIT)
        if self._on_schema_change is not None:
            for change in told.evolved:
                self._on_schema_change(*change)
        return Applied(told.events, through)

    @contextmanager
    def _given_up_on_error(self) -> Iterator[None]:
        """Give up the session when the block fails: nothing is inferred from a transaction that did."""
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, psycopg2.Error):
                raise classify(error, "destination") from error
            raise

    def _apply_segment(
        self,
        cursor: psycopg2.extensions.cursor,
        captured: Sequence[tuple[ResolvedSync, NetChange]],
        mode: ApplyMode,
        through: Position,
        told: _Told,
    ) -> None:
        segment = self._computed(cursor, captured)
        self._note(cursor, segment, told)
        if self.journal.active:
            self.journal.record(cursor, segment, through)
        self._segment(cursor, segment, mode)
        self._refuse_held(mode)
        if self.shadows.active:
            self.shadows.beside(cursor, segment, through)

    def rewrite(self, changes: Sequence[tuple[ResolvedSync, NetChange]]) -> None:
        """Write rows that are true at the present position, in a transaction of its own; the position stays.

        After an error nothing of it is stored, and the destination must be opened again.
        """
        connection = self._session()
        self._writer.begin()
        with self._given_up_on_error():
            with connection.cursor() as cursor:
                state.lock_position(cursor, self._pipeline, self.epoch)
                self.diversion.begin(cursor)
                self._note(cursor, changes, _Told())
                self._segment(cursor, changes, ApplyMode(careful=True))
                if self.diversion.tables:
                    # Keys that wait are left alone: what waits for them is older than these rows.
                    self.diversion.load(cursor)
            connection.commit()

    def _computed(
        self, cursor: psycopg2.extensions.cursor, segment: Sequence[tuple[ResolvedSync, NetChange]]
    ) -> Sequence[tuple[ResolvedSync, NetChange]]:
        """Return a segment with the changes that are computed in the transaction that applies them.

        Raises:
            ReloadNeeded: that would take more than a load.
        """
        found: list[tuple[ResolvedSync, NetChange]] = []
        for sync, change in segment:
            if change.compute is not None:
                try:
                    members = PostgresMembership(cursor, self._pipeline, sync.target)
                    change = change.compute(members, PostgresLookups(cursor))
                except LoadAgain as why:
                    raise ReloadNeeded(sync.target, str(why)) from None
            found.append((sync, change))
        return found

    def _note(
        self, cursor: psycopg2.extensions.cursor, segment: Sequence[tuple[ResolvedSync, NetChange]], told: _Told
    ) -> None:
        """Bring targets to the schemas of a segment, and count its events."""
        for sync, change in segment:
            evolved = self._evolve(cursor, sync, change)
            if evolved is not None:
                told.evolved.append(evolved)
            told.events[sync] = told.events.get(sync, 0) + change.events

    def _routed(
        self, cursor: psycopg2.extensions.cursor, segment: Sequence[tuple[ResolvedSync, NetChange]], mode: ApplyMode
    ) -> Iterator[tuple[ResolvedSync, NetChange]]:
        """Yield a segment without what must wait; one change after the other, as each may make keys wait."""
        for sync, change in segment:
            if mode.replay or not (self.diversion.tables or mode.isolate):
                yield sync, change
            else:
                for part in self.diversion.route(cursor, sync, change, isolating=mode.isolate):
                    yield sync, part

    def _refuse_held(self, mode: ApplyMode) -> None:
        """Raises: DESTINATION_ROW_REJECTED, for a refusal that may have another cure than to put the row aside."""
        held = self.diversion.refused & mode.hold
        if held:
            text = f"rows were refused [SQLSTATE {', '.join(sorted(held))}]"
            raise RosettaError(ErrorKind.DESTINATION_ROW_REJECTED, text, {"sqlstate": min(held)})

    def _segment(
        self,
        cursor: psycopg2.extensions.cursor,
        segment: Sequence[tuple[ResolvedSync, NetChange]],
        mode: ApplyMode,
    ) -> None:
        writer: TableWriter | IsolatingWriter = self._isolating if mode.isolate else self._writer
        careful = mode.careful
        if self._order is None or len({sync.target for sync, _ in segment}) < len(segment):
            for sync, change in self._routed(cursor, segment, mode):
                staging = writer.stage(cursor, sync, change)
                writer.take_away(cursor, sync, change, staging)
                writer.put(cursor, sync, change, staging, careful=careful)
            self._writer.flush(cursor)
            return
        # Foreign keys are checked: children lose rows first, parents gain rows first.
        rank = {table: place for place, table in enumerate(self._order)}
        ordered = sorted(self._routed(cursor, segment, mode), key=lambda one: rank.get(one[0].target, -1))
        staged = [(sync, change, writer.stage(cursor, sync, change)) for sync, change in ordered]
        for sync, change, staging in reversed(staged):
            writer.take_away(cursor, sync, change, staging)
        for sync, change, staging in staged:
            writer.put(cursor, sync, change, staging, careful=careful)
        self._writer.flush(cursor)

    @contextmanager
    def exclusive(self) -> Iterator[psycopg2.extensions.cursor]:
        """Give a cursor of a transaction that no apply runs beside, and commit at the end of the block.

        Raises:
            RosettaError: FENCED, and the destination kinds; nothing was changed, and the destination must be opened.
        """
        connection = self._session()
        self._writer.begin()
        with self._given_up_on_error():
            with connection.cursor() as cursor:
                state.lock_position(cursor, self._pipeline, self.epoch)
                self.diversion.begin(cursor)
                yield cursor
            connection.commit()

    def write_isolated(
        self, cursor: psycopg2.extensions.cursor, segment: Sequence[tuple[ResolvedSync, NetChange]]
    ) -> None:
        """Write net changes in the caller's transaction; what is refused is put aside."""
        self._segment(cursor, segment, ApplyMode(careful=True, isolate=True, replay=True))

    def _evolve(self, cursor: psycopg2.extensions.cursor, sync: ResolvedSync, change: NetChange) -> _Evolved | None:
        """Bring the target to a new schema of its source table, in the current transaction."""
        schema = change.version.schema
        source = None if change.origin is None else change.origin.schema
        if self._writer.knows(sync.target, schema, source):
            return None
        known = self._states.get(sync.target)
        if known is None:
            raise RosettaError(ErrorKind.DESTINATION_SCHEMA, f"target {sync.target} was never prepared")
        if known.schema == schema and known.source_schema == source:
            return None
        self._refuse_hidden(sync, known.captured_schema, source or schema)
        changes = diff(known.schema, schema)
        if change.version.key_guessed:
            raise ReloadNeeded(sync.target, "what identifies its rows changed, and the stream does not tell where")
        # What is told is of the table at the source, whatever a shape leaves of it.
        before, after = known.captured_schema, source or schema
        told = (sync, before, after, changes if source is None else diff(before, after))
        policy = self._settings.schema_policy
        if changes and policy == "pause":
            texts = "; ".join(change.text for change in changes)
            raise RosettaError(ErrorKind.SCHEMA_CHANGE_HELD, f"table {sync.source} changed: {texts}")
        if policy == "freeze":
            self._writer.freeze(sync.target, known.schema.column_names)
            return told if told[3] else None
        if changes:
            self._alter(cursor, sync.target, changes, schema)
        self.remember(cursor, replace(known, schema=schema, source_schema=source))
        return told if told[3] else None

    def _refuse_hidden(self, sync: ResolvedSync, known: TableSchema, now: TableSchema) -> None:
        """Tell a column that the publication hides from one that was dropped: the source still has it.

        Raises:
            RosettaError: PUBLICATION_DRIFT, naming the columns.
        """
        numbers = {column.number for column in now.columns}
        gone = {column.number for column in known.stream_columns if column.number} - numbers
        if not gone or not known.oid or known.oid != now.oid:
            return
        try:
            source = self._source()
            # Else it is an older table under the same name, whose changes come before those of this one.
            listed = has_column_list(source, known.oid)
            present = next(iter(read_tables(source, tables=[sync.source])), None) if listed else None
        except psycopg2.Error as error:
            raise classify(error, "source") from error
        if present is None or present.oid != known.oid:
            return
        names = [column.name for column in present.stream_columns if column.number in gone]
        if names:
            raise RosettaError(
                ErrorKind.PUBLICATION_DRIFT,
                f"the publication was given a list of columns that leaves out {', '.join(names)} of {sync.source}: "
                "publish the table without a list, then run `rosetta pipeline refresh`",
            )
