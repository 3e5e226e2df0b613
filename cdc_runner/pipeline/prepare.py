"""Bring destinations to the point where the stream can begin: tables made, initial loads done, positions known."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from cdc_runner.capture.publication import SnapshotSlot
from cdc_runner.dead_letter.parking import ParkingLot
from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.dead_letter.stock import take_stock
from cdc_runner.destinations.base import Destination, TableLoad
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.pipeline.joining import load_beside
from cdc_runner.pipeline.source import SourceSession, SourceTables
from cdc_runner.position import Position, format_lsn
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.columns import column_plan
from cdc_runner.shaping.custom_sync import CustomShaper
from cdc_runner.shaping.source_rows import SourceRows
from cdc_runner.spec import PipelineSpec, ResolvedSync

log = structlog.get_logger()

SLOT_WAIT_SECONDS = 20.0


@dataclass(slots=True)
class Attached:
    """A destination that takes part, with the tables that it is to hold."""

    destination: Destination
    pipeline_destination_id: int
    syncs: list[ResolvedSync]
    letters: DeadLetterQueue | None = None
    """Takes the rows that it refuses; None where there is no queue."""
    lot: ParkingLot | None = None
    """Where its batches are parked while it is away; None where they never are."""
    custom: Mapping[TableId, CustomShaper] = field(default_factory=dict)
    """By target, what computes the rows of the syncs with custom SQL."""

    @property
    def reads(self) -> set[TableId]:
        """The tables of the source whose changes it needs."""
        joined = {table for shaper in self.custom.values() for table in shaper.reads}
        return {sync.source for sync in self.syncs} | joined

    def durable(self) -> Position | None:
        """Return up to where everything is at the destination, or parked for it."""
        position = self.destination.position()
        span = None if self.lot is None else self.lot.span
        return position if position is None or span is None or not span.follows(position) else span.through


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the initial load tells how far it is."""

    state: Callable[[int, ResolvedSync, str, int | None, int | None], None]
    """pipeline destination id, sync, load state, snapshot LSN, rows so far."""


def wait_for_slot(source: SourceSession, stopping: threading.Event) -> None:
    """Wait until a slot that exists has no reader: that of a process that just died is noticed by the server soon.

    Raises:
        RosettaError: SLOT_IN_USE when it is still read after 20 s.
    """
    deadline = time.monotonic() + SLOT_WAIT_SECONDS
    while not stopping.is_set():
        slot = source.slot()
        if slot is None or not slot.active:
            return
        if time.monotonic() > deadline:
            source.usable_slot()
        stopping.wait(0.2)


def floors_of(source: SourceSession, known: Sequence[Position], stopping: threading.Event) -> list[Position]:
    """Return from where the slot must serve destinations that cannot be reached now.

    Of their positions the config database hears up to a second late. The slot was never released beyond what each of
    them holds or has parked; what is lost all the same is told when it is back, and holds up no other until then.

    Args:
        source: an open session.
        known: their positions as the config database has them.
        stopping: ends the wait for the slot's last reader.

    Raises:
        RosettaError: as `wait_for_slot`.
    """
    if not known:
        return []
    wait_for_slot(source, stopping)
    slot = source.slot()
    released = Position(0 if slot is None else slot.confirmed_lsn or 0)
    return [max(one, released) for one in known]


def prepare(
    spec: PipelineSpec,
    source: SourceSession,
    tables: SourceTables,
    attached: Sequence[Attached],
    floors: Sequence[Position],
    progress: Progress,
    stopping: threading.Event,
) -> None:
    """Make sure that each destination holds its tables at a known position, from which the slot can serve it.

    Args:
        spec: the pipeline.
        source: an open session.
        tables: what the source offers.
        attached: opened destinations.
        floors: positions of destinations that cannot be reached now, which the slot must still serve.
        progress: told of the load.
        stopping: ends a load between two chunks.

    Raises:
        RosettaError: SLOT_MISSING or SLOT_AHEAD when changes are lost, and the kinds of both sides.
    """
    wait_for_slot(source, stopping)
    held = _slot_serves(spec, source, attached, floors)
    for each in attached:
        if each.lot is not None and each.lot.span is not None and each.durable() == each.destination.position():
            # The destination holds them already, or the slot serves it from where it is.
            each.lot.clear()
    for each in attached:
        each.destination.let_go({sync.target for sync in each.syncs})
    loads = {id(each): _plan(source, tables, each) for each in attached}
    if held and (floors or any(each.durable() is not None for each in attached)):
        # There is a stream that would have to wait.
        most = spec.settings.load_beside_megabytes
        loads = {id(each): load_beside(source, each.destination, loads[id(each)], most) for each in attached}
    if not held or any(loads.values()):
        _load(spec, attached, loads, progress, stopping, create=not held)
    if stopping.is_set():
        return
    confirmed = source.usable_slot().confirmed_lsn or 0
    for each in attached:
        if each.destination.position() is None:
            each.destination.start_at(Position(confirmed))


