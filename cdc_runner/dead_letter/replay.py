"""Replay: bring what waits into its destination, key by key, and take the marks away in the same transaction.

A page of keys is one destination transaction that holds the position's lock, so that neither the stream nor another
replay runs beside it. All entries of a key are folded into one change; keys that are refused again stay. Redis is told
after the commit: a replay that died in between finds entries without marks, and removes them without applying them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import psycopg2.extensions
import structlog

from cdc_runner.capture.base import TableVersion
from cdc_runner.dead_letter.fold import fold
from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.destinations.base import RowFetcher, TableState
from cdc_runner.destinations.letters import RowChange, RowOperation
from cdc_runner.destinations.marks import Mark, Selection
from cdc_runner.destinations.postgres import waiting
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.postgres.divert import merge_rows, multiset_rows
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.net import NetChange, NetKind, Origin
from cdc_runner.spec import ResolvedSync

log = structlog.get_logger()

PAGE_KEYS = 5000
_PASSES = 5
"""A row that refers to another one is taken once that one is there: so many rounds are made while any helps."""


@dataclass(slots=True)
class ReplayResult:
    """What a replay did.

    Attributes:
        keys: keys that are free again.
        entries: changes that they had.
        refused: keys that were refused again.
        refetched: keys whose entries were lost, which were read from the source instead.
        stuck: keys that cannot be replayed, with the reason, a table.
        reasons: reason of a refusal -> how many keys.
    """

    keys: int = 0
    entries: int = 0
    refused: int = 0
    refetched: int = 0
    stuck: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "keys_replayed": self.keys,
            "entries_replayed": self.entries,
            "keys_refused": self.refused,
            "keys_fetched_from_source": self.refetched,
            "stuck_tables": self.stuck,
            "reasons": self.reasons,
        }


@dataclass(slots=True)
class _Key:
    """A waiting key in a page."""

    marks: list[Mark]
    change: RowChange | None = None
    refetched: bool = False


class Replayer:
    """Replays for one destination, opened by the caller; used by one thread."""

    def __init__(
        self, destination: PostgresDestination, pipeline: str, queue: DeadLetterQueue, fetch: RowFetcher, consumer: str
    ) -> None:
        """Args:
        destination: opened.
        pipeline: its pipeline.
        queue: where the entries are.
        fetch: reads rows from the source, in place of entries that were lost.
        consumer: name in the consumer group.
        """
        self._destination = destination
        self._pipeline = pipeline
        self._queue = queue
        self._fetch = fetch
        self._consumer = consumer

    def replay(self, selection: Selection, stopping: Callable[[], bool] = lambda: False) -> ReplayResult:
        """Replay what is selected; in several rounds, as long as one frees a key that the round before did not.

        Args:
            selection: which keys.
            stopping: asked between two pages; ends the replay.

        Raises:
            RosettaError: the kinds of the destination and of the queue; finished pages stay finished.
        """
        total = ReplayResult()
        for _ in range(_PASSES):
            one = self._round(selection, stopping)
            total.keys += one.keys
            total.entries += one.entries
            total.refetched += one.refetched
            total.refused, total.reasons, total.stuck = one.refused, one.reasons, one.stuck
            if not one.keys or not one.refused or stopping():
                break
        if total.keys or total.refused:
            log.info("dead_letters.replayed", destination=self._destination.name, **total.as_json())
        return total

    def _round(self, selection: Selection, stopping: Callable[[], bool]) -> ReplayResult:
        result = ReplayResult()
        after = 0
        through: int | None = None
        while not stopping():
            finished: dict[TableId, dict[str, str]] = {}
            with self._destination.exclusive() as cursor:
                if through is None:
                    # Keys that are stored anew get marks behind those that were there.
                    through = waiting.last_number(cursor, self._pipeline)
                marks = waiting.read_page(cursor, self._pipeline, selection, after, PAGE_KEYS, through=through)
                if not marks:
                    break
                keys = _by_key(marks)
                after = max(key.marks[0].number for key in keys)
                self._page(cursor, keys, result, finished)
            for source, entries in finished.items():
                self._queue.finish(source, entries)
        return result

    def _page(
        self,
        cursor: psycopg2.extensions.cursor,
        keys: Sequence[_Key],
        result: ReplayResult,
        finished: dict[TableId, dict[str, str]],
    ) -> None:
        """Replay keys in the caller's transaction; `finished` gets the entries to acknowledge after its commit."""
        states = {one.sync.target: one for one in self._destination.table_states()}
        usable = [key for key in keys if self._usable(key, states, result)]
        self._read_entries(usable, states, result)
        segment = _net_changes(usable, states)
        diversion = self._destination.diversion
        diversion.expect_replay()
        self._destination.write_isolated(cursor, segment)
        refused = diversion.take_refused()
        done: list[Mark] = []
        noted: dict[str, tuple[str, str]] = {}
        stored_anew: list[RowChange] = []
        for key in usable:
            first = key.marks[0]
            why = refused.get((first.target, first.key_hash))
            if why is None or why.refusal is None:
                done += key.marks
                result.keys += 1
                result.entries += len(key.marks)
                result.refetched += key.refetched
                continue
            result.refused += 1
            result.reasons[why.refusal.message] = result.reasons.get(why.refusal.message, 0) + 1
            if key.refetched and key.change is not None:
                # Its entries are gone for good: the source's row takes their place in the queue.
                done += key.marks
                stored_anew.append(why)
            else:
                noted[first.entry] = (why.refusal.sqlstate, why.refusal.message)
        if noted:
            waiting.note_attempts(cursor, self._pipeline, noted)
        if done:
            waiting.forget_entries(cursor, self._pipeline, [mark.entry for mark in done])
        if stored_anew:
            position = Position(max(mark.end_lsn for mark in done))
            waiting.add_marks(cursor, self._pipeline, self._queue.append(stored_anew, position, 0.0), position.lsn)
        if done or noted:
            # Reading all marks again for each page would cost more than the page.
            diversion.release(cursor, {(mark.target, mark.key_hash) for mark in done})
        if stored_anew:
            diversion.load(cursor)
        for mark in done:
            finished.setdefault(mark.source, {})[mark.stream_id] = mark.entry

    def _usable(self, key: _Key, states: dict[TableId, TableState], result: ReplayResult) -> bool:
        target = key.marks[0].target
        state = states.get(target)
        if state is None or not state.ready:
            result.stuck[str(target)] = "the table is being loaded"
            return False
        present = state.schema.key or state.schema.stream_names
        if any(mark.key_columns != present for mark in key.marks):
            result.stuck[str(target)] = (
                "the columns that tell its rows apart have changed since: load the table again, which clears its queue"
            )
            return False
        return True

    def _read_entries(self, keys: list[_Key], states: dict[TableId, TableState], result: ReplayResult) -> None:
        """Read the entries of keys and fold them; where some are lost, take the source's present row."""
        by_source: dict[TableId, list[str]] = {}
        for key in keys:
            by_source.setdefault(key.marks[0].source, []).extend(mark.stream_id for mark in key.marks)
        found = {source: self._queue.claim(source, ids, self._consumer) for source, ids in by_source.items()}
        lost: dict[TableId, list[_Key]] = {}
        for key in list(keys):
            first = key.marks[0]
            letters = [found[first.source].get(mark.stream_id) for mark in key.marks]
            whole = [one for one, mark in zip(letters, key.marks, strict=True) if one and one.entry == mark.entry]
            state = states[first.target]
            if len(whole) == len(key.marks):
                key.change = fold(whole, state.sync, state.schema)
            elif first.key is not None and not _is_shaped(state):
                lost.setdefault(first.target, []).append(key)
            else:
                result.stuck[str(first.target)] = (
                    "entries were lost, and the table has no key or its sync has a shape, so that its rows cannot be "
                    "read from the source: load the table again"
                )
                keys.remove(key)
        for target, some in lost.items():
            self._refetch(some, states[target])

    def _refetch(self, keys: Sequence[_Key], state: TableState) -> None:
        wanted = [key.marks[0].key for key in keys]
        rows = self._fetch(state.schema, [one for one in wanted if one is not None])
        log.warning("dead_letters.lost", table=str(state.sync.target), keys=len(keys), found=len(rows))
        for key, identity in zip(keys, wanted, strict=True):
            assert identity is not None, "only keys of tables with a key are fetched"
            values = rows.get(identity)
            key.refetched = True
            if values is not None:
                key.change = RowChange(state.sync, state.schema, RowOperation.PUT, tuple(values))
            else:
                key.change = _delete(state.sync, state.schema, identity)


