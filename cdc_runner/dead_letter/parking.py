"""Whole batches of a destination that cannot be reached, kept in Redis until it can.

The stream `park:{source_id}:{destination_id}` holds a batch as pieces of Arrow data and an end. Only a batch with its
end counts; what a broken attempt left behind is removed by the next one. Batches join without a gap: each names the
position after which it begins. Once a batch is here the slot may pass it, so what Redis loses is lost, and is noticed:
before a batch is added, and when batches are taken out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pyarrow as pa

from cdc_runner.capture.base import TableVersion
from cdc_runner.dead_letter.parked import (
    Entry,
    Fields,
    Head,
    ParkedBatch,
    ParkedChange,
    Segments,
    Span,
    pack,
    read_head,
    unpack,
    write_head,
)
from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.destinations.postgres.state import schema_from_json
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.failpoints import Failpoint, reach
from cdc_runner.position import Position, format_lsn
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import ResolvedSync

PIECE_BYTES = 4 * 1024 * 1024
_READ_AT_ONCE = 4
_READ_AHEAD = 16
GROUP_BYTES = 2 * 1024 * 1024
GROUP_BATCHES = 500
"""Up to so much is taken out together."""


class ParkingLot:
    """The parked batches of one destination. Used by one thread."""

    def __init__(self, store: LetterStore, source_id: int, destination_id: int, *, most_bytes: int) -> None:
        """Args:
        store: Redis; made with `binary`.
        source_id: id of the source in the config database.
        destination_id: id of the destination there.
        most_bytes: bytes in Redis beyond which nothing is taken any more.
        """
        self.store = store
        self._name = f"park:{source_id}:{destination_id}"
        self._schemas = f"{self._name}:schema"
        self._most = most_bytes
        self._forget()

    def _forget(self) -> None:
        """Nothing is parked."""
        self.span: Span | None = None
        self._last: bytes | None = None
        self._number = 0
        self._total = 0
        self._ends: dict[int, bytes] = {}
        self._kept: set[str] = set()
        self._known: dict[str, TableSchema] = {}

    # -- writing -------------------------------------------------------------------------------------------------------

    def load(self) -> Span | None:
        """Find out what is parked, and remove a batch that has no end.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE.
        """
        self._forget()
        with self.store.client() as client:
            last = self._last_end(client)
            if last is None:
                client.delete(self._name, self._schemas)
                return None
            self._last, end = last
            begin, finish = read_head(client.xrange(self._name, count=1)[0][1]), read_head(end)
            self._number, self._total = finish.number, finish.before + int(end[b"size"])
            self.span = Span(
                Position(begin.after),
                Position(finish.through),
                finish.number - begin.number + 1,
                self._total - begin.before,
            )
        return self.span

    def _last_end(self, client: Any) -> tuple[bytes, Fields] | None:
        top = "+"
        while rows := client.xrevrange(self._name, top, "-", count=_READ_AT_ONCE):
            broken: list[bytes] = []
            for entry, fields in rows:
                if fields[b"kind"] == b"end":
                    _remove(client, self._name, broken)
                    return entry, fields
                broken.append(entry)
            _remove(client, self._name, broken)
            top = f"({rows[-1][0].decode()}"
        return None

    def append(self, segments: Segments, after: Position, through: Position, commit_time: float) -> None:
        """Park a batch; it is on Redis' disk when this returns.

        Args:
            segments: its net changes, shaped for the destination.
            after: position up to which everything is applied or parked.
            through: position of the batch's last transaction.
            commit_time: its commit time at the source, seconds since the epoch.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE or DEAD_LETTER_FULL, it is not parked; PARKED_LOST.
        """
        self.store.require_durable()
        span = self.span
        used = 0 if span is None else span.size
        head = Head(self._number + 1, after.lsn, through.lsn, commit_time, self._total)
        size = pieces = 0
        with self.store.client() as client:
            if span is None:
                client.delete(self._name, self._schemas)
                self._kept.clear()
            else:
                self._check_last(client)
            for place, segment in enumerate(segments):
                for sync, change in segment:
                    for fields in self._pieces(client, head, place, sync, change):
                        size += sum(len(value) for value in fields.values())
                        if used + size > self._most:
                            self._drop_broken(client)
                            raise self._full()
                        client.xadd(self._name, fields)
                        pieces += 1
                        reach(Failpoint.DURING_PARK)
            end = {b"kind": b"end", b"head": write_head(head), b"size": size, b"pieces": pieces}
            last = client.xadd(self._name, end)
            self.store.sync()
        reach(Failpoint.AFTER_PARK)
        self._last, self._number, self._total = last, head.number, head.before + size
        self.span = Span(after if span is None else span.after, through, 1 + (span.batches if span else 0), used + size)

    def _full(self) -> RosettaError:
        megabytes = self._most // (1024 * 1024)
        return RosettaError(
            ErrorKind.DEAD_LETTER_FULL, f"{megabytes} MB of changes are parked, which is the most (park_max_megabytes)"
        )

    def _check_last(self, client: Any) -> None:
        """Make sure that the stream ends where we left it, without what a broken attempt left."""
        assert self._last is not None, "something is parked"
        self._drop_broken(client)
        if not client.xrange(self._name, self._last, self._last):
            raise self._lost()

    def _drop_broken(self, client: Any) -> None:
        if self._last is None:
            client.delete(self._name, self._schemas)
            return
        while rows := client.xrevrange(self._name, "+", f"({self._last.decode()}", count=_READ_AT_ONCE):
            _remove(client, self._name, [entry for entry, _ in rows])

    def _lost(self) -> RosettaError:
        span = self.span
        between = "" if span is None else f" between {format_lsn(span.after.lsn)} and {format_lsn(span.through.lsn)}"
        return RosettaError(
            ErrorKind.PARKED_LOST, f"Redis at {self.store.place} has lost changes that were parked{between}"
        )

    def _pieces(
        self, client: Any, head: Head, segment: int, sync: ResolvedSync, change: NetChange
    ) -> Iterator[dict[bytes, bytes]]:
        schema = change.version.schema
        origin = None if change.origin is None else change.origin.schema
        content = {
            "segment": segment,
            "sync": [sync.source.schema, sync.source.name, sync.target.schema, sync.target.name],
            "kind": change.kind.value,
            "truncate": change.truncate,
            "partial": change.partial,
            "deletes": change.deletes,
            "events": change.events,
            "updates": change.updates,
            "emptied_at": change.emptied_at,
            "marks_deletes": change.marks_deletes,
            "schema": self._keep_schema(client, schema),
            "origin": None if origin is None else self._keep_schema(client, origin),
        }
        rows = change.rows
        step = max(1, rows.num_rows * PIECE_BYTES // max(1, rows.nbytes))
        for start in range(0, max(1, rows.num_rows), step):
            yield {
                b"kind": b"more" if start else b"change",
                b"head": write_head(head),
                b"change": b"" if start else json.dumps(content).encode(),
                b"rows": pack(rows.slice(start, step)),
            }

    def _keep_schema(self, client: Any, schema: TableSchema) -> str:
        text = json.dumps(asdict(schema), sort_keys=True)
        name = f"{schema.table}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        if name not in self._kept:
            client.hset(self._schemas, name, text)
            self._kept.add(name)
        return name

    # -- taking out ----------------------------------------------------------------------------------------------------

    def oldest(self, upto: Position | None = None) -> list[ParkedBatch]:
        """Return the oldest batches, as many as are small together and on one side of `upto`; none when none is parked.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE, PARKED_LOST.
        """
        first = self.first()
        if first is None:
            return []
        group: list[ParkedBatch] = []
        for after, batch in self._small_batches():
            if group and (after != group[-1].last or (upto is not None and group[0].last <= upto < batch.last)):
                break
            group.append(batch)
        return group or [first]

    def first(self) -> ParkedBatch | None:
        """Return the oldest batch.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE, PARKED_LOST.
        """
        if self.span is None:
            return None
        with self.store.client() as client:
            rows = client.xrange(self._name, count=1)
        if not rows:
            raise self._lost()
        head = read_head(rows[0][1])
        if head.after != self.span.after.lsn:
            raise self._lost()
        return self._batch(head, lambda: self._entries(rows[0][0]))

    def _batch(self, head: Head, entries: Callable[[], Iterable[Entry]]) -> ParkedBatch:
        number, through = head.number, Position(head.through)
        return ParkedBatch(number, through, head.commit_at, lambda: self._segments(number, entries()))

    def _small_batches(self) -> Iterator[tuple[Position, ParkedBatch]]:
        """Yield the oldest batches with the position after which each begins, while they are small together.

        They are in memory: to ask Redis for each of thousands takes longer than to apply them.
        """
        mine: list[Entry] = []
        size = count = number = 0
        for entry in self._entries("-", _READ_AHEAD):
            head = read_head(entry[1])
            if mine and head.number != number:
                return
            number = head.number
            mine.append(entry)
            size += sum(map(len, entry[1].values()))
            if entry[1][b"kind"] == b"end":
                yield Position(head.after), self._batch(head, partial(list, mine))
                mine, count = [], count + 1
            if size > GROUP_BYTES or count >= GROUP_BATCHES:
                return

    def _segments(self, number: int, entries: Iterable[Entry]) -> Iterator[list[ParkedChange]]:
        """Yield the segments of a batch; a change that was cut into pieces is put together again."""
        place, segment = 0, list[ParkedChange]()
        for content, rows in self._changes(number, entries):
            if content["segment"] != place and segment:
                yield segment
                segment = []
            place = content["segment"]
            segment.append(self._change(content, pa.concat_tables(rows)))
        if segment:
            yield segment

    def _changes(self, number: int, entries: Iterable[Entry]) -> Iterator[tuple[dict[str, Any], list[pa.Table]]]:
        content: dict[str, Any] | None = None
        rows: list[pa.Table] = []
        for pieces, (entry, fields) in enumerate(entries):
            if read_head(fields).number != number:
                break
            if fields[b"kind"] == b"end":
                if content is not None:
                    yield content, rows
                if pieces != int(fields[b"pieces"]):
                    break
                self._ends[number] = entry
                return
            if fields[b"kind"] == b"change":
                if content is not None:
                    yield content, rows
                content, rows = json.loads(fields[b"change"]), []
            rows.append(unpack(fields[b"rows"]))
        raise self._lost()

    def _entries(self, start: bytes | str, at_once: int = _READ_AT_ONCE) -> Iterator[Entry]:
        low = start if isinstance(start, str) else start.decode()
        while True:
            with self.store.client() as client:
                found = client.xrange(self._name, low, "+", count=at_once)
            yield from found
            if not found:
                return
            low = f"({found[-1][0].decode()}"

    def _change(self, content: Mapping[str, Any], rows: pa.Table) -> ParkedChange:
        source_schema, source, target_schema, target = content["sync"]
        origin = content["origin"]
        change = NetChange(
            NetKind(content["kind"]),
            TableVersion(self._schema(content["schema"]), 0),
            content["truncate"],
            rows,
            content["partial"],
            content["deletes"],
            content["events"],
            updates=content["updates"],
            emptied_at=content["emptied_at"],
            # What an earlier version has parked does not say.
            marks_deletes=content.get("marks_deletes", False),
        )
        return ParkedChange(
            TableId(source_schema, source),
            TableId(target_schema, target),
            change,
            None if origin is None else self._schema(origin),
        )

    def _schema(self, name: str) -> TableSchema:
        if name not in self._known:
            with self.store.client() as client:
                text = client.hget(self._schemas, name)
            if text is None:
                raise self._lost()
            self._known[name] = schema_from_json(text)
        return self._known[name]

    def remove(self, batch: ParkedBatch) -> None:
        """Remove a batch and all before it, which the destination holds by now.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE; it is still there, and is passed over when it is taken out again.
        """
        span = self.span
        assert span is not None, "something is parked"
        with self.store.client() as client:
            end = self._ends.get(batch.number)
            self._ends = {number: entry for number, entry in self._ends.items() if number > batch.number}
            if end is not None:
                client.xtrim(self._name, minid=end, approximate=False)
                client.xdel(self._name, end)
            else:
                # The destination had it already, so that nobody has read through it.
                self._remove_slowly(client, batch.number)
            rows = client.xrange(self._name, count=1)
            if not rows:
                if batch.number < self._number:
                    raise self._lost()
                client.delete(self._name, self._schemas)
                self._forget()
                return
        head = read_head(rows[0][1])
        left = self._number - head.number + 1
        self.span = replace(span, after=batch.last, batches=left, size=self._total - head.before)

    def _remove_slowly(self, client: Any, number: int) -> None:
        while rows := client.xrange(self._name, count=_READ_AT_ONCE):
            mine = [entry for entry, fields in rows if read_head(fields).number <= number]
            _remove(client, self._name, mine)
            if len(mine) < len(rows):
                return

    def clear(self) -> None:
        """Remove everything.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE.
        """
        with self.store.client() as client:
            client.delete(self._name, self._schemas)
        self._forget()


def _remove(client: Any, name: str, entries: Sequence[bytes]) -> None:
    if entries:
        client.xdel(name, *entries)
