"""Lag from a commit at the source until the row is visible at a target, measured from outside.

A probe updates one row of the source every 100 ms; each target is asked for that row every 10 ms. Both times are of
this process's clock, so that no two clocks are compared. What the replication itself reports plays no role.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg2
import psycopg2.extensions

from cdc_runner.connections import connect
from cdc_runner.errors import RosettaError
from cdc_runner.schema import TableId
from cdc_runner.spec import PostgresAddress

BEAT_SECONDS = 0.1
POLL_SECONDS = 0.01
CAUGHT_UP_SECONDS = 1.0
CAUGHT_UP_BEATS = 10
"""The initial load is over, and its backlog worked off, when so many looks in a row show a beat that is younger than
CAUGHT_UP_SECONDS. A single one does not tell: the snapshot of the load holds a young beat too."""
KEPT_SAMPLES = 100_000
HEARTBEAT = TableId("public", "demo_heartbeat")


@dataclass(frozen=True, slots=True)
class TargetTables:
    """Where a target has the source's tables."""

    address: PostgresAddress
    tables: Mapping[TableId, TableId]


class _Observer(threading.Thread):
    """Watches one target."""

    def __init__(self, name: str, target: TargetTables, probe: LagProbe) -> None:
        super().__init__(name=f"observer-{name}", daemon=True)
        self.seen_beat = -1
        self.first_row_at: float | None = None
        self.caught_up_at: float | None = None
        self.lags: deque[float] = deque(maxlen=KEPT_SAMPLES)
        self.early_lags: deque[float] = deque(maxlen=KEPT_SAMPLES)
        self._in_time = 0
        self._target = target
        self._probe = probe

    def run(self) -> None:
        while not self._probe.stopped.is_set():
            try:
                connection = connect(self._target.address, application_name="rosetta demo observer", side="destination")
            except RosettaError:
                self._probe.stopped.wait(0.5)
                continue
            connection.autocommit = True
            try:
                with connection.cursor() as cursor:
                    self._watch(cursor)
            except psycopg2.Error:
                # The target restarts, or the table is being made: try again.
                self._probe.stopped.wait(0.05)
            finally:
                connection.close()

    def _watch(self, cursor: psycopg2.extensions.cursor) -> None:
        while self.first_row_at is None and not self._probe.stopped.wait(2 * POLL_SECONDS):
            self._look_for_first_row(cursor)
        table = self._target.tables[HEARTBEAT].quoted
        while not self._probe.stopped.wait(POLL_SECONDS):
            cursor.execute(f"SELECT beat FROM {table}")
            row = cursor.fetchone()
            if row is not None:
                self._note(int(row[0]), time.monotonic())

    def _look_for_first_row(self, cursor: psycopg2.extensions.cursor) -> None:
        for table in self._target.tables.values():
            cursor.execute("SELECT to_regclass(%s)", (table.quoted,))
            if cursor.fetchone() == (None,):
                continue
            cursor.execute(f"SELECT FROM {table.quoted} LIMIT 1")
            if cursor.rowcount:
                self.first_row_at = time.monotonic()
                return

    def _note(self, beat: int, now: float) -> None:
        committed = self._probe.committed
        if beat > self.seen_beat and beat in committed:
            self._in_time = self._in_time + 1 if now - committed[beat] <= CAUGHT_UP_SECONDS else 0
            if self.caught_up_at is None and self._in_time >= CAUGHT_UP_BEATS:
                self.caught_up_at = now
        for each in range(max(self.seen_beat + 1, beat - KEPT_SAMPLES), beat + 1):
            at = committed.get(each)
            if at is None:
                continue
            (self.early_lags if self.caught_up_at is None else self.lags).append(max(0.0, now - at))
        self.seen_beat = max(self.seen_beat, beat)