def _delete(sync: ResolvedSync, schema: TableSchema, identity: tuple[str, ...]) -> RowChange:
    given = dict(zip(schema.key, identity, strict=True))
    return RowChange(sync, schema, RowOperation.DELETE, tuple(given.get(name) for name in schema.stream_names))


def _by_key(marks: Sequence[Mark]) -> list[_Key]:
    """Return marks grouped by key, keys in the order of their first marks."""
    keys: dict[tuple[TableId, str], _Key] = {}
    for mark in marks:
        keys.setdefault((mark.target, mark.key_hash), _Key([])).marks.append(mark)
    return list(keys.values())


def _net_changes(keys: Sequence[_Key], states: dict[TableId, TableState]) -> list[tuple[ResolvedSync, NetChange]]:
    by_target: dict[TableId, list[RowChange]] = {}
    for key in keys:
        if key.change is not None:
            by_target.setdefault(key.change.sync.target, []).append(key.change)
    segment = []
    for target, changes in sorted(by_target.items()):
        state, change = states[target], _net_change(changes)
        if _is_shaped(state):
            change = replace(change, origin=Origin(state.captured_schema, _no_rows))
        segment.append((state.sync, change))
    return segment


def _is_shaped(state: TableState) -> bool:
    """Tell whether the target has other columns, rows or values than the source's table."""
    return state.source_schema is not None or bool(state.shape)


def _no_rows(keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str | None, ...]]:
    raise RosettaError(
        ErrorKind.DESTINATION_SCHEMA,
        f"{len(keys)} rows of a table whose sync has a shape are neither at the target nor whole in the queue: "
        "load the table again",
    )


def _net_change(changes: Sequence[RowChange]) -> NetChange:
    schema = changes[0].schema
    width = len(schema.stream_columns)
    names = [f"c{number}" for number in range(width)]
    version = TableVersion(schema, 0)
    if not schema.key:
        counted = [{"n": one.count, **dict(zip(names, one.values, strict=True))} for one in changes]
        deletes = any(one.count < 0 for one in changes)
        return NetChange(NetKind.MULTISET, version, False, multiset_rows(counted, width), False, deletes, len(changes))
    rows = [
        {
            "d": one.operation is RowOperation.DELETE,
            "x": one.unchanged,
            **dict(zip(names, one.values, strict=True)),
        }
        for one in changes
    ]
    deletes = any(one.operation is RowOperation.DELETE for one in changes)
    partial = any(one.unchanged is not None for one in changes)
    return NetChange(NetKind.MERGE, version, False, merge_rows(rows, width), partial, deletes, len(changes))
