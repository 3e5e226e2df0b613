"""Marks of the changes that wait in the dead-letter queue, in a table of their own beside the other state.

An event has the same position whenever it comes, so its mark is known by that: a batch that comes again after a crash
finds the marks of its first time. `REPLAY` is the position at which a change is being brought back; whether that landed
is told by the offset token of the table's channel, so a replay that died is neither lost nor done twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cdc_runner.destinations.letters import StoredLetter, identity_columns, key_text
from cdc_runner.destinations.marks import Mark
from cdc_runner.destinations.snowflake.naming import Naming
from cdc_runner.destinations.snowflake.sql import SqlSession, literal, literals
from cdc_runner.position import Position
from cdc_runner.schema import TableId

WAITING = "WAITING"
CHANNEL = "CHANNEL"
_COLUMNS = (
    "SOURCE_SCHEMA", "SOURCE_TABLE", "SYNC_SCHEMA", "SYNC_TABLE", "KEY_HASH", "ENTRY", "STREAM_ID", "KEY_COLUMNS",
    "KEY_TEXT", "POSITION", "OPERATION", "SQLSTATE", "REASON", "ATTEMPTS", "LAST_ATTEMPT_AT", "CREATED_AT", "LATE",
    "REPLAY",
)  # fmt: skip
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class EventMark:
    """A mark, with what only destinations of events know.

    Attributes:
        mark: as other destinations have it; `number` is its place among all.
        position: of the event.
        late: a later event of its key has landed already, so only the source's present row can take its place.
        replay: position at which it is being brought back; None when it is not.
    """

    mark: Mark
    position: str
    late: bool
    replay: str | None


@dataclass(frozen=True, slots=True)
class PutAside:
    """A stored change and the position of its event."""

    letter: StoredLetter
    position: str
    late: bool = False


class WaitingStore:
    """The marks of one pipeline and destination, and how many rejected rows of each channel are accounted for."""

    def __init__(self, sql: SqlSession, naming: Naming, writer: str) -> None:
        """Args:
        sql: runs statements.
        naming: names of the state tables.
        writer: identifies pipeline and destination.
        """
        self._sql = sql
        self.table = naming.state(WAITING)
        self._channels = naming.state(CHANNEL)
        self._mine = f"PIPELINE = {literal(writer)}"
        self._writer = writer

    def create(self) -> None:
        """Make the tables unless they are there."""
        columns = ", ".join(f"{name} VARCHAR" for name in ("PIPELINE", *_COLUMNS))
        for table, definition in (
            (self.table, columns),
            (self._channels, "PIPELINE VARCHAR, CHANNEL VARCHAR, REJECTED VARCHAR"),
        ):
            self._sql.run(f"CREATE TABLE IF NOT EXISTS {table.quoted} ({definition})", f"create {table.name}")

    def read(self) -> list[EventMark]:
        """Return every mark, in the order of the events."""
        found = self._sql.run(
            f"SELECT {', '.join(_COLUMNS)} FROM {self.table.quoted} WHERE {self._mine} ORDER BY POSITION, ENTRY",
            "read what waits",
        )
        return [_event_mark(number, row) for number, row in enumerate(found.rows, 1)]

    def add(self, aside: Sequence[PutAside], number: int = 0) -> list[EventMark]:
        """Write the marks of stored changes, and return them.

        Args:
            aside: what was stored, in the order of the events.
            number: of the last mark that is known.
        """
        now = datetime.now(UTC).isoformat()
        width = len(_COLUMNS) + 1
        for start in range(0, len(aside), _AT_ONCE):
            some = aside[start : start + _AT_ONCE]
            values = ", ".join([f"({', '.join(['?'] * width)})"] * len(some))
            bindings = [value for one in some for value in (self._writer, *_values(one, now))]
            self._sql.run(
                f"INSERT INTO {self.table.quoted} (PIPELINE, {', '.join(_COLUMNS)}) VALUES {values}",
                "note what waits",
                bindings=bindings,
            )
        return [_event_mark(place, _values(one, now)) for place, one in enumerate(aside, number + 1)]

    def forget_entries(self, entries: Iterable[str]) -> None:
        """Remove the marks of entries."""
        for some in _pages(list(entries)):
            self._sql.run(
                f"DELETE FROM {self.table.quoted} WHERE {self._mine} AND ENTRY IN ({literals(some)})",
                "forget what waited",
            )

    def forget_target(self, target: TableId) -> None:
        """Remove the marks of a target that was emptied or is loaded anew."""
        self._sql.run(
            f"DELETE FROM {self.table.quoted} WHERE {self._mine} AND SYNC_SCHEMA = {literal(target.schema)} "
            f"AND SYNC_TABLE = {literal(target.name)}",
            "forget what waited for a table",
        )

    def forget(self) -> None:
        """Remove everything that is kept for the pipeline."""
        for table in (self.table, self._channels):
            self._sql.run(f"DELETE FROM {table.quoted} WHERE {self._mine}", "forget what waited")

    def note_attempts(self, refused: Mapping[str, tuple[str, str]]) -> None:
        """Count a refused replay of entries.

        Args:
            refused: entry -> SQLSTATE and reason.
        """
        now = literal(datetime.now(UTC).isoformat())
        by_reason: dict[tuple[str, str], list[str]] = {}
        for entry, why in refused.items():
            by_reason.setdefault(why, []).append(entry)
        for (sqlstate, reason), entries in by_reason.items():
            for some in _pages(entries):
                self._sql.run(
                    f"UPDATE {self.table.quoted} SET ATTEMPTS = CAST(CAST(ATTEMPTS AS INTEGER) + 1 AS VARCHAR), "
                    f"LAST_ATTEMPT_AT = {now}, SQLSTATE = {literal(sqlstate)}, REASON = {literal(reason)} "
                    f"WHERE {self._mine} AND ENTRY IN ({literals(some)})",
                    "note a refused replay",
                )

    def note_replay(self, entries: Sequence[str], position: str | None) -> None:
        """Store at which position changes are brought back; done when the channel's token has reached it.

        None: they were refused again.
        """
        for some in _pages(entries):
            self._sql.run(
                f"UPDATE {self.table.quoted} SET REPLAY = {literal(position)} WHERE {self._mine} "
                f"AND ENTRY IN ({literals(some)})",
                "note a replay",
            )

    # -- rejected rows -----------------------------------------------------------------------------------------------

    def rejected(self) -> dict[str, int]:
        """Return how many rejected rows of each channel are accounted for."""
        found = self._sql.run(
            f"SELECT CHANNEL, MAX(CAST(REJECTED AS INTEGER)) FROM {self._channels.quoted} WHERE {self._mine} "
            "GROUP BY CHANNEL",
            "read the rejected rows",
        )
        return {str(row[0]): int(str(row[1])) for row in found.rows}

    def note_rejected(self, channel: str, count: int) -> None:
        """Store that so many rejected rows of a channel are accounted for."""
        self._sql.run(
            f"INSERT INTO {self._channels.quoted} (PIPELINE, CHANNEL, REJECTED) "
            f"VALUES ({literal(self._writer)}, {literal(channel)}, {literal(str(count))})",
            "note the rejected rows",
        )


def _values(one: PutAside, now: str) -> tuple[str | None, ...]:
    letter = one.letter
    change = letter.change
    sync, refusal = change.sync, change.refusal
    return (
        sync.source.schema, sync.source.name, sync.target.schema, sync.target.name, change.key_hash, letter.entry,
        letter.stream_id, json.dumps(identity_columns(change.schema)),
        key_text(change.key) if change.schema.key else None, one.position, change.operation.value,
        refusal.sqlstate if refusal else None, refusal.message if refusal else None, "0", None, now,
        "1" if one.late else "0", None,
    )  # fmt: skip


def _event_mark(number: int, row: Sequence[str | None]) -> EventMark:
    given = dict(zip(_COLUMNS, row, strict=True))
    text, position, attempted = given["KEY_TEXT"], str(given["POSITION"]), given["LAST_ATTEMPT_AT"]
    mark = Mark(
        source=TableId(str(given["SOURCE_SCHEMA"]), str(given["SOURCE_TABLE"])),
        target=TableId(str(given["SYNC_SCHEMA"]), str(given["SYNC_TABLE"])),
        key_hash=str(given["KEY_HASH"]),
        number=number,
        entry=str(given["ENTRY"]),
        stream_id=str(given["STREAM_ID"]),
        key_columns=tuple(json.loads(str(given["KEY_COLUMNS"]))),
        key=None if text is None else tuple(json.loads(text)),
        end_lsn=Position.parse(position).lsn,
        operation=str(given["OPERATION"]),
        sqlstate=given["SQLSTATE"],
        reason=given["REASON"],
        attempts=int(given["ATTEMPTS"] or 0),
        last_attempt_at=None if attempted is None else datetime.fromisoformat(attempted),
        created_at=datetime.fromisoformat(str(given["CREATED_AT"])),
    )
    return EventMark(mark, position, given["LATE"] == "1", given["REPLAY"])


def _pages(entries: Sequence[str]) -> Iterable[Sequence[str]]:
    return (entries[start : start + 1000] for start in range(0, len(entries), 1000))
