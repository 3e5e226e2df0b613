"""A target built anew beside the running stream, compared with the source, and put in the old one's place.

    register   an empty table like the target; every apply writes both from here on (`destinations.postgres.shadow`)
    copy       as a backfill does with a target (`backfill.turn`), in as many turns as it takes
    finish     other indexes, VACUUM ANALYZE
    compare    both sides at a fence, as `rosetta verify` does
    exchange   names and all that belongs to them, in one transaction under the lock of the position

Each step can be repeated, and what is done is known at the destination: a process that is killed leaves a table that
the next one goes on with. Only the last transaction changes what readers see.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import structlog
from sqlalchemy import Engine

from cdc_runner.backfill.turn import Turn, TurnEnd
from cdc_runner.backfill.window import Interrupted, Side, WindowVoid, Work, wait_reached
from cdc_runner.catalog import backfills
from cdc_runner.catalog.backfills import Task
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.settings import all_settings
from cdc_runner.connections import classify, connect
from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres import state, twin, waiting
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.postgres.replaceable import obstacles
from cdc_runner.destinations.postgres.shadow_register import OUTDATED, Shadow, read_shadows
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.failpoints import Failpoint, reach
from cdc_runner.position import Position, parse_lsn
from cdc_runner.reconcile.fenced import fenced
from cdc_runner.reconcile.result import Key, TableOutcome, TableResult
from cdc_runner.reconcile.session import Settings
from cdc_runner.reconcile.shape import not_rebuildable
from cdc_runner.reconcile.tables import by_targets, compare_destination
from cdc_runner.spec import DestinationSpec, PipelineSpec, ResolvedSync

log = structlog.get_logger()

COMPARISONS = 3
"""Fences at which both sides are compared before rows that differ are believed."""
LOCK_MILLISECONDS = 2_000
"""Longest time that the exchange waits for readers of the old table: the stream, and new readers, wait as long."""
FENCE_SECONDS = 120.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 16.0

# Sessions of this database that may still see rows as they were before the new table was complete. Those of the apply
# see what is committed with each statement.
_OLDER_SESSIONS = """
SELECT array_agg(pid ORDER BY pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND backend_xmin IS NOT NULL AND age(backend_xmin) > age(%s::text::xid) AND application_name <> %s
"""


class Rebuild:
    """A turn of one rebuild: goes on from where the last one ended, in whatever process that was."""

    def __init__(
        self,
        catalog: Engine,
        spec: PipelineSpec,
        task: Task,
        sync: ResolvedSync,
        side: Side,
        work: Work,
        paused: Callable[[], str | None],
    ) -> None:
        """Args:
        catalog: the config database.
        spec: the pipeline.
        task: the rebuild.
        sync: source, target and shape.
        side: where rows come from and go.
        work: to be told when the work must end.
        paused: why backfills of the source are to wait now; None when they may go on.
        """
        self._catalog = catalog
        self._spec = spec
        self._task = task
        self._sync = sync
        self._side = side
        self._work = work
        self._paused = paused
        self._destination = side.destination
        self._note: str | None = None
        self._own: DestinationSpec = next(one for one in spec.destinations if one.id == task.pipeline_destination_id)

    def run(self) -> tuple[TurnEnd, str | None]:
        """Go on until it is done or something is waited for; also return what that is.

        Raises:
            RosettaError: what stands in the way.
        """
        try:
            return self._run()
        except Interrupted:
            return TurnEnd.INTERRUPTED, None
        except WindowVoid as error:
            return TurnEnd.MORE, f"tried again: {error}"
        except (psycopg2.Error, RosettaError) as error:
            if self._work.ended.is_set():
                return TurnEnd.INTERRUPTED, None
            raise classify(error, "destination") from error

    def _run(self) -> tuple[TurnEnd, str | None]:
        shadow = self._registered()
        if shadow.swapped:
            return TurnEnd.DONE, None
        if shadow.void is not None:
            self._abandon(shadow)
            if shadow.void != OUTDATED:
                raise RosettaError(
                    ErrorKind.REBUILD_REFUSED, f"the new table of {shadow.target} cannot be: {shadow.void}"
                )
            return TurnEnd.MORE, f"begins anew: {shadow.void}"
        if not shadow.built:
            end, note = self._copied(shadow)
            if end is not TurnEnd.DONE:
                return end, note
        self._settle()
        self._finish(shadow)
        complete = self._next_transaction()
        note = self._difference(shadow)
        if note is not None:
            return TurnEnd.MORE, note
        self._exchange(shadow, complete)
        return TurnEnd.DONE, None

    @contextmanager
    def _session(self) -> Iterator[psycopg2.extensions.connection]:
        with self._work.session(self._destination.connect_writer()) as writer:
            yield writer

    def _lock(self, cursor: psycopg2.extensions.cursor) -> None:
        state.lock_position(cursor, self._spec.identity, self._destination.epoch)

    # -- the new table -----------------------------------------------------------------------------------------------

    def _registered(self) -> Shadow:
        """Return the new table, made now if it is not there."""
        name, shadows = self._spec.name, self._destination.shadows
        with self._session() as writer, writer, writer.cursor() as cursor:
            self._lock(cursor)
            found = shadows.find(cursor, self._task.id)
            if found is not None and self._task.status == "PENDING":
                # The numbers are of a config database that is not there any more.
                text = f"the destination knows another rebuild with the number {found.id}; the next has another number"
                raise RosettaError(ErrorKind.REBUILD_REFUSED, text)
            if found is not None:
                return found
            known = self._known(cursor)
            reason = not_rebuildable(self._own, known)
            self._refuse([reason] if reason else obstacles(cursor, self._task.target, known.schema.column_names))
            shadow = Shadow(self._task.id, self._task.target)
            cursor.execute("SET LOCAL lock_timeout = '5s'")
            twin.make_twin(cursor, shadow.target, shadow.aside, known.schema)
            shadows.register(cursor, shadow)
        log.info("rebuild.registered", pipeline=name, target=str(shadow.target), rebuild=shadow.id)
        self._stored_change(note="a new table is filled beside the old one")
        return shadow

    def _known(self, cursor: psycopg2.extensions.cursor) -> TableState:
        states = state.read_tables(cursor, self._spec.identity)
        return next(one for one in states if one.sync.target == self._task.target)

    def _refuse(self, reasons: list[str]) -> None:
        if reasons:
            text = f"table {self._task.target} cannot be replaced by a new one: {'; '.join(reasons[:5])}"
            raise RosettaError(ErrorKind.REBUILD_REFUSED, text)

    def _abandon(self, shadow: Shadow) -> None:
        with self._session() as writer, writer, writer.cursor() as cursor:
            self._lock(cursor)
            self._destination.shadows.drop(cursor, shadow)
        with session_scope(self._catalog) as session:
            backfills.forget_chunks(session, self._task.id)

    def _stored_change(self, note: str) -> None:
        if note == self._note:
            return
        self._note = note
        with session_scope(self._catalog) as session:
            backfills.change(session, self._task.id, note=note)

    # -- filled ------------------------------------------------------------------------------------------------------

    def _copied(self, shadow: Shadow) -> tuple[TurnEnd, str | None]:
        """Copy rows into the new table for a turn."""
        task = replace(self._task, target=shadow.aside, mode="BACKFILL")
        sync = replace(self._sync, target=shadow.aside)
        turn = Turn(self._catalog, task, sync, self._side, self._work, self._paused, instead_of=shadow.target)
        end, note = turn.run()
        if end is TurnEnd.DONE:
            with self._session() as writer, writer, writer.cursor() as cursor:
                self._lock(cursor)
                self._destination.shadows.mark_built(cursor, shadow)
        return end, note

    def _settle(self) -> None:
        """Wait until the stream has brought what rows that were read ahead of it will become."""
        with self._work.session(connect(self._side.source.address, application_name="rosetta rebuild")) as source:
            source.autocommit = True
            with source.cursor() as cursor:
                cursor.execute("SELECT pg_current_wal_lsn()::text")
                row = cursor.fetchone()
        assert row is not None, "the server knows its position"
        self._side.nudge()
        wait_reached(self._side, self._work, Position(parse_lsn(row[0])))

    def _finish(self, shadow: Shadow) -> None:
        """Add the other indexes beside the stream, and gather statistics, so that queries are planned as before."""
        with self._session() as writer:
            writer.autocommit = True
            with writer.cursor() as cursor:
                cursor.execute("SET lock_timeout = 0")
                while statements := twin.missing_indexes(cursor, shadow.target, shadow.aside):
                    self._stored_change("the new table gets its indexes")
                    for statement in statements:
                        cursor.execute(statement)
                cursor.execute(f"VACUUM (ANALYZE) {shadow.aside.quoted}")

    def _next_transaction(self) -> str:
        """Return the number of a transaction that is later than all that filled the new table."""
        with self._session() as writer, writer, writer.cursor() as cursor:
            cursor.execute("SELECT (txid_snapshot_xmax(txid_current_snapshot()) % 4294967296)::text")
            row = cursor.fetchone()
        assert row is not None, "a query of a function has a row"
        return str(row[0])

    # -- compared ----------------------------------------------------------------------------------------------------

    def _difference(self, shadow: Shadow) -> str | None:
        """Compare the new table with the source; return why that has to be tried again, None when they are equal.

        A row that the engine had to read from the source by key is ahead of the stream for a moment: only what differs
        at every position is believed.

        Raises:
            RosettaError: they differ.
        """
        self._stored_change("the new table is compared with the source")
        different: set[Key] | None = None
        for _ in range(COMPARISONS):
            self._work.check()
            found = self._compared(shadow)
            if found.outcome is TableOutcome.DIFFERENT and found.keys.complete and found.keys.all:
                keys = set(found.keys.all)
                different = keys if different is None else different & keys
            if found.outcome is TableOutcome.EQUAL or different == set():
                log.info("rebuild.equal", target=str(shadow.target), rows=found.target_rows, seconds=found.seconds)
                return None
            if found.outcome not in (TableOutcome.DIFFERENT, TableOutcome.FAILED):
                return f"the new table could not be compared with the source: {found.reason}"
            with self._session() as writer, writer, writer.cursor() as cursor:
                self._checked(cursor, shadow)
            self._work.ended.wait(_PAUSE_SECONDS)
        if found.outcome is TableOutcome.FAILED:
            return f"the new table could not be compared with the source: {found.reason}"
        raise RosettaError(
            ErrorKind.REBUILD_REFUSED,
            f"the new table is not what the source is: {len(different or found.keys.all)} rows differ",
        )

    def _compared(self, shadow: Shadow) -> TableResult:
        with session_scope(self._catalog) as session:
            values = all_settings(session)
        settings = Settings(
            workers=int(values["verify_workers"]),
            statement_seconds=int(values["verify_statement_seconds"]),
            bytes_per_second=int(values["verify_megabytes_per_second"]) * 1_000_000,
        )
        with fenced(self._catalog, self._spec, [self._own], settings, wait_seconds=FENCE_SECONDS) as fence:
            if self._own.id in fence.problems:
                raise WindowVoid(fence.problems[self._own.id])
            chosen = by_targets({(self._own.id, shadow.target)})
            instead, identity = {shadow.target: shadow.aside}, self._spec.identity
            found = list(compare_destination(identity, fence, self._own, chosen, instead))
        if not found:
            raise WindowVoid("the target is not known any more")
        return found[0]

    def _checked(self, cursor: psycopg2.extensions.cursor, shadow: Shadow) -> None:
        """Make sure that the new table has got every change; the next turn says why if it has not."""
        found = self._destination.shadows.find(cursor, shadow.id)
        if found is None or found.void is not None:
            raise WindowVoid("the new table is gone" if found is None else str(found.void))

    # -- exchanged ---------------------------------------------------------------------------------------------------

    def _exchange(self, shadow: Shadow, complete: str) -> None:
        """Put the new table in the old one's place as soon as nobody stands in the way.

        Whoever reads under a snapshot that was taken before the new table was complete would find rows missing in it,
        so such sessions are waited for; and so are those that read the old table.
        """
        pause = _PAUSE_SECONDS
        while True:
            self._work.check()
            with self._session() as writer:
                note = self._waits_for(writer, complete)
                if note is None:
                    note = self._try_exchange(writer, shadow, complete)
                    # Each try may hold up others, for hours if a reader of the old table takes as long.
                    pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            if note is None:
                return
            self._stored_change(note)
            if self._work.ended.wait(pause):
                raise Interrupted

    def _waits_for(self, writer: psycopg2.extensions.connection, complete: str) -> str | None:
        with writer, writer.cursor() as cursor:
            return self._older_sessions(cursor, complete)

    def _older_sessions(self, cursor: psycopg2.extensions.cursor, complete: str) -> str | None:
        cursor.execute(_OLDER_SESSIONS, (complete, f"rosetta {self._spec.identity}"))
        row = cursor.fetchone()
        pids = [] if row is None or row[0] is None else row[0]
        if not pids:
            return None
        listed = ", ".join(map(str, pids[:5]))
        return f"waits for transactions at the destination that began before the new table was complete (pid {listed})"

    def _try_exchange(self, writer: psycopg2.extensions.connection, shadow: Shadow, complete: str) -> str | None:
        """Exchange the tables, or return what was in the way."""
        name, identity = self._spec.name, self._spec.identity
        try:
            with writer, writer.cursor() as cursor:
                cursor.execute("SET LOCAL synchronous_commit = on")
                self._lock(cursor)
                self._checked(cursor, shadow)
                cursor.execute(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
                cursor.execute(f"LOCK TABLE {shadow.target.quoted}, {shadow.aside.quoted} IN ACCESS EXCLUSIVE MODE")
                # Nobody can come to read the old table now; who has a snapshot already would read the new one with it.
                older = self._older_sessions(cursor, complete)
                if older is not None:
                    return older
                self._refuse(obstacles(cursor, shadow.target, self._known(cursor).schema.column_names))
                if twin.missing_indexes(cursor, shadow.target, shadow.aside):
                    raise WindowVoid("the old table has got another index")
                twin.exchange(cursor, shadow.target, shadow.aside, shadow.kept)
                self._destination.shadows.mark_swapped(cursor, shadow)
                # The new table holds what waited for the old one.
                waiting.forget_target(cursor, identity, shadow.target)
                waiting.raise_version(cursor, identity)
                reach(Failpoint.BEFORE_EXCHANGE)
            reach(Failpoint.AFTER_EXCHANGE)
            self._destination.diversion.stale = True
        except psycopg2.errors.LockNotAvailable:
            return "waits for readers of the old table"
        log.info("rebuild.exchanged", pipeline=name, target=str(shadow.target), kept=str(shadow.kept))
        return None


def kept_at(destination: PostgresDestination, pipeline: str) -> dict[int, str]:
    """Return the tables that rebuilds have replaced and that are kept at a destination, by number of the rebuild.

    Raises:
        RosettaError: the destination's kinds.
    """
    writer = destination.connect_writer()
    try:
        with writer, writer.cursor() as cursor:
            return {one.id: str(one.kept) for one in read_shadows(cursor, pipeline, swapped=True)}
    except psycopg2.Error as error:
        raise classify(error, "destination") from error
    finally:
        writer.close()


def drop_left(destination: PostgresDestination, pipeline: str, wanted: Collection[int]) -> None:
    """Drop the new tables of a destination whose rebuilds are not open any more.

    Raises:
        RosettaError: the destination's kinds.
    """
    writer = destination.connect_writer()
    try:
        with writer, writer.cursor() as cursor:
            state.lock_position(cursor, pipeline, destination.epoch)
            for shadow in destination.shadows.building(cursor):
                if shadow.id not in wanted:
                    cursor.execute(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
                    destination.shadows.drop(cursor, shadow)
                    log.info("rebuild.dropped", target=str(shadow.target), rebuild=shadow.id)
    except psycopg2.Error as error:
        raise classify(error, "destination") from error
    finally:
        writer.close()
