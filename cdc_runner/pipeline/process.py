"""The pipeline process: lease, start, streaming with new starts, stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import Engine

from cdc_runner.catalog import leases, reporting
from cdc_runner.catalog.database import open_catalog, session_scope
from cdc_runner.catalog.dead_letters import parked_batches
from cdc_runner.catalog.environment import read_environment
from cdc_runner.catalog.pipelines import desired_status, load_pipeline, set_status
from cdc_runner.catalog.table_reports import TableReport
from cdc_runner.dead_letter.parking import ParkingLot
from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.destinations.base import Destination
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.registry import destination_type
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.errors import ErrorKind, Reaction, RosettaError
from cdc_runner.pipeline.custom import custom_shapers
from cdc_runner.pipeline.dead_letters import letter_queue
from cdc_runner.pipeline.history import check_history
from cdc_runner.pipeline.joining import table_reports
from cdc_runner.pipeline.parking import parking_lot
from cdc_runner.pipeline.prepare import (
    Attached,
    Progress,
    floors_of,
    load_lost_again,
    prepare,
    refuse_drift,
    wait_for_slot,
)
from cdc_runner.pipeline.report import Reporter
from cdc_runner.pipeline.source import SourceSession, SourceTables, resolve_syncs
from cdc_runner.pipeline.stream import Outcome, StreamRun
from cdc_runner.position import Position
from cdc_runner.spec import DestinationSpec, PipelineSpec, ResolvedSync

log = structlog.get_logger()

EXIT_STOPPED = 0
EXIT_LEASE_HELD = 73
EXIT_RETRY = 75
EXIT_NEEDS_PERSON = 78

_KEEPING = (PostgresDestination, SnowflakeDestination)
"""Destinations that put rows aside."""

LEASE_SECONDS = 30.0
RENEW_SECONDS = 5.0


class LeaseKeeper:
    """Holds the pipeline's lease and renews it; asks the process to stop when the lease is lost."""

    def __init__(self, catalog: Engine, pipeline_id: int, holder: str, stopping: threading.Event) -> None:
        self._catalog = catalog
        self._stopping = stopping
        self._ended = threading.Event()
        with session_scope(catalog) as session:
            lease = leases.acquire(session, pipeline_id, holder, LEASE_SECONDS)
            holding = None if lease is not None else leases.current_holder(session, pipeline_id)
            who = "another runner" if holding is None else f"{holding.holder} on {holding.host}"
        if lease is None:
            raise RosettaError(ErrorKind.LEASE_HELD, f"the pipeline is run by {who}")
        self.lease = lease
        self.lost = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                with session_scope(self._catalog) as session:
                    held = leases.renew(session, self.lease, LEASE_SECONDS)
            except RosettaError as error:
                # Destinations fence by epoch, so going on through an outage of the config database is safe.
                log.warning("lease.not_renewed", error=str(error))
                continue
            if not held:
                log.error("lease.lost")
                self.lost = True
                self._stopping.set()
                return

    def replaced(self) -> bool:
        """Tell whether another process runs the pipeline by now; False when the config database does not say."""
        try:
            with session_scope(self._catalog) as session:
                self.lost = self.lost or not leases.holds(session, self.lease)
        except RosettaError as error:
            log.warning("lease.not_read", error=str(error))
        return self.lost

    def release(self) -> None:
        """Give the lease back."""
        self._ended.set()
        self._thread.join(10.0)
        try:
            with session_scope(self._catalog) as session:
                leases.release(session, self.lease)
        except RosettaError as error:
            log.warning("lease.not_released", error=str(error))


