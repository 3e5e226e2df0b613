"""The dead letters of one destination while its pipeline runs: automatic replays, stock-taking, reports."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import structlog

from cdc_runner.catalog.dead_letters import DeadLetterCount, QueueState, is_late, is_nearly_full
from cdc_runner.catalog.environment import read_environment
from cdc_runner.dead_letter.postgres_room import PostgresRoom
from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.dead_letter.room import WaitingRoom
from cdc_runner.dead_letter.snowflake_room import SnowflakeRoom
from cdc_runner.dead_letter.stock import count_waiting
from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.destinations.base import Applied, ApplyMode, Destination, RowFetcher
from cdc_runner.destinations.marks import Selection
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId
from cdc_runner.shaping.net import NetChange
from cdc_runner.spec import DestinationSpec, PipelineSettings, PipelineSpec, ResolvedSync

log = structlog.get_logger()

STOCK_SECONDS = 30.0
THOROUGH_EVERY = 20
"""Of so many looks one compares entry by entry; the others compare counts, and go on to entries when those differ."""
PROBE_SECONDS = 15.0


def letter_queue(spec: PipelineSpec, destination: DestinationSpec) -> DeadLetterQueue:
    """Return the queue of one destination, with a connection of its own."""
    return DeadLetterQueue(
        LetterStore(read_environment().redis_url),
        spec.identity,
        spec.source.id,
        destination.destination_id,
        max_entries=spec.settings.dead_letter_max_entries,
    )


def waiting_room(
    destination: Destination, spec: PipelineSpec, queue: DeadLetterQueue, fetch: RowFetcher
) -> WaitingRoom | None:
    """Return what waits at an opened destination; None where a refused row ends the stream.

    Args:
        destination: opened.
        spec: its pipeline.
        queue: where the changes are.
        fetch: reads rows from the source.
    """
    consumer = f"pipeline-{os.getpid()}"
    if isinstance(destination, PostgresDestination):
        return PostgresRoom(destination, spec.identity, queue, fetch, consumer)
    # Without a queue a row that Snowflake does not take ends the stream, as it is told before it is sent.
    if isinstance(destination, SnowflakeDestination) and queue.store.configured:
        return SnowflakeRoom(destination, queue, fetch, consumer)
    return None


class LetterDesk:
    """Looks after the dead letters of a destination. `tend` runs in the destination's thread, between batches."""

    def __init__(
        self,
        room: WaitingRoom,
        settings: PipelineSettings,
        *,
        on_counts: Callable[[list[DeadLetterCount]], None],
        on_queue: Callable[[QueueState, str | None], None],
        on_discard: Callable[[str, int, str], None],
        on_restart: Callable[[str], None],
    ) -> None:
        """Args:
        room: what waits at the destination.
        settings: pauses and limits.
        on_counts: told when what waits has changed.
        on_queue: told when the state of the queue has changed.
        on_discard: told of changes that were removed unapplied: table, how many, why.
        on_restart: told of a restart of Redis, by its place.
        """
        self.queue = room.queue
        self._room = room
        self._settings = settings
        self._on_counts = on_counts
        self._on_queue = on_queue
        self._on_discard = on_discard
        self._on_restart = on_restart
        self._looks = 0
        self._restarted = threading.Event()
        self._lost: Mapping[TableId, int] = {}
        self._told: list[DeadLetterCount] | None = None
        self._told_standing: list[tuple[bool, bool]] = []
        self._told_queue: tuple[QueueState, str | None] | None = None
        self._stocked_at: float | None = None
        self._replayed_at = time.monotonic()
        self._superseded = 0
        self._stopping = threading.Event()
        # A queue that does not answer takes seconds to say so: it is asked in a thread of its own.
        self._probe = threading.Thread(target=self._watch_queue, name=f"letters-{room.name}", daemon=True)

    def start(self) -> None:
        """Start to watch the queue."""
        self._probe.start()

    def stop(self) -> None:
        """End the watch, and close the connection to the queue."""
        self._stopping.set()
        if self._probe.is_alive():
            self._probe.join(1.0)
        self.queue.store.close()

    def apply(
        self,
        segments: Iterable[Sequence[tuple[ResolvedSync, NetChange]]],
        through: Position,
        commit_time: float,
        mode: ApplyMode,
    ) -> Applied:
        """Apply a batch to the destination; what must wait goes to the queue. See `Destination.apply`."""
        self._room.ready()
        return self._room.apply(segments, through, commit_time, mode)

    def require_queue(self) -> None:
        """Make sure that rows can be put aside.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE.
        """
        self.queue.store.require_durable()

    def tend(self) -> None:
        """Take stock and replay what is due, and report. Cheap when nothing waits.

        Raises:
            RosettaError: destination kinds; the destination must be opened again.
        """
        try:
            self._room.serve()
            self._take_stock()
            self._replay_due()
        except RosettaError as error:
            if error.kind not in (ErrorKind.DEAD_LETTER_UNAVAILABLE, ErrorKind.DEAD_LETTER_FULL):
                raise
            log.warning("dead_letters.not_tended", destination=self._room.name, error=str(error))
            self._room.ready()
        self._report()

    def _take_stock(self) -> None:
        now = time.monotonic()
        at_once = self._stocked_at is None or self._restarted.is_set()
        waits = bool(self._room.tables)
        if not at_once and (not waits or now - (self._stocked_at or 0.0) < STOCK_SECONDS):
            return
        if not self.queue.store.configured:
            return
        self._stocked_at = now
        self._restarted.clear()
        self._looks += 1
        thorough = at_once or self._looks % THOROUGH_EVERY == 0
        stock = self._room.take_stock(thorough=thorough)
        self._lost = stock.lost

    def _replay_due(self) -> None:
        seconds = self._settings.dead_letter_retry_seconds
        if not seconds or not self._room.tables:
            return
        if time.monotonic() - self._replayed_at < min(max(1.0, seconds / 10), 60.0):
            return
        self._replayed_at = time.monotonic()
        selection = Selection(retry_seconds=seconds, retries=self._settings.dead_letter_retries)
        if self._room.replay(selection, self._stopping.is_set).keys:
            self._stocked_at = 0.0

    def _report(self) -> None:
        superseded = self._room.superseded
        if superseded > self._superseded:
            count, self._superseded = superseded - self._superseded, superseded
            self._on_discard("of this destination", count, "their tables were emptied by TRUNCATE or are loaded again")
            self._stocked_at = None
        counts = count_waiting(self._room.tables, self._lost, {})
        before = self._told or []
        standing = [self._standing(one) for one in counts]
        same = self._told is not None and counts == [replace(one, reason=None) for one in before]
        if same and standing == self._told_standing:
            return
        if counts:
            reasons = self._room.reasons()
            counts = [replace(one, reason=reasons.get(one.target)) for one in counts]
        self._told, self._told_standing = counts, standing
        self._on_counts(counts)

    def _standing(self, one: DeadLetterCount) -> tuple[bool, bool]:
        """Tell whether a table's dead letters are old, and nearly too many: what makes its event an error."""
        settings = self._settings
        late = is_late(one, settings.dead_letter_alert_seconds)
        return late, is_nearly_full(one, settings.dead_letter_max_entries)

    def _watch_queue(self) -> None:
        store = self.queue.store.another()
        known = ""
        while True:
            state, problem, run = probe(store)
            if run and known and run != known:
                # What it has is compared with what it should have.
                log.warning("dead_letters.redis_restarted", place=store.place)
                self._restarted.set()
                self._on_restart(store.place)
            known = run or known
            if (state, problem) != self._told_queue:
                self._told_queue = state, problem
                self._on_queue(state, problem)
            if self._stopping.wait(PROBE_SECONDS):
                store.close()
                return


def probe(store: LetterStore) -> tuple[QueueState, str | None, str]:
    """Return whether a queue can be used now, why not, and the name of the server's run when that is known."""
    if not store.configured:
        return "NOT_CONFIGURED", None, ""
    try:
        found = store.durability()
    except RosettaError as error:
        return "UNAVAILABLE", error.message, ""
    if found.problems:
        return "NOT_DURABLE", f"Redis at {store.place}: {'; '.join(found.problems)}", found.run
    return "OK", None, found.run