def _slot_serves(
    spec: PipelineSpec, source: SourceSession, attached: Sequence[Attached], floors: Sequence[Position]
) -> bool:
    """Tell whether there is a slot; it must be able to serve every position from which a destination goes on.

    Raises:
        RosettaError: SLOT_MISSING or SLOT_AHEAD.
    """
    ends = [(each, position) for each in attached if (position := each.durable()) is not None]
    positions = [*(position for _, position in ends), *floors]
    if source.slot() is None:
        if not positions:
            return False
        lowest = min(positions)
        raise RosettaError(
            ErrorKind.SLOT_MISSING,
            f"replication slot {spec.source.slot} is gone: changes since {format_lsn(lowest.lsn)} are lost",
        )
    confirmed = source.usable_slot().confirmed_lsn or 0
    for each, one in ends:
        if confirmed > one.lsn:
            parked = "" if each.lot is None else f" (nor are they parked in Redis at {each.lot.store.place})"
            raise RosettaError(
                ErrorKind.SLOT_AHEAD,
                f"replication slot {spec.source.slot} begins at {format_lsn(confirmed)}, but destination "
                f"{each.destination.name} ends at {format_lsn(one.lsn)}: the changes in between are lost{parked}",
            )
    for one in positions:
        if source.wal_position() < one.lsn:
            raise RosettaError(
                ErrorKind.SLOT_AHEAD,
                f"a destination is at {format_lsn(one.lsn)}, which the source has not reached: "
                "the source was restored, or is another server",
            )
    return True


def refuse_drift(pipeline: str, attached: Sequence[Attached], drift: Mapping[TableId, str]) -> None:
    """Stop when the publication leaves something out of the tables; they are loaded again once it does not.

    Raises:
        RosettaError: PUBLICATION_DRIFT, naming what is left out.
    """
    if not drift:
        return
    load_lost_again(pipeline, attached, set(drift))
    reasons = sorted(set(drift.values()))
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    raise RosettaError(ErrorKind.PUBLICATION_DRIFT, "; ".join(reasons[:5]) + more)


def load_lost_again(pipeline: str, attached: Sequence[Attached], lost: set[TableId]) -> None:
    """Load tables again of which the publication left something out: those changes are not in the stream."""
    for each in attached:
        ready = {one.sync.target for one in each.destination.table_states() if one.ready}
        for sync in each.syncs:
            read = each.custom[sync.target].reads if sync.target in each.custom else {sync.source}
            if not lost.isdisjoint(read) and sync.target in ready:
                log.warning("pipeline.unpublished", pipeline=pipeline, table=str(sync.source))
                each.destination.load_again(sync.target)


def _plan(source: SourceSession, tables: SourceTables, each: Attached) -> list[TableLoad]:
    """Make the targets that are not there, and return what has to be loaded into them; committed."""
    wanted = [(sync, tables.usable[sync.source]) for sync in each.syncs]
    _check_modes(each)
    _check_filters(source, [one for one in wanted if one[0].target not in each.custom])
    return each.destination.plan_load(source.connection(), wanted, each.custom)


def _check_modes(each: Attached) -> None:
    """Make sure that the type of destination can keep what the syncs ask for.

    Raises:
        RosettaError: CONFIG_INVALID, naming the table.
    """
    for sync in each.syncs:
        if each.destination.takes_events and sync.shape.custom_sql is not None:
            raise RosettaError(
                ErrorKind.CONFIG_INVALID,
                f"destination {each.destination.name}: table {sync.source} has custom SQL, "
                "which is for PostgreSQL destinations: its rows are computed in the transaction that stores them",
            )