def run(pipeline_id: int, holder: str) -> int:
    """Run a pipeline until it is asked to stop; return the exit code of the process."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    threading.Thread(target=_stop_at_end_of_input, args=(stopping,), name="parent", daemon=True).start()
    catalog = open_catalog(application_name=f"rosetta pipeline {pipeline_id}")
    try:
        keeper = LeaseKeeper(catalog, pipeline_id, holder, stopping)
    except RosettaError as error:
        log.warning("pipeline.not_started", pipeline=pipeline_id, error=str(error))
        return EXIT_LEASE_HELD if error.kind is ErrorKind.LEASE_HELD else EXIT_RETRY
    try:
        return _run_held(catalog, pipeline_id, stopping, keeper)
    finally:
        keeper.release()


def _run_held(catalog: Engine, pipeline_id: int, stopping: threading.Event, keeper: LeaseKeeper) -> int:
    reporter: Reporter | None = None
    try:
        with session_scope(catalog) as session:
            spec = load_pipeline(session, pipeline_id)
        reporter = Reporter(catalog, spec, keeper.lease)
        PipelineRun(spec, reporter, stopping, catalog).run()
        if keeper.lost:
            return EXIT_RETRY
        reporter.state("PAUSED")
        return EXIT_STOPPED
    except RosettaError as error:
        log.error("pipeline.failed", pipeline=pipeline_id, kind=error.kind.value, error=str(error))
        # To one that was replaced the slot is in use, or ahead by itself: the other's work, not a fault for a person.
        if keeper.replaced():
            return EXIT_RETRY
        _report_failure(catalog, reporter, pipeline_id, error)
        return EXIT_RETRY if error.policy.reaction is Reaction.RETRY else EXIT_NEEDS_PERSON
    finally:
        if reporter is not None:
            reporter.flush()


def _report_failure(catalog: Engine, reporter: Reporter | None, pipeline_id: int, error: RosettaError) -> None:
    text = f"{error.message} - {error.policy.solution}"
    if reporter is not None:
        reporter.state("ERROR", text)
        return
    try:
        with session_scope(catalog) as session:
            reporting.report_state(session, pipeline_id, "ERROR", text)
    except RosettaError as failure:
        log.warning("report.failed", error=str(failure))


def _stop_at_end_of_input(stopping: threading.Event) -> None:
    """The supervisor holds the other end of our input: when it is gone, so are we."""
    try:
        while os.read(sys.stdin.fileno(), 4096):
            pass
    except (OSError, ValueError):
        return
    stopping.set()


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A destination that could not be reached when the stream began; not opened.

    Attributes:
        destination: to be tried again.
        position: from where the slot must serve it; None for a new one.
    """

    destination: Destination
    position: Position | None


