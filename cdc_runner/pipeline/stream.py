"""One run of a pipeline's change stream: from prepared destinations until something asks for a new start."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import Engine

from cdc_runner.capture.assemble import BatchSettings
from cdc_runner.capture.base import ChangeStream
from cdc_runner.capture.registry import SchemaRegistry
from cdc_runner.destinations.base import Destination
from cdc_runner.errors import Reaction, RosettaError
from cdc_runner.failpoints import Failpoint, reach
from cdc_runner.pipeline.applier import Applier
from cdc_runner.pipeline.backfills import BackfillKeeper
from cdc_runner.pipeline.dead_letters import LetterDesk, letter_queue, waiting_room
from cdc_runner.pipeline.fence import FenceKeeper
from cdc_runner.pipeline.parking import Parking
from cdc_runner.pipeline.prepare import Attached
from cdc_runner.pipeline.report import Reporter
from cdc_runner.pipeline.shaped import Shaper
from cdc_runner.pipeline.source import SourceSession, SourceTables
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.history import HistoryShaper
from cdc_runner.shaping.source_rows import SourceRows
from cdc_runner.shaping.sync import SyncShaper, TableShaper
from cdc_runner.spec import PipelineSettings, PipelineSpec, ResolvedSync, SyncMode

log = structlog.get_logger()

WATCH_SECONDS = 10.0
UNREACHABLE_SECONDS = 60.0
LEFT_SECONDS = 5.0


class Outcome(StrEnum):
    """Why a run of the stream ended without an error."""

    STOPPED = "stopped"
    RESTART = "restart"


class StreamRun:
    """Capture, shaping and apply at work. The caller's thread reads and shapes; each destination has its own thread."""

    def __init__(
        self,
        spec: PipelineSpec,
        source: SourceSession,
        tables: SourceTables,
        attached: Sequence[Attached],
        floors: Sequence[Position],
        reporter: Reporter,
        stopping: threading.Event,
        directory: Path,
        catalog: Engine,
        *,
        left: Sequence[Destination] = (),
    ) -> None:
        """Args:
        spec: the pipeline.
        source: an open session.
        tables: what the source offers.
        attached: destinations that take part, prepared.
        floors: positions of those that do not, which the slot must still serve.
        reporter: told of everything that people are to see.
        stopping: ends the run.
        directory: for short-lived files.
        catalog: the config database.
        left: destinations that could not be reached; when one can be, the stream begins anew with it.
        """
        self._left = left
        self._spec = spec
        self._catalog = catalog
        self._source = source
        self._tables = tables
        self._floors = list(floors)
        self._reporter = reporter
        self._stopping = stopping
        self._restart = threading.Event()
        self._captured = Position(0)
        self._captured_at = time.monotonic()
        self._directory = directory
        self._acknowledged = Position(0)
        self._sessions: list[SourceSession] = []
        alone = len(attached) == 1 and not floors
        self._rows = [SourceRows(spec.source.address, spec.identity) for _ in attached]
        self.appliers = [
            self._applier(each, rows, alone=alone) for each, rows in zip(attached, self._rows, strict=True)
        ]
        self._attached = attached
        self._stream: ChangeStream | None = None
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watch_error: RosettaError | None = None

    def _applier(self, each: Attached, rows: SourceRows, *, alone: bool) -> Applier:
        shapers = {**sync_shapers(each.syncs, rows, events=each.destination.takes_events), **each.custom}
        captured = {one.sync.target: one.captured_schema for one in each.destination.table_states()}
        for target, shaper in each.custom.items():
            shaper.begin_at(captured[target])
        return Applier(
            each.destination,
            each.pipeline_destination_id,
            each.syncs,
            alone=alone,
            on_progress=self._applied,
            on_recovery=self._restart.set,
            present=self._session("schema").table,
            shapers=shapers,
            letters=self._desk(each),
            parking=self._parking(each, shapers),
        )

    def _parking(self, each: Attached, shapers: Mapping[TableId, TableShaper]) -> Parking | None:
        if each.lot is None:
            return None
        return Parking(
            each.lot,
            self._spec.settings.park_after_seconds,
            each.syncs,
            {one.sync.target: one.snapshot for one in each.destination.table_states()},
            shapers,
            partial(self._reporter.parked, each.pipeline_destination_id),
        )

    def _desk(self, each: Attached) -> LetterDesk | None:
        """Return what looks after the dead letters of a destination; None for one that cannot put rows aside."""
        spec, settings, reporter = self._spec, self._spec.settings, self._reporter
        identifier = each.pipeline_destination_id
        queue = letter_queue(spec, next(one for one in spec.destinations if one.id == identifier))
        room = waiting_room(each.destination, spec, queue, self._session("dead letters").fetch)
        if room is None:
            return None
        return LetterDesk(
            room,
            settings,
            on_counts=partial(reporter.dead_letters, identifier),
            on_queue=partial(reporter.dead_letter_queue, identifier),
            on_discard=partial(reporter.dead_letters_discarded, identifier),
            on_restart=partial(reporter.dead_letter_queue_restarted, identifier),
        )

    def run(self) -> Outcome:
        """Stream until asked to stop, or until the stream must begin anew.

        Raises:
            RosettaError: what ended the stream.
        """
        stream = self._stream = self._open()
        for applier in self.appliers:
            applier.start()
        self._watcher.start()
        if self._left:
            threading.Thread(target=self._wait_for_left, name="left", daemon=True).start()
        fences = FenceKeeper(self._catalog, self._spec, stream, self.appliers)
        fences.start()
        backfills = BackfillKeeper(self._catalog, self._spec, self._attached, self.appliers, self._reporter.tables)
        backfills.start()
        self._reporter.attach(self)
        shaper = Shaper(batch_settings(self._spec.settings).segment_bytes)
        takes_events = frozenset[bool]().union(*(applier.routing.takes_events for applier in self.appliers))
        closer = threading.Thread(target=self._close_when_asked, args=(stream,), name="close", daemon=True)
        closer.start()
        failed = True
        try:
            for batch in stream.batches():
                self._captured, self._captured_at = batch.last, time.monotonic()
                shaped = shaper.shape(batch, len(self.appliers), net=False in takes_events, events=True in takes_events)
                for applier in self.appliers:
                    applier.put(shaped, self._ending)
                self._check()
                if self._ending():
                    break
            self._check()
            failed = False
        finally:
            # Their steps hold the lock of the position, which the appliers need to finish.
            backfills.stop()
            drain = 0.0 if failed or self._restart.is_set() else 10.0
            for applier in self.appliers:
                applier.stop(drain_seconds=drain)
            for rows in self._rows:
                rows.close()
            self._restart.set()
            stream.close()
            fences.stop()
            self._reporter.detach()
            for session in self._sessions:
                session.close()
        self._check()
        return Outcome.STOPPED if self._stopping.is_set() else Outcome.RESTART

    def _open(self) -> ChangeStream:
        known = self._known_schemas()
        states = [one for each in self._attached for one in each.destination.table_states()]
        barriers = {one.snapshot for one in states} | {
            one for applier in self.appliers for one in (applier.status.position, applier.status.durable)
        }
        session = self._session("schema")
        return open_stream(
            self._spec,
            SchemaRegistry(known, session.table, read_all=session.present),
            sorted(self._tables.usable),
            self._directory,
            sorted(barriers),
            # Whoever reads present rows must know of which transactions they have to be.
            stamped=any(
                each.custom or True in applier.routing.takes_events or any(not sync.shape.plain for sync in each.syncs)
                for each, applier in zip(self._attached, self.appliers, strict=True)
            ),
        )

    def _session(self, purpose: str) -> SourceSession:
        """Return a session of one thread's own, closed at the end of the run."""
        session = SourceSession(self._spec.source, purpose)
        self._sessions.append(session)
        return session

    def _known_schemas(self) -> list[TableSchema]:
        """Return the schemas where the stream begins: those of the destination that is furthest behind."""
        known: dict[TableId, TableSchema] = dict(self._tables.usable)
        ranked = sorted(self.appliers, key=lambda applier: applier.status.position, reverse=True)
        for applier in ranked:
            known |= {one.sync.source: one.captured_schema for one in applier.destination.table_states()}
        return [known[table] for table in sorted(known)]

    def _ending(self) -> bool:
        return self._stopping.is_set() or self._restart.is_set()

    def _check(self) -> None:
        """Raise what ended a destination for good, unless other destinations can go on without it."""
        if self._watch_error is not None:
            raise self._watch_error
        failed = [applier.failure for applier in self.appliers if applier.failure is not None]
        if failed and len(failed) + sum(applier.status.detached for applier in self.appliers) == len(self.appliers):
            raise failed[0]
        for error in failed:
            if error.policy.reaction is Reaction.RETRY:
                raise error

    def _applied(self, applier: Applier, events: Mapping[ResolvedSync, int]) -> None:
        """Acknowledge what every destination holds (in the threads of the destinations)."""
        lowest = min([*self._floors, *(one.status.durable for one in self.appliers)])
        if lowest > self._acknowledged and self._stream is not None:
            reach(Failpoint.BEFORE_ACKNOWLEDGE)
            self._acknowledged = lowest
            self._stream.acknowledge(lowest)
        self._reporter.count(applier.pipeline_destination_id, events)

    def _close_when_asked(self, stream: ChangeStream) -> None:
        """End the stream when a stop or a restart is asked for; the reader may be waiting for a batch."""
        while not self._stopping.wait(0.1) and not self._restart.is_set():
            pass
        # What is captured may still be applied: the reader takes note of the request by itself when batches flow.
        stream.close()

    def _watch(self) -> None:
        """Keep an idle slot moving, and notice new tables (a thread of its own)."""
        session = SourceSession(self._spec.source, "watch")
        looked = reached = time.monotonic()
        heartbeat = self._spec.settings.heartbeat_seconds
        try:
            while not self._stopping.wait(min(1.0, heartbeat / 2)) and not self._restart.is_set():
                try:
                    idle = time.monotonic() - self._captured_at > heartbeat
                    self._reporter.source_lsn = session.wal_position(heartbeat=idle)
                    if time.monotonic() - looked > WATCH_SECONDS:
                        looked = time.monotonic()
                        self._look_for_tables(session)
                    reached = time.monotonic()
                except RosettaError as error:
                    log.warning("watch.failed", pipeline=self._spec.name, error=str(error))
                    if time.monotonic() - reached > UNREACHABLE_SECONDS:
                        # A link that swallows packets tells the engine nothing, so it would wait for ever.
                        self._watch_error = error
                        self._restart.set()
        finally:
            session.close()

    def _wait_for_left(self) -> None:
        """Begin anew when a destination that was left behind can be reached again (a thread of its own)."""
        while not self._stopping.wait(LEFT_SECONDS) and not self._restart.is_set():
            for destination in self._left:
                try:
                    destination.open()
                except RosettaError:
                    continue
                log.info("stream.destination_back", destination=destination.name)
                self._restart.set()
                return

    def _look_for_tables(self, session: SourceSession) -> None:
        found = session.tables(self._spec.source.tables)
        new = set(found.usable) - set(self._tables.usable)
        if new:
            log.info("watch.new_tables", pipeline=self._spec.name, tables=sorted(str(table) for table in new))
            self._restart.set()
        streamed = {table for each in self._attached for table in each.reads} & set(found.usable)
        lost = session.unpublished(streamed) | set(session.drift([found.usable[table] for table in sorted(streamed)]))
        if lost:
            # The new start loads them again: what happened to them meanwhile is not in the stream.
            log.warning("watch.unpublished", pipeline=self._spec.name, tables=sorted(str(table) for table in lost))
            self._restart.set()

    @property
    def captured(self) -> Position:
        """Position of the last batch that was captured."""
        return self._captured

    @property
    def acknowledged(self) -> Position:
        """Position that the source was told."""
        return self._acknowledged


