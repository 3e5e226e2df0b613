"""Fences: for a moment each destination is held at one position, so that both sides can be compared there.

    request (config database) ─► hold the stream ─► temporary slot: position S, snapshot ─► resume, S is a barrier
    each destination, all up to S applied and nothing beyond ─► rows fetched again, if asked for ─► snapshot ─► go on

The stream is held while the slot is made, which waits for transactions that write at the source; a destination is held
for the few milliseconds that a snapshot takes. Whoever compares imports the snapshots and reads at leisure.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TypeVar

import psycopg2
import psycopg2.extensions
import structlog
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cdc_runner.capture.base import ChangeStream
from cdc_runner.capture.inspect import read_tables
from cdc_runner.capture.publication import SnapshotSlot
from cdc_runner.catalog import fences
from cdc_runner.catalog.database import session_scope
from cdc_runner.connections import classify, connect
from cdc_runner.destinations.postgres import state
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.errors import ErrorKind, Reaction, RosettaError
from cdc_runner.pipeline.applier import Applier
from cdc_runner.pipeline.source import SourceSession
from cdc_runner.position import Position, format_lsn
from cdc_runner.reconcile.repair import rewrite_rows
from cdc_runner.reconcile.result import Key
from cdc_runner.schema import TableId
from cdc_runner.spec import PipelineSpec

log = structlog.get_logger()

POLL_SECONDS = 0.5
HELD_SECONDS = 0.1
"""Time between two looks at the config database: for a request, and while a fence is held."""
HOLD_SECONDS = 10.0
"""Longest time that the stream is held: a transaction that is open at the source keeps a slot from being made."""

_T = TypeVar("_T")


@dataclass(slots=True)
class _Prepared:
    """A destination that is to be held: the session that will export its snapshot, and what is to be fetched.

    Snowflake has no snapshots to hand on: there the merges are held.
    """

    identifier: int
    destination: PostgresDestination | SnowflakeDestination
    keys: Mapping[TableId, Sequence[Key]]
    connection: psycopg2.extensions.connection | None = None

    def connect(self) -> None:
        """Open the session, where there is one."""
        if isinstance(self.destination, PostgresDestination):
            self.connection = self.destination.connect()
            self.connection.autocommit = True

    def close(self) -> None:
        """Close the session, and let its snapshot go."""
        if self.connection is not None:
            self.connection.close()

    def snapshot(self, pipeline: str) -> tuple[str, Position | None]:
        """Export a snapshot; return it with the position that the destination has in it.

        A destination that was away since the fence was asked for gets another session.
        """
        if self.connection is not None:
            with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
                return self._export(self.connection, pipeline)
            self.close()
        self.connect()
        assert self.connection is not None, "of a PostgreSQL destination"
        return self._export(self.connection, pipeline)

    @staticmethod
    def _export(connection: psycopg2.extensions.connection, pipeline: str) -> tuple[str, Position | None]:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor.execute("SELECT pg_export_snapshot()")
            ((snapshot,),) = cursor.fetchall()
            return snapshot, state.read_position(cursor, pipeline)


class _Fence:
    """A `FencePoint` for all destinations of a pipeline."""

    def __init__(self, spec: PipelineSpec, slot: SnapshotSlot, prepared: Sequence[_Prepared]) -> None:
        self.position = Position(slot.lsn)
        self.slot = slot
        self._spec = spec
        self._prepared = {one.identifier: one for one in prepared}
        self.answers: queue.SimpleQueue[tuple[int, fences.Answer]] = queue.SimpleQueue()

    def reached(self, applier: Applier) -> None:
        """See `FencePoint.reached`."""
        prepared = self._prepared.get(applier.pipeline_destination_id)
        if prepared is None:
            reason = "it is away, so that it cannot be held at the position"
            self.answers.put((applier.pipeline_destination_id, fences.Answer(None, error=reason)))
            return
        began = time.monotonic()
        try:
            answer = self._answer(prepared, applier)
        except RosettaError as error:
            answer = fences.Answer(None, error=error.message)
        except Exception as error:
            # The stream must go on whatever happens to a comparison.
            log.exception("fence.failed", destination=applier.destination.name)
            answer = fences.Answer(None, error=f"unexpected {type(error).__name__}")
        log.info(
            "fence.reached",
            destination=applier.destination.name,
            lsn=format_lsn(self.position.lsn),
            held_ms=round((time.monotonic() - began) * 1000, 1),
            error=answer.error,
        )
        self.answers.put((applier.pipeline_destination_id, answer))

    def _answer(self, prepared: _Prepared, applier: Applier) -> fences.Answer:
        upserted, deleted = self._rewrite(prepared, applier) if prepared.keys else (0, 0)
        if isinstance(prepared.destination, SnowflakeDestination):
            return fences.Answer(prepared.destination.hold(), upserted, deleted)
        try:
            snapshot, stored = prepared.snapshot(self._spec.identity)
        except psycopg2.Error as error:
            raise classify(error, "destination") from error
        if stored is None or stored > self.position:
            raise RosettaError(ErrorKind.INTERNAL, "the destination is not at the fence")
        return fences.Answer(snapshot, upserted, deleted)

    def _rewrite(self, prepared: _Prepared, applier: Applier) -> tuple[int, int]:
        destination = prepared.destination
        source = connect(self._spec.source.address, application_name="rosetta repair")
        try:
            source.autocommit = True
            with source.cursor() as cursor:
                cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                cursor.execute(self.slot.import_statement())
            sources = {one.sync.source for one in destination.table_states() if one.sync.target in prepared.keys}
            present = {schema.table: schema for schema in read_tables(source, tables=sources)}
            spec = next(one for one in self._spec.destinations if one.id == prepared.identifier)
            return rewrite_rows(source, present, destination, prepared.keys, spec, applier.shapers)
        except psycopg2.Error as error:
            raise classify(error, "source") from error
        except RosettaError:
            # An error closes the destination's session; the stream would find that out only by failing once.
            with suppress(RosettaError):
                destination.open()
            raise
        finally:
            source.close()


class FenceKeeper:
    """Serves requests for fences while a stream runs, one after the other, in a thread of its own."""

    def __init__(self, catalog: Engine, spec: PipelineSpec, stream: ChangeStream, appliers: Sequence[Applier]) -> None:
        self._catalog = catalog
        self._spec = spec
        self._stream = stream
        self._appliers = appliers
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fence", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a fence that is held fails."""
        self._stopping.set()
        self._thread.join(HOLD_SECONDS + 5.0)

    def _run(self) -> None:
        fresh = True
        while not self._stopping.wait(POLL_SECONDS):
            try:
                if fresh:
                    self._catalog_call(lambda session: fences.fail_left(session, self._spec.id))
                    fresh = False
                request = self._catalog_call(lambda session: fences.open_request(session, self._spec.id))
                if request is not None:
                    self._serve(request)
            except RosettaError as error:
                # The config database is away: whoever asked cannot see an answer either.
                log.warning("fence.not_served", pipeline=self._spec.name, error=str(error))

    def _catalog_call(self, call: Callable[[Session], _T]) -> _T:
        with session_scope(self._catalog) as session:
            return call(session)

    def _serve(self, request: int) -> None:
        try:
            with ExitStack() as cleanup:
                self._hold_and_wait(request, cleanup)
        except RosettaError as error:
            reason = error.message
            log.warning("fence.failed", pipeline=self._spec.name, error=reason)
            self._catalog_call(lambda session: fences.fail(session, request, reason))
        finally:
            for applier in self._appliers:
                applier.fence = None

    def _hold_and_wait(self, request: int, cleanup: ExitStack) -> None:
        keys = self._catalog_call(lambda session: fences.keys_of(session, request))
        prepared = [
            _Prepared(applier.pipeline_destination_id, destination, wanted)
            for applier, destination, wanted in self._attached(keys)
        ]
        for one in prepared:
            cleanup.callback(one.close)
            self._connect(one)
        session = SourceSession(self._spec.source, "fence")
        cleanup.callback(session.close)
        # Connected before the stream is held.
        session.wal_position()
        fence = self._set(request, prepared)
        cleanup.callback(fence.slot.close)
        # Something must come behind the position for a destination to know that all before it has come.
        session.wal_position(heartbeat=True)
        lsn, snapshot = fence.slot.lsn, fence.slot.snapshot
        self._catalog_call(lambda catalog: fences.set_fence(catalog, request, lsn, snapshot))
        while not self._stopping.is_set():
            self._pass_on(request, fence)
            if not self._catalog_call(lambda catalog: fences.is_held(catalog, request)):
                return
            self._stopping.wait(HELD_SECONDS)
        raise RosettaError(ErrorKind.RUNNER_FAILED, "the pipeline was stopped or started its stream anew")

    def _attached(
        self, keys: Mapping[int, Mapping[TableId, Sequence[Key]]]
    ) -> Iterator[tuple[Applier, PostgresDestination | SnowflakeDestination, Mapping[TableId, Sequence[Key]]]]:
        """Yield the destinations that can be held: those that are attached, and whose type has a way."""
        for applier in self._appliers:
            destination = applier.destination
            if isinstance(destination, PostgresDestination | SnowflakeDestination) and not applier.status.detached:
                yield applier, destination, keys.get(applier.pipeline_destination_id, {})

    def _connect(self, prepared: _Prepared) -> None:
        """Open the session before the stream is held; one that is away gets it when it has reached the fence."""
        try:
            prepared.connect()
        except RosettaError as error:
            if error.policy.reaction is not Reaction.RETRY:
                raise
            log.info("fence.destination_away", destination=prepared.destination.name, error=str(error))

    def _set(self, request: int, prepared: Sequence[_Prepared]) -> _Fence:
        """Hold the stream, make the slot, and let the stream go on with its position as a barrier."""
        began = time.monotonic()
        barrier: Position | None = None
        self._stream.hold()
        try:
            name = f"{self._spec.source.slot[:40]}_fence_{request}"
            slot = SnapshotSlot(self._spec.source.address, name, temporary=True, timeout_seconds=HOLD_SECONDS)
            fence = _Fence(self._spec, slot, prepared)
            for applier in self._appliers:
                applier.fence = fence
            barrier = fence.position
        finally:
            self._stream.resume(barrier)
        held_ms = round((time.monotonic() - began) * 1000, 1)
        log.info("fence.set", pipeline=self._spec.name, lsn=format_lsn(slot.lsn), held_ms=held_ms)
        return fence

    def _pass_on(self, request: int, fence: _Fence) -> None:
        while True:
            try:
                destination, answer = fence.answers.get_nowait()
            except queue.Empty:
                return
            self._catalog_call(
                lambda session, one=destination, found=answer: fences.answer(session, request, one, found)  # type: ignore[misc]
            )
