"""Backfills while a stream runs: one at a time for each destination, beside the threads that apply."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cdc_runner.backfill.turn import Turn, TurnEnd
from cdc_runner.backfill.window import Side, Work
from cdc_runner.catalog import backfills
from cdc_runner.catalog.backfills import Task
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.events import record_event
from cdc_runner.catalog.rebuilds import note_kept
from cdc_runner.catalog.table_reports import loaded_rows
from cdc_runner.catalog.wal_ladder import backfills_paused
from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.postgres.shadow_register import Shadow
from cdc_runner.errors import ErrorKind, Reaction, RosettaError
from cdc_runner.pipeline.applier import Applier
from cdc_runner.pipeline.dead_letters import letter_queue
from cdc_runner.pipeline.joining import JoiningTables, Tell
from cdc_runner.pipeline.prepare import Attached
from cdc_runner.pipeline.rebuild import Rebuild, drop_left, kept_at
from cdc_runner.pipeline.source import SourceSession
from cdc_runner.schema import TableId
from cdc_runner.spec import PipelineSpec, ResolvedSync

log = structlog.get_logger()

POLL_SECONDS = 0.5
RETRY_SECONDS = 5.0
STOP_SECONDS = 20.0

_T = TypeVar("_T")


@dataclass(slots=True)
class _Place:
    """A destination with what is done for it now."""

    applier: Applier
    syncs: Mapping[TableId, ResolvedSync]
    letters: DeadLetterQueue | None = None
    task: Task | None = None
    work: Work = field(default_factory=Work)
    thread: threading.Thread | None = None
    left_at: float = 0.0
    noted: bool = False

    @property
    def busy(self) -> bool:
        """Whether a turn is at work."""
        return self.thread is not None and self.thread.is_alive()


class BackfillKeeper:
    """Works off the queue of a pipeline's backfills while its stream runs, in threads of its own."""

    def __init__(
        self,
        catalog: Engine,
        spec: PipelineSpec,
        attached: Sequence[Attached],
        appliers: Sequence[Applier],
        tell: Tell,
    ) -> None:
        """Args:
        catalog: the config database.
        spec: the pipeline.
        attached: the destinations of this run of the stream.
        appliers: theirs, in the same order.
        tell: takes where tables that join stand.
        """
        self._catalog = catalog
        self._spec = spec
        self._places = {
            each.pipeline_destination_id: _Place(applier, {sync.target: sync for sync in each.syncs})
            for each, applier in zip(attached, appliers, strict=True)
        }
        self._session = SourceSession(spec.source, "backfill")
        self._joining = JoiningTables(catalog, spec, tell)
        self._nudging = threading.Lock()
        self._paused: str | None = None
        self._seen: set[int] = set()
        self._not_before: dict[int, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backfill", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is at work is left as it is, to be gone on with by the next run."""
        self._stopping.set()
        for place in self._places.values():
            place.work.stop()
        self._thread.join(STOP_SECONDS)
        for place in self._places.values():
            if place.thread is not None:
                place.thread.join(STOP_SECONDS)
        self._session.close()

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                self._look()
            except RosettaError as error:
                log.warning("backfill.queue_not_read", pipeline=self._spec.name, error=str(error))
            except Exception as error:
                # At the top of a named loop: the stream must go on whatever happens to a backfill.
                log.exception("backfill.failed", pipeline=self._spec.name, error=type(error).__name__)

    def _look(self) -> None:
        with session_scope(self._catalog) as session:
            tasks = backfills.open_tasks(session, self._spec.id)
            self._paused = backfills_paused(session, self._spec.source.id) if tasks else None
        reached = {
            identifier: place.applier.destination
            for identifier, place in self._places.items()
            if not place.applier.status.detached
        }
        self._joining.look(reached, tasks)
        wanted = {task.id for task in tasks}
        for place in self._places.values():
            if place.task is not None and place.task.id not in wanted and place.busy:
                # It was cancelled.
                place.work.stop()
        for place in self._places.values():
            self._drop_left(place, wanted)
            self._note_kept(place)
        for task in tasks:
            found = self._places.get(task.pipeline_destination_id)
            if time.monotonic() < self._not_before.get(task.id, 0.0):
                continue
            if found is None or found.applier.status.detached:
                self._wait(task, "the destination cannot be reached now")
            elif not found.busy:
                self._begin(found, task)

    def _note_kept(self, place: _Place) -> None:
        """Once, for a process that was killed between an exchange and its report, and a rebuild cancelled meanwhile."""
        destination = place.applier.destination
        if place.noted or not isinstance(destination, PostgresDestination) or place.applier.status.detached:
            return
        try:
            found = kept_at(destination, self._spec.identity)
        except RosettaError as error:
            # It is away, and tells after the next start of the stream; other destinations are not to wait for it.
            log.warning("rebuild.kept_not_read", destination=destination.name, error=str(error))
            found = {}
        for rebuild, kept in found.items():
            self._call(lambda session, one=rebuild, table=kept: note_kept(session, one, table))  # type: ignore[misc]
        place.noted = True

    def _drop_left(self, place: _Place, wanted: set[int]) -> None:
        """Remove the new tables of rebuilds that were cancelled or have failed."""
        destination = place.applier.destination
        if place.busy or not isinstance(destination, PostgresDestination) or place.applier.status.detached:
            return
        if not destination.shadows.active or time.monotonic() < place.left_at:
            return
        place.left_at = time.monotonic() + RETRY_SECONDS
        try:
            drop_left(destination, self._spec.identity, wanted)
        except RosettaError as error:
            log.warning("rebuild.not_dropped", destination=destination.name, error=str(error))

    def _begin(self, place: _Place, task: Task) -> None:
        if self._stopping.is_set():
            return
        if self._paused is not None:
            self._wait(task, f"waits: {self._paused}")
            return
        if not self._call(lambda session: backfills.begin(session, task, resumed=task.id not in self._seen)):
            return
        self._seen.add(task.id)
        place.task, place.work = task, Work()
        if self._stopping.is_set():
            return
        place.thread = threading.Thread(target=self._turn, args=(place, task, place.work), name="turn", daemon=True)
        place.thread.start()

    # -- a turn ----------------------------------------------------------------------------------------------

    def _turn(self, place: _Place, task: Task, work: Work) -> None:
        try:
            self._work(place, task, work)
        except RosettaError as error:
            self._failed(task, error)
        except Exception as error:
            log.exception("backfill.failed", pipeline=self._spec.name, backfill=task.id)
            text = f"unexpected {type(error).__name__}"
            self._failed(task, RosettaError(ErrorKind.RUNNER_FAILED, text))

    def _work(self, place: _Place, task: Task, work: Work) -> None:
        sync = place.syncs.get(task.target)
        destination = place.applier.destination
        if not isinstance(destination, PostgresDestination):
            raise RosettaError(
                ErrorKind.CONFIG_INVALID, f"destination {destination.name} is of a type that takes no backfills yet"
            )
        known = next((one for one in destination.table_states() if one.sync.target == task.target), None)
        if sync is None or known is None:
            raise RosettaError(ErrorKind.NOT_FOUND, f"the pipeline has no target {task.target} at {destination.name}")
        if not known.schema.key and task.mode == "BACKFILL":
            raise RosettaError(
                ErrorKind.CONFIG_INVALID,
                f"table {task.source} has no key by which rows could be told apart: use mode reload, during which the "
                "stream waits",
            )
        if task.mode == "RELOAD" or (not known.schema.key and task.mode != "REBUILD"):
            self._reload(place, task, known)
            return
        side = self._side(place, destination)
        if task.mode == "REBUILD":
            side = replace(side, letters=None)
            rebuild = Rebuild(self._catalog, self._spec, task, sync, side, work, lambda: self._paused)
            end, note = rebuild.run()
        else:
            end, note = Turn(self._catalog, task, sync, side, work, lambda: self._paused).run()
        log.info("backfill.turn", backfill=task.id, target=str(task.target), end=end.value, note=note)
        if end is TurnEnd.DONE:
            if known.joining and task.mode == "RESYNC" and task.filter_sql is None:
                destination.joined(task.target)
            if task.mode == "REBUILD":
                self._rebuilt(task)
            else:
                self._done(task)
        elif note is not None:
            self._wait(task, note)

    def _side(self, place: _Place, destination: PostgresDestination) -> Side:
        applier = place.applier
        if place.letters is None:
            spec = next(one for one in self._spec.destinations if one.id == applier.pipeline_destination_id)
            place.letters = letter_queue(self._spec, spec)
        return Side(
            self._spec.identity,
            self._spec.source,
            destination,
            self._spec.settings,
            place.letters,
            lambda: applier.status.position,
            self._nudge,
        )

    def _nudge(self) -> None:
        """Have an idle source write something, so that its stream moves on."""
        with self._nudging:
            self._session.wal_position(heartbeat=True)

    def _reload(self, place: _Place, task: Task, known: TableState) -> None:
        """Have the table emptied and loaded by the next start of the stream; the one after the request ends it.

        One that is too large to be waited for joins beside the stream then, by a resync that takes the request over.
        """
        before = task.snapshot_lsn
        if before is not None and known.joining and known.snapshot.lsn > before:
            # It was emptied, and is too large to have the stream wait for it.
            self._change(task, mode="RESYNC", snapshot_lsn=None, note=None)
            return
        if before is not None and known.ready and known.snapshot.lsn > before:
            rows = self._call(lambda session: loaded_rows(session, task.pipeline_destination_id, task.target))
            self._change(task, count_record=rows, changed_record=rows)
            self._done(task)
            return
        if place.applier.reload_target is not None:
            self._not_before[task.id] = time.monotonic() + RETRY_SECONDS
            return
        note = "the table is emptied and copied again; the stream waits meanwhile, unless it is large"
        self._change(task, mode="RELOAD", snapshot_lsn=known.snapshot.lsn, note=note)
        place.applier.reload_target = task.target
        self._not_before[task.id] = time.monotonic() + 60.0

    def _rebuilt(self, task: Task) -> None:
        kept = str(Shadow(task.id, task.target).kept)

        def end(session: Session) -> None:
            # It may have been cancelled a moment too late.
            note_kept(session, task.id, kept)
            backfills.finish(session, task.id)
            backfills.forget_chunks(session, task.id)
            key = f"{self._spec.name}/{task.target}"
            text = f"The old table is kept as {kept} until `rosetta backfill confirm` drops it."
            record_event(session, "rebuild", key, "INFO", f"{key} was built anew", text, lasting=False)

        self._call(end)
        log.info("backfill.completed", backfill=task.id, target=str(task.target), kept=kept)

    def _done(self, task: Task) -> None:
        def end(session: Session) -> None:
            backfills.finish(session, task.id)
            backfills.forget_chunks(session, task.id)

        self._call(end)
        log.info("backfill.completed", backfill=task.id, target=str(task.target))

    def _failed(self, task: Task, error: RosettaError) -> None:
        text = f"{error.message} - {error.policy.solution}"
        if error.policy.reaction is Reaction.RETRY or error.kind is ErrorKind.SCHEMA_CHANGE_HELD:
            log.warning("backfill.retry", backfill=task.id, target=str(task.target), error=error.message)
            self._wait(task, f"tries again: {error.message}")
            return
        log.error("backfill.stopped", backfill=task.id, target=str(task.target), error=error.message)

        def end(session: Session) -> None:
            if backfills.finish(session, task.id, text):
                key = f"{self._spec.name}/{task.target}"
                record_event(session, "backfill", key, "ERROR", f"Backfill of {key} failed", text, lasting=False)

        self._call(end)

    def _wait(self, task: Task, note: str) -> None:
        """Leave a backfill alone for a while, and say why."""
        self._not_before[task.id] = time.monotonic() + RETRY_SECONDS
        self._change(task, note=note)

    def _change(self, task: Task, **values: Any) -> None:
        self._call(lambda session: backfills.change(session, task.id, **values))

    def _call(self, call: Callable[[Session], _T]) -> _T:
        with session_scope(self._catalog) as session:
            return call(session)
