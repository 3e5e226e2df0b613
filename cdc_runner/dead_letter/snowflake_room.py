"""What waits at a Snowflake destination: see `dead_letter.room.WaitingRoom`.

Only the process that runs the pipeline changes what waits, in the destination's thread: there is no lock that another
one could take. Others ask it (`dead_letter.requests`), or hold the pipeline's lease while nothing runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from cdc_runner.dead_letter import requests
from cdc_runner.dead_letter.fold import fold
from cdc_runner.dead_letter.letter import Letter
from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.dead_letter.replay import ReplayResult
from cdc_runner.dead_letter.stock import Stock
from cdc_runner.destinations.base import Applied, ApplyMode, RowFetcher, TableState
from cdc_runner.destinations.letters import Refusal, RowChange, RowOperation
from cdc_runner.destinations.marks import Mark, Selection, WaitingTable
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.destinations.snowflake.types import toastable
from cdc_runner.destinations.snowflake.waiting import EventMark
from cdc_runner.errors import RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.net import NetChange
from cdc_runner.spec import ResolvedSync

log = structlog.get_logger()

PAGE_KEYS = 1000
REST_SECONDS = 15.0
"""After Redis did not answer, requests are looked for again so much later: each look may take seconds."""

_MOST_SECONDS = 21_600.0


@dataclass(slots=True)
class _Key:
    """A waiting key: its marks in order, and the net change of its entries."""

    marks: list[EventMark]
    change: RowChange | None = None
    refetched: bool = False

    @property
    def entries(self) -> list[str]:
        return [one.mark.entry for one in self.marks]


class SnowflakeRoom:
    """What waits at one opened Snowflake destination."""

    def __init__(
        self, destination: SnowflakeDestination, queue: DeadLetterQueue, fetch: RowFetcher, consumer: str
    ) -> None:
        """Args:
        destination: opened.
        queue: where the changes are.
        fetch: reads rows from the source, in place of entries that were lost.
        consumer: name in the consumer group.
        """
        self.name = destination.name
        self.queue = queue
        self._destination = destination
        self._fetch = fetch
        self._consumer = consumer
        self._rest_until = 0.0

    @property
    def tables(self) -> Mapping[TableId, WaitingTable]:
        """The waiting keys, by target."""
        return self._destination.diversion.tables

    @property
    def superseded(self) -> int:
        """Changes that a TRUNCATE or a new load made void, since the start."""
        return self._destination.diversion.superseded

    def ready(self) -> None:
        """Open the destination again if an error has closed it."""
        if not self._destination.is_open:
            self._destination.open()

    def apply(
        self,
        segments: Iterable[Sequence[tuple[ResolvedSync, NetChange]]],
        through: Position,
        commit_time: float,
        mode: ApplyMode,
    ) -> Applied:
        """Apply a batch; what must wait goes to the queue."""
        return self._destination.apply(segments, through, commit_time, sink=self.queue)

    def serve(self) -> None:
        """Do what other processes ask of this one."""
        if not self.tables or time.monotonic() < self._rest_until:
            return
        self._rest_until = time.monotonic() + REST_SECONDS
        request = requests.take(self.queue)
        self._rest_until = 0.0
        if request is None:
            return
        try:
            if request.verb == "purge":
                removed = self.purge(request.selection)
                outcome: object = {str(table): count for table, count in removed.items()}
            else:
                outcome = self.replay(request.selection, lambda: False).as_json()
        except RosettaError as error:
            requests.answer(self.queue, request, error)
            raise
        requests.answer(self.queue, request, outcome)

    # -- looking -----------------------------------------------------------------------------------------------------

    def marks(self, selection: Selection, limit: int) -> list[Mark]:
        """Return marks in their order, for people."""
        return select_marks(self._destination.diversion.marks, selection)[:limit]

    def page(self, selection: Selection, after: int, limit: int) -> list[Mark]:
        """Return all marks of the next keys after a number, in order."""
        return page_of(self._destination.diversion.marks, selection, after, limit)

    def count(self, selection: Selection) -> tuple[int, int]:
        """Return how many keys and changes a selection has."""
        marks = select_marks(self._destination.diversion.marks, selection)
        return len({(one.target, one.key_hash) for one in marks}), len(marks)

    def reasons(self) -> Mapping[TableId, str]:
        """Return why the first change of each target was refused."""
        found: dict[TableId, str] = {}
        for one in self._destination.diversion.marks:
            if one.mark.reason is not None:
                found.setdefault(one.mark.target, one.mark.reason)
        return found

    def take_stock(self, *, thorough: bool) -> Stock:
        """Remove entries that no mark knows, and count marks whose entries are gone."""
        marked = {one.mark.entry: one.mark for one in self._destination.diversion.marks}
        stock = Stock()
        for source in sorted({*self.queue.sources(), *(one.source for one in marked.values())}):
            left_over = {
                stream_id: entry for stream_id, entry in self.queue.ids(source) if marked.pop(entry, None) is None
            }
            if left_over:
                self.queue.finish(source, left_over)
                stock.removed[source] = len(left_over)
        for mark in marked.values():
            stock.lost[mark.target] = stock.lost.get(mark.target, 0) + 1
        if stock.lost or stock.removed:
            log.warning("dead_letters.stock", lost=sum(stock.lost.values()), removed=sum(stock.removed.values()))
        return stock

    # -- changing ----------------------------------------------------------------------------------------------------

    def purge(self, selection: Selection) -> dict[TableId, int]:
        """Give up what is selected; return how many changes of each target."""
        marks = select_marks(self._destination.diversion.marks, selection)
        self._finish(marks)
        removed: dict[TableId, int] = {}
        for mark in marks:
            removed[mark.target] = removed.get(mark.target, 0) + 1
        return removed

    def _finish(self, marks: Sequence[Mark]) -> None:
        """Take marks away, then their entries."""
        if not marks:
            return
        names = [one.entry for one in marks]
        self._destination.refusals.store.forget_entries(names)
        self._destination.diversion.remove(names)
        finished: dict[TableId, dict[str, str]] = {}
        for mark in marks:
            finished.setdefault(mark.source, {})[mark.stream_id] = mark.entry
        for source, entries in finished.items():
            self.queue.finish(source, entries)

    def replay(self, selection: Selection, stopping: Callable[[], bool]) -> ReplayResult:
        """Bring what is selected into the landing tables: the net change of each key, as an event at a new position."""
        result = ReplayResult()
        keys = [
            key
            for key in _by_key(_chosen(self._destination.diversion.marks, selection))
            if _is_due(key.marks, selection, datetime.now(UTC))
        ]
        for start in range(0, len(keys), PAGE_KEYS):
            if stopping():
                break
            self._page(keys[start : start + PAGE_KEYS], result)
        if result.keys or result.refused:
            log.info("dead_letters.replayed", destination=self.name, **result.as_json())
        return result

    def _page(self, keys: Sequence[_Key], result: ReplayResult) -> None:
        states = {one.sync.target: one for one in self._destination.table_states()}
        usable = [key for key in keys if self._usable(key, states, result)]
        usable = self._folded(usable, states, result)
        done: list[Mark] = []
        by_target: dict[TableId, list[_Key]] = {}
        for key in usable:
            by_target.setdefault(key.marks[0].mark.target, []).append(key)
        for target, some in by_target.items():
            first = self._destination.replay_position(target)
            if first is None:
                result.stuck[str(target)] = "a batch is under way: the pipeline has to go on a little first"
                continue
            changes = [(key.change, key.entries) for key in some if key.change is not None]
            refused = self._destination.bring_back(states[target].sync, changes, first) if changes else {}
            done += self._noted(some, refused, result)
        self._finish(done)

    def _noted(self, keys: Sequence[_Key], refused: Mapping[str, Refusal], result: ReplayResult) -> list[Mark]:
        """Count what a replay did, and return the marks of keys that are free again."""
        done: list[Mark] = []
        attempts: dict[str, tuple[str, str]] = {}
        for key in keys:
            first = key.marks[0].mark
            why = refused.get(first.key_hash)
            if why is None:
                result.keys += 1
                result.entries += len(key.marks)
                result.refetched += key.refetched
                done += [one.mark for one in key.marks]
                continue
            result.refused += 1
            result.reasons[why.message] = result.reasons.get(why.message, 0) + 1
            attempts[first.entry] = (why.sqlstate, why.message)
        if attempts:
            self._destination.refusals.store.note_attempts(attempts)
            self._destination.refusals.reload()
        return done

    def _usable(self, key: _Key, states: Mapping[TableId, TableState], result: ReplayResult) -> bool:
        mark = key.marks[0].mark
        state = states.get(mark.target)
        if state is None or not state.ready:
            result.stuck[str(mark.target)] = "the table is being loaded"
            return False
        present = state.schema.key or state.schema.stream_names
        if any(one.mark.key_columns != present for one in key.marks):
            result.stuck[str(mark.target)] = (
                "the columns that tell its rows apart have changed since: load the table again, which clears its queue"
            )
            return False
        return True

    def _folded(self, keys: Sequence[_Key], states: Mapping[TableId, TableState], result: ReplayResult) -> list[_Key]:
        """Fold the entries of keys; where that does not give the whole row, take the source's present one."""
        by_source: dict[TableId, list[str]] = {}
        for key in keys:
            by_source.setdefault(key.marks[0].mark.source, []).extend(one.mark.stream_id for one in key.marks)
        found = {source: self.queue.claim(source, ids, self._consumer) for source, ids in by_source.items()}
        usable: list[_Key] = []
        lost: dict[TableId, list[_Key]] = {}
        for key in keys:
            first = key.marks[0].mark
            state = states[first.target]
            if self._fold(key, found[first.source], state):
                usable.append(key)
            elif first.key is not None and state.source_schema is None and not state.shape:
                lost.setdefault(first.target, []).append(key)
            else:
                result.stuck[str(first.target)] = (
                    "entries were lost, and the table has no key or its sync has a shape, so that its rows cannot be "
                    "read from the source: load the table again"
                )
        for target, some in lost.items():
            self._refetch(some, states[target])
            usable += some
        return usable

    def _fold(self, key: _Key, letters: Mapping[str, Letter], state: TableState) -> bool:
        """Set the net change of a key; tell whether its entries say all of it."""
        whole = [letters.get(one.mark.stream_id) for one in key.marks]
        known = [
            one for one, mark in zip(whole, key.marks, strict=True) if one is not None and one.entry == mark.mark.entry
        ]
        if len(known) < len(key.marks) or (state.schema.key and any(one.late for one in key.marks)):
            return False
        key.change = fold(known, state.sync, state.schema)
        return key.change is None or not _leaves_out(key.change, state.schema)

    def _refetch(self, keys: Sequence[_Key], state: TableState) -> None:
        wanted = [key.marks[0].mark.key or () for key in keys]
        rows = self._fetch(state.schema, wanted)
        log.warning("dead_letters.refetched", table=str(state.sync.target), keys=len(keys), found=len(rows))
        for key, identity in zip(keys, wanted, strict=True):
            key.refetched = True
            values = rows.get(identity)
            if values is not None:
                key.change = RowChange(state.sync, state.schema, RowOperation.PUT, tuple(values))
            else:
                given = dict(zip(state.schema.key, identity, strict=True))
                texts = tuple(given.get(name) for name in state.schema.stream_names)
                key.change = RowChange(state.sync, state.schema, RowOperation.DELETE, texts)


