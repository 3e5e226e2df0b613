"""Streams of one pipeline and destination: append, claim, acknowledge, edit.

A source table has the stream `dlq:{source_id}:{table}:{destination_id}`; the hash `…:edit` beside it holds what an
operator changed. The consumer group `replay` knows which entries are being replayed and how often that was tried. An
entry leaves the stream when the destination has committed it. Nothing is ever trimmed.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import ResponseError

from cdc_runner.dead_letter.letter import Letter, from_fields, to_fields
from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.destinations.letters import RowChange, StoredLetter
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.failpoints import Failpoint, reach
from cdc_runner.position import Position
from cdc_runner.schema import TableId

GROUP = "replay"
_PAGE = 1000


class DeadLetterQueue:
    """The queue of one pipeline and destination; a `LetterSink`."""

    def __init__(
        self, store: LetterStore, pipeline: str, source_id: int, destination_id: int, *, max_entries: int = 100_000
    ) -> None:
        """Args:
        store: Redis.
        pipeline: identity of the pipeline.
        source_id: id of the source in the config database.
        destination_id: id of the destination there.
        max_entries: most entries of a stream; beyond them nothing is taken any more.
        """
        self.store = store
        self._pipeline = pipeline
        self._source_id = source_id
        self._destination_id = destination_id
        self._max_entries = max_entries
        # Waiting for the disk is by connection, so that no other thread may use it in between.
        self._appending = threading.Lock()

    def stream(self, source: TableId) -> str:
        """Return the name of a source table's stream."""
        return f"dlq:{self._source_id}:{source}:{self._destination_id}"

    @property
    def requests(self) -> str:
        """Name of the list in which other processes ask the pipeline for something (`dead_letter.requests`)."""
        return f"dlq-ask:{self._source_id}:{self._destination_id}"

    # -- writing -------------------------------------------------------------------------------------------------------

    def append(self, changes: Sequence[RowChange], position: Position, commit_time: float) -> list[StoredLetter]:
        """Store changes in order and return when they are on disk; see `LetterSink`.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE, DEAD_LETTER_FULL.
        """
        self.store.require_durable()
        now = time.time()
        entries = [uuid.uuid4().hex for _ in changes]
        with self._appending, self.store.client() as client:
            self._check_room(client, changes)
            pipe = client.pipeline(transaction=False)
            for entry, change in zip(entries, changes, strict=True):
                fields = to_fields(entry, self._pipeline, change, position, commit_time, now)
                pipe.xadd(self.stream(change.sync.source), fields)
            ids = pipe.execute()
            self.store.sync()
        return [StoredLetter(*each) for each in zip(entries, ids, changes, strict=True)]

    def withdraw(self, letters: Sequence[StoredLetter]) -> None:
        """Remove what was stored for a transaction that was rolled back; see `LetterSink`."""
        by_source: dict[TableId, dict[str, str]] = {}
        for one in letters:
            by_source.setdefault(one.change.sync.source, {})[one.stream_id] = one.entry
        with self._appending:
            for source, entries in by_source.items():
                self.finish(source, entries)

    def _check_room(self, client: Any, changes: Sequence[RowChange]) -> None:
        added: dict[TableId, int] = {}
        for change in changes:
            added[change.sync.source] = added.get(change.sync.source, 0) + 1
        for source, count in added.items():
            if self.length(source) + count > self._max_entries:
                raise RosettaError(
                    ErrorKind.DEAD_LETTER_FULL,
                    f"the dead-letter queue of table {source} holds its most entries ({self._max_entries})",
                    {"table": str(source)},
                )

    def edit(self, letter: Letter) -> None:
        """Keep the values that an operator gave to an entry.

        Raises:
            RosettaError: DEAD_LETTER_UNAVAILABLE.
        """
        self.store.require_durable()
        value = json.dumps({"values": letter.values, "unchanged": letter.unchanged}, ensure_ascii=False)
        with self.store.client() as client:
            client.hset(self._edits(letter.source), letter.entry, value)
        self.store.sync()

    def finish(self, source: TableId, letters: Mapping[str, str]) -> None:
        """Acknowledge entries that a destination has committed, and remove them. Idempotent.

        Args:
            source: the stream's table.
            letters: stream ids and names of the entries.
        """
        name = self.stream(source)
        ids = list(letters)
        reach(Failpoint.BEFORE_XACK)
        with self.store.client() as client:
            pipe = client.pipeline(transaction=False)
            for start in range(0, len(ids), _PAGE):
                some = ids[start : start + _PAGE]
                if client.exists(name):
                    _make_group(client, name)
                    pipe.xack(name, GROUP, *some)
                pipe.xdel(name, *some)
                pipe.hdel(self._edits(source), *(letters[one] for one in some))
            pipe.execute()
            if not client.xlen(name):
                # An empty stream keeps its group; without entries neither is needed.
                client.delete(name, self._edits(source))

    def forget(self) -> int:
        """Remove every stream of this pipeline and destination; return how many entries they had."""
        count = 0
        with self.store.client() as client:
            for name in self._names(client):
                count += client.xlen(name)
                client.delete(name, f"{name}:edit")
        return count

    # -- reading -------------------------------------------------------------------------------------------------------

    def length(self, source: TableId) -> int:
        """Return how many entries a table's stream has."""
        with self.store.client() as client:
            return int(client.xlen(self.stream(source)))

    def claim(self, source: TableId, ids: Sequence[str], consumer: str) -> dict[str, Letter]:
        """Take entries for a replay, and return those that are there, by id, with an operator's changes.

        A consumer that died keeps nothing: whoever holds the destination's lock may take its entries.
        """
        name = self.stream(source)
        found: dict[str, Letter] = {}
        with self.store.client() as client:
            if not client.exists(name):
                return found
            _make_group(client, name)
            for start in range(0, len(ids), _PAGE):
                some = list(ids[start : start + _PAGE])
                for stream_id, fields in client.xclaim(name, GROUP, consumer, 0, some, force=True):
                    if fields:
                        found[stream_id] = from_fields(stream_id, fields)
            return self._edited(client, source, found)

    def read(self, source: TableId, ids: Sequence[str]) -> dict[str, Letter]:
        """Return the entries that are there, by id, with an operator's changes."""
        name = self.stream(source)
        with self.store.client() as client:
            found: dict[str, Letter] = {}
            for start in range(0, len(ids), _PAGE):
                pipe = client.pipeline(transaction=False)
                for stream_id in ids[start : start + _PAGE]:
                    pipe.xrange(name, stream_id, stream_id)
                for rows in pipe.execute():
                    for stream_id, fields in rows:
                        found[stream_id] = from_fields(stream_id, fields)
            return self._edited(client, source, found)

    def ids(self, source: TableId) -> Iterator[tuple[str, str]]:
        """Yield id and name of every entry of a table's stream, in order."""
        start = "-"
        while True:
            with self.store.client() as client:
                rows = client.xrange(self.stream(source), start, "+", count=_PAGE)
            for stream_id, fields in rows:
                yield stream_id, fields.get("entry", "")
            if len(rows) < _PAGE:
                return
            start = f"({rows[-1][0]}"

    def sources(self) -> list[TableId]:
        """Return the source tables that have a stream."""
        with self.store.client() as client:
            prefix, suffix = f"dlq:{self._source_id}:", f":{self._destination_id}"
            tables = []
            for name in self._names(client):
                rows = client.xrange(name, count=1)
                if rows:
                    tables.append(from_fields(*rows[0]).source)
                else:
                    schema, _, table = name[len(prefix) : -len(suffix)].partition(".")
                    tables.append(TableId(schema, table))
            return sorted(set(tables))

    def _edited(self, client: Any, source: TableId, found: dict[str, Letter]) -> dict[str, Letter]:
        names = [letter.entry for letter in found.values()]
        if not names:
            return found
        edits = client.hmget(self._edits(source), names)
        for (stream_id, letter), edit in zip(list(found.items()), edits, strict=True):
            if edit is not None:
                given = json.loads(edit)
                found[stream_id] = letter.overlaid(tuple(given["values"]), given["unchanged"])
        return found

    def _names(self, client: Any) -> list[str]:
        pattern = f"dlq:{self._source_id}:*:{self._destination_id}"
        return sorted(client.scan_iter(match=pattern, count=_PAGE, _type="stream"))

    def _edits(self, source: TableId) -> str:
        return f"{self.stream(source)}:edit"


def _make_group(client: Any, name: str) -> None:
    with suppress(ResponseError):  # it is there already
        client.xgroup_create(name, GROUP, id="0")
