"""One destination's thread: takes shaped batches in order, applies them, and knows how far it is."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import structlog

from cdc_runner.destinations.base import Applied, ApplyMode, Destination, ReloadNeeded
from cdc_runner.errors import ErrorKind, Reaction, RosettaError
from cdc_runner.pipeline.batch import ApplyStatus, FencePoint, ShapedBatch
from cdc_runner.pipeline.dead_letters import LetterDesk
from cdc_runner.pipeline.parking import Parking, ReadyBatch
from cdc_runner.pipeline.routing import Routing
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.net import NetChange
from cdc_runner.shaping.sync import TableShaper
from cdc_runner.spec import ResolvedSync

log = structlog.get_logger()

UNIQUE_VIOLATION = "23505"
NARROW = ("22003", "22001", "23502", "22P02", "23514", "55P04")
"""Value out of range, too long, NULL where the target allows none, unknown to an enum or refused by a domain; or a
label used in the transaction that adds it, which works once the label is there."""
DETACH_AFTER_SECONDS = 10.0
WARY_SECONDS = 60.0
"""After a refused row, batches are applied with the search for more for so long: a failed attempt costs a session."""
TEND_SECONDS = 1.0
_BACK_OFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Applier:
    """Applies batches to one destination in a thread of its own.

    A failure that time may heal is retried with the same batch; the destination is opened anew each time. When others
    would have to wait for it, the destination is detached: it takes no more batches until the stream starts again.
    """

    def __init__(
        self,
        destination: Destination,
        pipeline_destination_id: int,
        syncs: Sequence[ResolvedSync],
        *,
        alone: bool,
        on_progress: Callable[[Applier, Mapping[ResolvedSync, int]], None],
        on_recovery: Callable[[], None],
        present: Callable[[TableId], TableSchema | None],
        shapers: Mapping[TableId, TableShaper],
        letters: LetterDesk | None,
        parking: Parking | None = None,
    ) -> None:
        """Args:
        destination: opened.
        pipeline_destination_id: id for reports.
        syncs: what it takes.
        alone: no other destination waits for it, so it is never detached for failures that time may heal.
        on_progress: told after each batch, with the events of each table.
        on_recovery: told when a detached destination can be reached again, or a table has to be loaded anew.
        present: reads a source table's present schema.
        shapers: by target table, for the syncs that are no plain copies.
        letters: looks after the rows that the destination refuses; None where a refused row stops it.
        parking: takes batches while the destination is away; None where that is not to be.
        """
        self.shapers = shapers
        self._source_of = {sync.target: sync.source for sync in syncs}
        self.destination = destination
        self._letters = letters
        self._parking = parking
        self._wary_until = 0.0
        self._tended_at = 0.0
        self.pipeline_destination_id = pipeline_destination_id
        position = destination.position()
        assert position is not None, "a prepared destination has a position"
        self.status = ApplyStatus(position, parked=None if parking is None else parking.through)
        self._alone = alone
        self._on_progress = on_progress
        self._on_recovery = on_recovery
        self._present = present
        self._queue: queue.Queue[ShapedBatch] = queue.Queue(maxsize=1)
        self._stopping = threading.Event()
        self.routing = Routing(destination, syncs, shapers)
        self.failure: RosettaError | None = None
        self.fence: FencePoint | None = None
        """Where to stop for a moment; set before a batch beyond it is taken from the source."""
        self.reload_target: TableId | None = None
        """A target that is to be emptied and loaded by a new start of the stream; set by others."""
        self._thread = threading.Thread(target=self._run, name=f"apply-{destination.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        if self._letters is not None:
            self._letters.start()
        self._thread.start()

    def put(self, batch: ShapedBatch, give_up: Callable[[], bool]) -> None:
        """Hand over a batch; waits while the destination is busy, and drops it when the destination is detached.

        Args:
            batch: the next one.
            give_up: asked again and again; ends the waiting.
        """
        while not give_up() and not self.status.detached and self.failure is None:
            try:
                self._queue.put(batch, timeout=0.2)
                return
            except queue.Full:
                continue
        batch.release()

    def stop(self, *, drain_seconds: float) -> None:
        """Finish what is queued, if that takes no longer than given, and end the thread."""
        deadline = time.monotonic() + drain_seconds
        while self._queue.unfinished_tasks and time.monotonic() < deadline and not self.status.error:
            if self.status.detached or not self._thread.is_alive():
                break
            self._thread.join(0.01)
        self._stopping.set()
        self._thread.join(max(1.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            # A statement that does not end: its session is cut, which rolls the batch back.
            self.destination.close()
            self._thread.join(5.0)
        self.destination.close()
        if self._letters is not None:
            self._letters.stop()
        if self._parking is not None:
            self._parking.close()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self.status.parked is None:
                self._tend()
            try:
                batch = self._queue.get(timeout=0.2)
            except queue.Empty:
                if self.status.parked is None and self.reload_target is None:
                    continue
                batch = None
            try:
                if self.reload_target is not None:
                    raise ReloadNeeded(self.reload_target, "that was asked for")
                self._take(batch)
            except ReloadNeeded as error:
                self._load_again(error)
            except RosettaError as error:
                self.status.error = error
                self.failure = error
                log.error("apply.stopped", destination=self.destination.name, error=str(error))
            except BaseException as error:
                self.failure = RosettaError(ErrorKind.INTERNAL, f"apply failed: {type(error).__name__}: {error}"[:500])
                log.exception("apply.failed", destination=self.destination.name)
            finally:
                if batch is not None:
                    batch.release()
                    self._queue.task_done()
            if self.failure is not None or self.status.detached:
                self._drop_queued()
                if self.status.error is not None and self.failure is None:
                    self._wait_for_recovery()
                return

    def _tend(self) -> None:
        """Look after dead letters; a failure there shows at the next batch."""
        if self._letters is None or time.monotonic() - self._tended_at < TEND_SECONDS:
            return
        self._tended_at = time.monotonic()
        try:
            self._letters.tend()
        except RosettaError as error:
            log.warning("dead_letters.not_tended", destination=self.destination.name, error=str(error))

    def _take(self, batch: ShapedBatch | None) -> None:
        """Apply a batch, after all that is parked; while that cannot be, park it, too."""
        since = time.monotonic()
        while self.status.parked is not None and not self._stopping.is_set():
            if batch is not None and batch.last <= self.status.durable:
                return
            if self._apply_parked() or batch is None or self._park(batch):
                break
            if not self._alone and time.monotonic() - since > DETACH_AFTER_SECONDS:
                self.status.detached = True
                return
            self._stopping.wait(1.0)
        if batch is not None and batch.last > self.status.durable and not self._stopping.is_set():
            self._apply(batch)

    def _park(self, batch: ShapedBatch) -> bool:
        """Park a batch; tell whether that was possible."""
        assert self._parking is not None, "asked only where there is parking"
        status = self.status
        try:
            self._parking.park(self._segments(batch), status.durable, batch.last, batch.commit_time)
        except RosettaError as error:
            if error.policy.reaction is not Reaction.RETRY:
                raise
            log.warning("park.failed", destination=self.destination.name, error=str(error))
            status.error = error
            return False
        status.parked = batch.last
        self._on_progress(self, {})
        return True

    def _apply_parked(self) -> bool:
        """Apply what is parked if the destination can be reached again; tell whether nothing is left."""
        parking = self._parking
        assert parking is not None, "something is parked"
        if not parking.wants_try():
            return False
        try:
            self.destination.open()
            for batch in parking.batches(self.destination.position(), self._fenced_at):
                if self._stopping.is_set():
                    return False
                self._apply(batch)
                if self._stopping.is_set():
                    return False
        except RosettaError as error:
            if error.policy.reaction is not Reaction.RETRY or error.kind is ErrorKind.FENCED:
                raise
            self.status.error = error
            return False
        self.status.parked = None
        self.status.error = None
        return True

    def _fenced_at(self) -> Position | None:
        fence = self.fence
        return None if fence is None else fence.position

    def _apply(self, batch: ShapedBatch | ReadyBatch) -> None:
        fence = self.fence
        if fence is not None and self.status.position <= fence.position < batch.last:
            self.fence = None
            fence.reached(self)
        tried: set[str] = set()
        mode = self._first_mode()
        attempt = 0
        failing_since: float | None = None
        refused: str | None = None
        while True:
            try:
                if failing_since is not None:
                    self.destination.open()
                self._apply_once(batch, mode)
                self.status.error = None
                return
            except RosettaError as error:
                failing_since = failing_since or time.monotonic()
                if error.kind is ErrorKind.DESTINATION_ROW_REJECTED:
                    refused = error.message
                elif error.kind is ErrorKind.DEAD_LETTER_UNAVAILABLE and refused is not None:
                    error = RosettaError(error.kind, f"{refused}; and {error.message}")
                next_mode = self._next_mode(mode, error, tried)
                if next_mode is not None:
                    mode = next_mode
                    continue
                if error.policy.reaction is not Reaction.RETRY or error.kind is ErrorKind.FENCED:
                    raise
                self.status.error = error
                log.warning("apply.retry", destination=self.destination.name, attempt=attempt, error=str(error))
                if isinstance(batch, ReadyBatch):
                    raise
                if self._parks(batch, error, time.monotonic() - failing_since):
                    return
                if not self._alone and time.monotonic() - failing_since > DETACH_AFTER_SECONDS:
                    self.status.detached = True
                    return
            if self._stopping.wait(_BACK_OFF_SECONDS[min(attempt, len(_BACK_OFF_SECONDS) - 1)]):
                return
            attempt += 1

    def _parks(self, batch: ShapedBatch, error: RosettaError, away_seconds: float) -> bool:
        """Park a batch if it is time for that; tell whether it was."""
        parking = self._parking
        if parking is None or self._stopping.is_set():
            return False
        # Others are not to be held up longer than by a destination that is detached.
        late = not self._alone and away_seconds > DETACH_AFTER_SECONDS
        if not parking.is_due(error, float("inf") if late else away_seconds):
            return False
        self.destination.close()
        return self._park(batch)

    def _first_mode(self) -> ApplyMode:
        if self._letters is None or time.monotonic() > self._wary_until:
            return ApplyMode()
        return ApplyMode(careful=True, isolate=True, hold=frozenset(NARROW))

    def _next_mode(self, mode: ApplyMode, error: RosettaError, tried: set[str]) -> ApplyMode | None:
        """Return how to try a refused batch again at once; None when there is no other way.

        Args:
            mode: how it was tried.
            error: how that ended.
            tried: SQLSTATEs for which the schema was caught up already; added to.
        """
        sqlstate = str(error.detail.get("sqlstate"))
        if sqlstate == UNIQUE_VIOLATION and not mode.careful:
            # Unique values that changed places between rows collide when rows are written one by one.
            return replace(mode, careful=True)
        if sqlstate in NARROW and sqlstate not in tried:
            tried.add(sqlstate)
            if self._catch_up_schema() or mode.isolate:
                return replace(mode, hold=mode.hold - tried)
        if error.kind is not ErrorKind.DESTINATION_ROW_REJECTED or self._letters is None:
            return None
        if not mode.isolate:
            self._wary_until = time.monotonic() + WARY_SECONDS
            return ApplyMode(careful=True, isolate=True, hold=frozenset(NARROW) - tried)
        # What is refused although every row was tried by itself is a deferred constraint.
        return None if mode.immediate else replace(mode, immediate=True)

    def _catch_up_schema(self) -> bool:
        """Bring the targets to types that the stream did not tell of; tell whether a new try makes sense."""
        self.destination.open()
        return self.destination.catch_up_schema(self._present_target)

    def _present_target(self, target: TableId) -> TableSchema | None:
        source, shaper = self._source_of.get(target), self.shapers.get(target)
        schema = None if source is None else self._present(source)
        return schema if schema is None or shaper is None else shaper.target_schema(schema)

    def _load_again(self, error: ReloadNeeded) -> None:
        log.info("apply.load_again", destination=self.destination.name, reason=str(error))
        self.destination.open()
        self.destination.load_again(error.table)
        self.status.detached = True
        self._on_recovery()

    def _apply_once(self, batch: ShapedBatch | ReadyBatch, mode: ApplyMode) -> None:
        began = time.monotonic()
        applied = self._apply_segments(batch, mode)
        now = time.time()
        status = self.status
        status.apply_seconds += time.monotonic() - began
        status.position = applied.position
        status.commit_time = batch.commit_time
        status.lag_ms = max(0, round((now - batch.commit_time) * 1000))
        status.applied_at = now
        status.batches += 1
        status.events += sum(applied.events.values())
        self._on_progress(self, applied.events)

    def _apply_segments(self, batch: ShapedBatch | ReadyBatch, mode: ApplyMode) -> Applied:
        segments = self._segments(batch)
        if self._letters is None:
            return self.destination.apply(segments, batch.last, batch.commit_time, careful=mode.careful)
        return self._letters.apply(segments, batch.last, batch.commit_time, mode)

    def _segments(self, batch: ShapedBatch | ReadyBatch) -> Iterator[list[tuple[ResolvedSync, NetChange]]]:
        if isinstance(batch, ReadyBatch):
            yield from batch.ready()
            return
        yield from self.routing.segments(batch)

    def _drop_queued(self) -> None:
        while True:
            try:
                self._queue.get_nowait().release()
            except queue.Empty:
                return
            self._queue.task_done()

    def _wait_for_recovery(self) -> None:
        log.warning("apply.detached", destination=self.destination.name)
        held_by_queue = self.status.error is not None and self.status.error.kind is ErrorKind.DEAD_LETTER_UNAVAILABLE
        attempt = 0
        while not self._stopping.wait(_BACK_OFF_SECONDS[min(attempt, len(_BACK_OFF_SECONDS) - 1)]):
            attempt += 1
            try:
                self.destination.open()
                if held_by_queue and self._letters is not None:
                    self._letters.require_queue()
            except RosettaError as error:
                self.status.error = error
                continue
            log.info("apply.recovered", destination=self.destination.name)
            self.status.error = None
            self._on_recovery()
            return