def open_stream(
    spec: PipelineSpec,
    registry: SchemaRegistry,
    tables: Sequence[TableId],
    directory: Path,
    barriers: list[Position],
    *,
    stamped: bool,
) -> ChangeStream:
    """Start the source's capture engine; only the one that is chosen is loaded, and so a JVM only for Debezium."""
    sizes = replace(batch_settings(spec.settings), stamped=stamped)
    if spec.source.capture_engine == "pgoutput":
        from cdc_runner.capture.pgoutput.stream import PgoutputStream

        return PgoutputStream(
            spec.source,
            registry,
            tables,
            # A batch of at most a segment is shaped while the one before is applied.
            settings=replace(sizes, max_bytes=min(sizes.max_bytes, sizes.segment_bytes)),
            spill_directory=directory,
            barriers=barriers,
            origin=spec.settings.capture_origin,
            # Where heartbeats can be written they come first.
            idle_seconds=2 * spec.settings.heartbeat_seconds,
        )
    from cdc_runner.capture.debezium.engine import DebeziumStream

    return DebeziumStream(
        spec.source,
        registry,
        tables,
        settings=sizes,
        heap_megabytes=spec.settings.jvm_heap_megabytes,
        spill_directory=directory,
        barriers=barriers,
    )


def sync_shapers(syncs: Sequence[ResolvedSync], rows: SourceRows, *, events: bool) -> dict[TableId, TableShaper]:
    """Return what shapes the changes of the syncs that are neither plain copies nor have custom SQL, by target.

    Args:
        syncs: of one destination.
        rows: its session at the source.
        events: whether the destination keeps every event, and makes histories of them by itself.
    """
    copied = [sync for sync in syncs if not sync.shape.plain and sync.shape.custom_sql is None]
    return {
        sync.target: (HistoryShaper if sync.shape.mode is SyncMode.HISTORY and not events else SyncShaper)(sync, rows)
        for sync in copied
    }


def batch_settings(settings: PipelineSettings) -> BatchSettings:
    """Return the sizes of batches under a pipeline's settings."""
    return BatchSettings(
        max_events=settings.batch_max_rows,
        max_bytes=settings.batch_max_bytes,
        memory_bytes=settings.spill_bytes,
    )