class PipelineRun:
    """One pipeline in this process, through as many starts of its stream as it takes."""

    def __init__(self, spec: PipelineSpec, reporter: Reporter, stopping: threading.Event, catalog: Engine) -> None:
        self._spec = spec
        self._reporter = reporter
        self._stopping = stopping
        self._catalog = catalog
        self._directory = spill_directory(spec)
        self._source = SourceSession(spec.source, spec.identity)

    def run(self) -> None:
        """Run until asked to stop.

        Raises:
            RosettaError: what ended it.
        """
        log.info("pipeline.starting", pipeline=self._spec.name, generation=self._spec.generation)
        if self._refresh_wanted():
            self._refresh()
        while not self._stopping.is_set():
            outcome = self._run_once()
            log.info("pipeline.stream_ended", pipeline=self._spec.name, outcome=outcome.value)

    def _refresh_wanted(self) -> bool:
        with session_scope(self._catalog) as session:
            return desired_status(session, self._spec.id) == "REFRESH"

    def _refresh(self) -> None:
        """Forget all positions and drop the slot, so that every table is copied again under a new one.

        Raises:
            RosettaError: a destination cannot be reached; nothing was changed there, and the request stands.
        """
        attached, _ = self._attach(self._source.tables(self._spec.source.tables))
        try:
            if len(attached) < len(self._spec.destinations):
                raise RosettaError(
                    ErrorKind.DESTINATION_UNAVAILABLE,
                    "a refresh needs every destination of the pipeline, and one cannot be reached",
                )
            wait_for_slot(self._source, self._stopping)
            for each in attached:
                each.destination.reset()
                self._report_void(each)
                if each.lot is not None:
                    each.lot.clear()
                    self._reporter.parked(each.pipeline_destination_id, 0, 0)
            self._source.drop_slot()
        finally:
            for each in attached:
                each.destination.close()
        # From here on the pipeline is one that was never loaded; a kill does not repeat the refresh.
        with session_scope(self._catalog) as session:
            set_status(session, self._spec.id, "START")
        log.info("pipeline.refreshed", pipeline=self._spec.name)

    def _report_void(self, each: Attached) -> None:
        if isinstance(each.destination, _KEEPING) and each.destination.diversion.superseded:
            count = each.destination.diversion.superseded
            why = "the pipeline is copied anew"
            self._reporter.dead_letters_discarded(each.pipeline_destination_id, "of this destination", count, why)

    def _run_once(self) -> Outcome:
        tables = self._source.tables(self._spec.source.tables)
        if not tables.usable:
            reasons = "; ".join(f"{table}: {reason}" for table, reason in sorted(tables.excluded.items()))
            raise RosettaError(
                ErrorKind.SOURCE_TABLE_UNSUPPORTED,
                f"source {self._spec.source.name} offers no table that can be replicated. {reasons}".strip(),
            )
        attached, left = self._attach(tables)
        try:
            for each in attached:
                if not each.destination.takes_events:
                    written = {sync.target for sync in each.syncs}
                    to = next(one for one in self._spec.destinations if one.id == each.pipeline_destination_id)
                    each.custom = custom_shapers(self._spec, to, each.syncs, tables.usable, written)
            return self._stream(tables, attached, left)
        finally:
            for shaper in [one for each in attached for one in each.custom.values()]:
                shaper.close()
            for one in [*(each.destination for each in attached), *(each.destination for each in left)]:
                one.close()

    def _stream(self, tables: SourceTables, attached: Sequence[Attached], left: Sequence[LeftBehind]) -> Outcome:
        known = [one.position for one in left if one.position is not None]
        floors = floors_of(self._source, known, self._stopping)
        held = [one for one in (each.durable() for each in attached) if one is not None]
        check_history(self._catalog, self._spec, [*held, *floors])
        published = {table for each in attached for table in each.reads}
        refuse_drift(
            self._spec.name, attached, self._source.drift([tables.usable[table] for table in sorted(published)])
        )
        load_lost_again(self._spec.name, attached, self._source.unpublished(published))
        self._source.publish([tables.usable[table] for table in sorted(published)])
        self._report_tables(attached, tables)
        self._reporter.new_tables([tables.usable[table] for table in sorted(published)])
        progress = Progress(self._reporter.table)
        self._reporter.state("RUNNING")
        prepare(self._spec, self._source, tables, attached, floors, progress, self._stopping)
        if self._stopping.is_set():
            return Outcome.STOPPED
        for each in attached:
            identifier = each.pipeline_destination_id
            self._reporter.begins_at(identifier, each.destination.position())
            self._reporter.tables(identifier, table_reports(each.destination, each.syncs))
            self._reporter.objects(identifier, each.syncs, each.destination.makes)
        run = StreamRun(
            self._spec,
            self._source,
            tables,
            attached,
            floors,
            self._reporter,
            self._stopping,
            self._directory,
            self._catalog,
            left=[one.destination for one in left],
        )
        return run.run()

    def _attach(self, tables: SourceTables) -> tuple[list[Attached], list[LeftBehind]]:
        """Open the destinations; those that cannot be reached now are left behind at their last known position."""
        attached: list[Attached] = []
        left: list[LeftBehind] = []
        failures: list[RosettaError] = []
        for spec in self._spec.destinations:
            destination = destination_type(spec)(
                spec,
                self._spec.identity,
                self._spec.settings,
                directory=self._directory,
                fetch=SourceSession(self._spec.source, "fetch").fetch,
                source=SourceSession(self._spec.source, "types").connection,
                on_schema_change=self._reporter.schema_change,
            )
            syncs = resolve_syncs(spec, tables)
            try:
                destination.open()
            except RosettaError as error:
                failures.append(error)
                self._reporter.destination_error(spec.id, error)
                left.append(LeftBehind(destination, self._floor(spec)))
                continue
            letters = self._letters(spec, destination)
            attached.append(Attached(destination, spec.id, syncs, letters, self._lot(spec)))
        if not attached:
            raise failures[0]
        return attached, left

    def _floor(self, spec: DestinationSpec) -> Position | None:
        """Return from where the slot must serve a destination that cannot be asked now; None for a new one."""
        known = self._known_position(spec.id)
        if known is None:
            return None
        lot = self._lot(spec)
        return known if lot is None or lot.span is None else max(known, lot.span.through)

    def _lot(self, spec: DestinationSpec) -> ParkingLot | None:
        """Return where a destination's batches are parked; None when nothing is and nothing will be.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE, something may be parked and cannot be read now.
        """
        if any(sync.shape.custom_sql is not None for sync in spec.syncs):
            # Rows of custom SQL are computed with what the destination holds.
            return None
        lot = parking_lot(self._spec, spec)
        if spec.type != "postgres" or not lot.store.configured:
            return None
        with session_scope(self._catalog) as session:
            wanted = self._spec.settings.park_after_seconds > 0 or parked_batches(session, spec.id) > 0
        if not wanted:
            return None
        lot.load()
        return lot

    def _letters(self, spec: DestinationSpec, destination: Destination) -> DeadLetterQueue | None:
        if not isinstance(destination, _KEEPING):
            return None
        letters = letter_queue(self._spec, spec)
        return letters if letters.store.configured else None

    def _known_position(self, pipeline_destination_id: int) -> Position | None:
        with session_scope(self._catalog) as session:
            lsn = reporting.applied_lsn(session, pipeline_destination_id)
        return None if lsn is None else Position(lsn)

    def _report_tables(self, attached: Sequence[Attached], tables: SourceTables) -> None:
        for each in attached:
            self._reporter.only(each.pipeline_destination_id, each.syncs)
            reports = table_reports(each.destination, each.syncs)
            for table, reason in tables.excluded.items():
                reports.append(TableReport(ResolvedSync(None, table, table), "EXCLUDED", reason))
            self._reporter.tables(each.pipeline_destination_id, reports)


def spill_directory(spec: PipelineSpec) -> Path:
    """Return the pipeline's directory for short-lived files, made and emptied of what a killed process left."""
    directory = read_environment().home / "spill" / str(spec.id)
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.iterdir():
        if left.suffix in {".part", ".copy"}:
            left.unlink(missing_ok=True)
    return directory