def select_marks(marks: Sequence[EventMark], selection: Selection) -> list[Mark]:
    """Return the marks that are meant, in order."""
    return [one.mark for one in _chosen(marks, selection)]


def page_of(marks: Sequence[EventMark], selection: Selection, after: int, limit: int) -> list[Mark]:
    """Return all marks of the next keys after a number, in order."""
    keys = [key for key in _by_key(_chosen(marks, selection)) if key.marks[0].mark.number > after][:limit]
    return sorted((one.mark for key in keys for one in key.marks), key=lambda mark: mark.number)


def _chosen(marks: Sequence[EventMark], selection: Selection) -> list[EventMark]:
    chosen = [one for one in marks if selection.target in (None, one.mark.target)]
    if selection.entry is None:
        return chosen
    keys = {(one.mark.target, one.mark.key_hash) for one in chosen if one.mark.entry == selection.entry}
    return [one for one in chosen if (one.mark.target, one.mark.key_hash) in keys]


def _by_key(marks: Iterable[EventMark]) -> list[_Key]:
    keys: dict[tuple[TableId, str], _Key] = {}
    for one in marks:
        keys.setdefault((one.mark.target, one.mark.key_hash), _Key([])).marks.append(one)
    return list(keys.values())


def _is_due(marks: Sequence[EventMark], selection: Selection, now: datetime) -> bool:
    attempts = max(one.mark.attempts for one in marks)
    if selection.retries is not None and attempts >= selection.retries:
        return False
    if selection.retry_seconds is None:
        return True
    since = max((one.mark.last_attempt_at for one in marks if one.mark.last_attempt_at), default=None)
    since = since or min(one.mark.created_at for one in marks)
    return (now - since).total_seconds() > min(_MOST_SECONDS, selection.retry_seconds * 2.0 ** min(attempts, 20))


def _leaves_out(change: RowChange, schema: TableSchema) -> bool:
    """Tell whether a change leaves values out that a merge cannot take from the target."""
    marks = zip(change.unchanged or "", schema.stream_columns, strict=False)
    return any(mark == "1" and not toastable(column) for mark, column in marks)