def _check_filters(source: SourceSession, wanted: Sequence[tuple[ResolvedSync, TableSchema]]) -> None:
    """Make sure that the source can compute the filters.

    Raises:
        RosettaError: CONFIG_INVALID, naming the table, and the source kinds.
    """
    rows = SourceRows(source.spec.address, source.spec.name)
    try:
        for sync, schema in wanted:
            plan = column_plan(sync, schema)
            if plan is not None and plan.filter is not None:
                rows.check(plan.source, plan.filter, plan.deciding)
    finally:
        rows.close()


def _load(
    spec: PipelineSpec,
    attached: Sequence[Attached],
    loads: Mapping[int, Sequence[TableLoad]],
    progress: Progress,
    stopping: threading.Event,
    *,
    create: bool,
) -> None:
    """Load everything that is planned under one new snapshot: the slot's own if it is created now."""
    name = spec.source.slot if create else f"{spec.source.slot[:40]}_load_{os.getpid()}"
    failures: list[BaseException] = []
    with SnapshotSlot(spec.source.address, name, temporary=not create) as snapshot:
        log.info("load.snapshot", pipeline=spec.name, lsn=format_lsn(snapshot.lsn), slot=name)
        threads = []
        for each in attached:
            planned = [_at(one, Position(snapshot.lsn)) for one in loads[id(each)]]
            if create:
                each.destination.start_at(Position(snapshot.lsn))
            if not planned:
                continue
            each.destination.remember_all([one.state for one in planned if not one.resumed])
            threads.append(
                threading.Thread(
                    target=_run_load, args=(spec, each, planned, snapshot, progress, stopping, failures), daemon=True
                )
            )
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for each in attached:
        each.destination.reload_states()
    if failures:
        raise failures[0]


def _run_load(
    spec: PipelineSpec,
    each: Attached,
    planned: Sequence[TableLoad],
    snapshot: SnapshotSlot,
    progress: Progress,
    stopping: threading.Event,
    failures: list[BaseException],
) -> None:
    copied: dict[TableId, int] = {}
    lock = threading.Lock()
    by_target = {one.state.sync.target: one for one in planned}
    for one in planned:
        copied[one.state.sync.target] = sum(chunk.row_count or 0 for chunk in one.chunks)
        progress.state(each.pipeline_destination_id, one.state.sync, "LOADING", one.state.snapshot.lsn, None)

    def told(sync: ResolvedSync, rows: int) -> None:
        with lock:
            copied[sync.target] += rows
            total = copied[sync.target]
        snapshot_lsn = by_target[sync.target].state.snapshot.lsn
        progress.state(each.pipeline_destination_id, sync, "LOADING", snapshot_lsn, total)

    try:
        if each.letters is not None and isinstance(each.destination, PostgresDestination):
            _clear_queue(each.destination, spec.identity, each.letters)
            each.destination.load_sink = each.letters
        elif isinstance(each.destination, SnowflakeDestination):
            each.destination.load_sink = each.letters
        each.destination.load(spec.source.address, planned, snapshot, stopping=stopping, progress=told)
    except BaseException as error:
        failures.append(error)


def _clear_queue(destination: PostgresDestination, pipeline: str, letters: DeadLetterQueue) -> None:
    """Remove what a load that was killed left in the queue, so that it does not take the room of others."""
    try:
        take_stock(destination, pipeline, letters)
    except RosettaError as error:
        if error.kind is not ErrorKind.DEAD_LETTER_UNAVAILABLE:
            raise
        # The queue is needed only when a row is refused, which then says what is wrong with it.
        log.warning("load.queue_unavailable", destination=destination.name, error=str(error))
        if not destination.is_open:
            destination.open()


def _at(load: TableLoad, snapshot: Position) -> TableLoad:
    """Return a load with its snapshot; one that is resumed keeps the first, so that the stream covers both."""
    if load.resumed:
        return load
    return replace(load, state=replace(load.state, snapshot=snapshot))