class LagProbe:
    """Measures lag until it is stopped.

    Args:
        source: address of the source database, with the heartbeat table.
        targets: by the destination's name.
    """

    def __init__(self, source: PostgresAddress, targets: Mapping[str, TargetTables]) -> None:
        self.committed: dict[int, float] = {}
        """Beat -> time of its commit; the oldest are forgotten."""
        self.stopped = threading.Event()
        self._source = source
        self._beating = threading.Event()
        self._lock = threading.Lock()
        self._beat = 0
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._observers = {name: _Observer(name, target, self) for name, target in targets.items()}

    def start(self) -> None:
        """Begin to look for first rows and to send beats."""
        self._beat = self._stored_beat()
        self._beating.set()
        self._thread.start()
        for observer in self._observers.values():
            observer.start()

    def stop(self) -> None:
        """End every thread."""
        self.stopped.set()
        for thread in (self._thread, *self._observers.values()):
            if thread.is_alive():
                thread.join(5)

    def finish_beats(self) -> int:
        """Send no more beats, after a last one that is committed after everything else; return it."""
        self._beating.clear()
        with self._lock:
            connection = connect(self._source, application_name="rosetta demo probe")
            try:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    self._send(cursor)
            finally:
                connection.close()
            return self._beat

    def waiting_for(self, beat: int) -> list[str]:
        """Return the targets that do not show a beat yet."""
        return [name for name, observer in self._observers.items() if observer.seen_beat < beat]

    def first_row_seconds(self, since: float) -> float | None:
        """Return seconds until the first row at any target; None when there is none."""
        times = [each.first_row_at for each in self._observers.values() if each.first_row_at is not None]
        return max(0.0, min(times) - since) if times else None

    def caught_up_seconds(self, since: float) -> float | None:
        """Return seconds until every target had worked off the initial load; None when one has not."""
        times = [each.caught_up_at for each in self._observers.values()]
        known = [at for at in times if at is not None]
        return max(0.0, max(known) - since) if known and len(known) == len(times) else None

    def current_lags_ms(self) -> dict[str, float | None]:
        """Return, for each target, the age of the oldest beat that it does not show; the last lag when it shows all."""
        now = time.monotonic()
        lags: dict[str, float | None] = {}
        for name, observer in self._observers.items():
            pending = self.committed.get(observer.seen_beat + 1)
            known = observer.lags or observer.early_lags
            if observer.seen_beat < 0 or (pending is None and not known):
                lags[name] = None
            else:
                last = known[-1] if known else 0.0
                lags[name] = 1000 * max(last, 0.0 if pending is None else now - pending)
        return lags

    def lags_ms(self) -> dict[str, list[float]]:
        """Return every lag after the target had caught up; all lags of a target that never did."""
        return {
            name: [1000 * lag for lag in (observer.lags or observer.early_lags)]
            for name, observer in self._observers.items()
        }

    def _stored_beat(self) -> int:
        connection = connect(self._source, application_name="rosetta demo probe")
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT beat FROM {HEARTBEAT.quoted}")
                row = cursor.fetchone()
                return int(row[0]) if row else 0
        finally:
            connection.close()

    def _run(self) -> None:
        while not self.stopped.is_set():
            try:
                connection = connect(self._source, application_name="rosetta demo probe")
            except RosettaError:
                self.stopped.wait(0.5)
                continue
            connection.autocommit = True
            try:
                with connection.cursor() as cursor:
                    while not self.stopped.wait(BEAT_SECONDS):
                        with self._lock:
                            if self._beating.is_set():
                                self._send(cursor)
            except psycopg2.Error:
                self.stopped.wait(0.5)
            finally:
                connection.close()

    def _send(self, cursor: psycopg2.extensions.cursor) -> None:
        cursor.execute(f"UPDATE {HEARTBEAT.quoted} SET beat = %s", (self._beat + 1,))
        self._beat += 1
        self.committed[self._beat] = time.monotonic()
        self.committed.pop(self._beat - KEPT_SAMPLES, None)


def percentile(values: Sequence[float], fraction: float) -> float | None:
    """Return the smallest value that is not below the given fraction of all; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(fraction * len(ordered)) - 1))]
