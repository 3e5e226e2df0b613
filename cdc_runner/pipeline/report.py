"""What a pipeline process writes into the config database: in a thread, so that an outage there stops nothing here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cdc_runner.catalog import dead_letters as letters
from cdc_runner.catalog import leases, reporting, table_reports
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.leases import Lease
from cdc_runner.catalog.table_reports import TableReport
from cdc_runner.errors import RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.evolution import SchemaChange
from cdc_runner.spec import PipelineSpec, ResolvedSync

if TYPE_CHECKING:
    from cdc_runner.pipeline.stream import StreamRun

log = structlog.get_logger()

PERIOD_SECONDS = 1.0


class Reporter:
    """Collects positions, counts and events, and writes them about once a second.

    What cannot be written waits for the config database; counts are added up meanwhile. A process that another has
    replaced writes nothing any more: what it sees is the other's work, not a fault.
    """

    def __init__(self, catalog: Engine, spec: PipelineSpec, lease: Lease) -> None:
        """Args:
        catalog: the config database.
        spec: the pipeline.
        lease: the right to run it, looked up before each write.
        """
        self._catalog = catalog
        self._spec = spec
        self._lease = lease
        self._lock = threading.Lock()
        self._counts: dict[int, dict[ResolvedSync, int]] = {}
        self._queue: list[Callable[[Session], object]] = []
        self._run: StreamRun | None = None
        self._errors: dict[int, str | None] = {}
        self._applied: dict[int, tuple[int, float]] = {}
        self._stopping = threading.Event()
        self.source_lsn: int | None = None
        self._thread = threading.Thread(target=self._work, name="report", daemon=True)
        self._thread.start()

    def attach(self, run: StreamRun) -> None:
        """Report on a run of the stream from now on."""
        self._run = run

    def detach(self) -> None:
        """The run has ended; its last positions are written once more."""
        run, self._run = self._run, None
        if run is not None:
            self.later(lambda session: self._positions(session, run))

    def count(self, pipeline_destination_id: int, events: Mapping[ResolvedSync, int]) -> None:
        """Add applied events."""
        with self._lock:
            counts = self._counts.setdefault(pipeline_destination_id, {})
            for sync, number in events.items():
                counts[sync] = counts.get(sync, 0) + number

    def begins_at(self, pipeline_destination_id: int, position: Position | None) -> None:
        """Write at once where a destination stands of which no position is known yet.

        Later it might be away at a start, and be taken for a new one that the slot need not wait for.
        """
        if position is None:
            return
        try:
            with session_scope(self._catalog) as session:
                if not leases.holds(session, self._lease) or reporting.applied_lsn(session, pipeline_destination_id):
                    return
                reporting.report_position(
                    session,
                    pipeline_id=self._spec.id,
                    pipeline_destination_id=pipeline_destination_id,
                    captured_lsn=position.lsn,
                    applied_lsn=position.lsn,
                    acknowledged_lsn=position.lsn,
                )
        except RosettaError as error:
            log.warning("report.failed", pipeline=self._spec.name, error=str(error))

    def later(self, write: Callable[[Session], object]) -> None:
        """Write something as soon as the config database takes it, in order."""
        with self._lock:
            self._queue.append(write)

    def state(self, status: reporting.State, error: str | None = None) -> None:
        """Report the pipeline's state."""
        self.later(lambda session: reporting.report_state(session, self._spec.id, status, error))

    def tables(self, pipeline_destination_id: int, reports: Sequence[TableReport]) -> None:
        """Report where tables stand."""
        self.later(lambda session: table_reports.report_table_states(session, pipeline_destination_id, reports))

    def table(
        self, pipeline_destination_id: int, sync: ResolvedSync, state: str, snapshot_lsn: int | None, rows: int | None
    ) -> None:
        """Report the load state of a table."""
        report = TableReport(
            sync,
            state,  # type: ignore[arg-type]  # one of the literals; the callers' protocol says str
            snapshot_lsn=snapshot_lsn,
            loaded_rows=rows,
        )
        self.tables(pipeline_destination_id, [report])

    def objects(self, pipeline_destination_id: int, syncs: Sequence[ResolvedSync], makes: frozenset[str]) -> None:
        """Report what there is of targets at their destination."""
        self.later(lambda session: table_reports.report_objects(session, pipeline_destination_id, syncs, makes))

    def only(self, pipeline_destination_id: int, syncs: Sequence[ResolvedSync]) -> None:
        """Report which tables a destination takes; rows of others are removed."""
        self.later(lambda session: table_reports.forget_tables(session, pipeline_destination_id, syncs))

    def destination_error(self, pipeline_destination_id: int, error: RosettaError) -> None:
        """Report that a destination cannot be used."""
        self.later(lambda session: reporting.report_destination_error(session, pipeline_destination_id, error))

    def dead_letters(self, pipeline_destination_id: int, counts: Sequence[letters.DeadLetterCount]) -> None:
        """Report what waits in the dead-letter queue."""
        settings = self._spec.settings
        age, most = settings.dead_letter_alert_seconds, settings.dead_letter_max_entries
        self.later(
            lambda session: letters.report_tables(
                session, pipeline_destination_id, counts, alert_age_seconds=age, max_entries=most
            )
        )

    def dead_letter_queue(self, pipeline_destination_id: int, state: letters.QueueState, problem: str | None) -> None:
        """Report whether the dead-letter queue can be used."""
        self.later(lambda session: letters.report_queue(session, pipeline_destination_id, state, problem))

    def dead_letters_discarded(self, pipeline_destination_id: int, table: str, entries: int, why: str) -> None:
        """Report dead letters that were removed without being applied."""
        self.later(lambda session: letters.record_discard(session, pipeline_destination_id, table, entries, why))

    def dead_letter_queue_restarted(self, pipeline_destination_id: int, place: str) -> None:
        """Report that the Redis of the dead-letter queue was restarted."""
        self.later(lambda session: letters.record_restart(session, pipeline_destination_id, place))

    def parked(self, pipeline_destination_id: int, batches: int, size: int) -> None:
        """Report how many batches and bytes are parked for a destination that is away."""
        self.later(lambda session: letters.report_parked(session, pipeline_destination_id, batches, size))

    def schema_change(
        self, sync: ResolvedSync, old: TableSchema, new: TableSchema, changes: Sequence[SchemaChange]
    ) -> None:
        """Report a change of a source table's schema: one version, whatever number of changes it holds."""
        if changes:
            self.later(partial(self._record_change, sync.source, old, new))

    def new_tables(self, schemas: Sequence[TableSchema]) -> None:
        """Report the schemas of tables that are replicated; those that are known are left alone."""
        self.later(partial(self._record_new, schemas))

    def _record_new(self, schemas: Sequence[TableSchema], session: Session) -> None:
        known = reporting.known_tables(session, self._spec.source.id)
        for schema in schemas:
            if schema.table not in known:
                reporting.record_schema_change(session, self._spec.source.id, schema.table, None, None, schema)

    def _record_change(self, table: TableId, old: TableSchema, new: TableSchema, session: Session) -> None:
        reporting.record_schema_change(session, self._spec.source.id, table, None, old, new)

    def flush(self, timeout_seconds: float = 5.0) -> None:
        """Write what is waiting, if the config database takes it in time, and end the thread."""
        self._stopping.set()
        self._thread.join(timeout_seconds)

    def _work(self) -> None:
        while True:
            stopped = self._stopping.wait(PERIOD_SECONDS)
            try:
                self._write()
            except RosettaError as error:
                log.warning("report.failed", pipeline=self._spec.name, error=str(error))
            except Exception as error:
                # At the top of a named loop: reporting must not end, and replicating does not depend on it.
                log.warning("report.failed", pipeline=self._spec.name, error=f"{type(error).__name__}")
            if stopped:
                return

    def _write(self) -> None:
        with self._lock:
            queue, counts = self._queue, self._counts
            self._queue, self._counts = [], {}
        run = self._run
        try:
            with session_scope(self._catalog) as session:
                if not leases.holds(session, self._lease):
                    log.warning("report.lease_lost", pipeline=self._spec.name)
                    return
                for write in queue:
                    write(session)
                for identifier, events in counts.items():
                    table_reports.report_flow(session, self._spec.id, identifier, events)
                if run is not None:
                    self._positions(session, run)
        except BaseException:
            with self._lock:
                self._queue = queue + self._queue
                for identifier, events in counts.items():
                    merged = self._counts.setdefault(identifier, {})
                    for sync, number in events.items():
                        merged[sync] = merged.get(sync, 0) + number
            raise

    def _positions(self, session: Session, run: StreamRun) -> None:
        now = time.time()
        for applier in run.appliers:
            status = applier.status
            behind = self.source_lsn is not None and self.source_lsn > status.position.lsn
            lag_ms = status.lag_ms
            stale = 3 * self._spec.settings.heartbeat_seconds
            if behind and status.commit_time and now - status.applied_at > stale:
                lag_ms = round((now - status.commit_time) * 1000)
            reporting.report_position(
                session,
                pipeline_id=self._spec.id,
                pipeline_destination_id=applier.pipeline_destination_id,
                captured_lsn=max(run.captured.lsn, status.position.lsn),
                applied_lsn=status.position.lsn,
                acknowledged_lsn=run.acknowledged.lsn,
                lag_bytes=None if self.source_lsn is None else max(0, self.source_lsn - status.position.lsn),
                lag_ms=lag_ms,
                commit_time=datetime.fromtimestamp(status.commit_time, UTC) if status.commit_time else None,
                batch_ms=self._batch_ms(applier.pipeline_destination_id, status.batches, status.apply_seconds),
            )
            error = status.error
            text = None if error is None else error.message
            if self._errors.get(applier.pipeline_destination_id, "") != text:
                if error is None:
                    reporting.clear_destination_error(session, applier.pipeline_destination_id)
                else:
                    reporting.report_destination_error(session, applier.pipeline_destination_id, error)
                self._errors[applier.pipeline_destination_id] = text

    def _batch_ms(self, pipeline_destination_id: int, batches: int, apply_seconds: float) -> int | None:
        """Return the mean time of the batches since the last report; None when there was none."""
        known, known_seconds = self._applied.get(pipeline_destination_id, (0, 0.0))
        if batches < known:
            # Another run of the stream counts from the start.
            known, known_seconds = 0, 0.0
        self._applied[pipeline_destination_id] = (batches, apply_seconds)
        return round(1000 * (apply_seconds - known_seconds) / (batches - known)) if batches > known else None
