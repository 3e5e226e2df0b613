"""Dead letters for the three doors: list, inspect, edit, replay, export, purge.

Everything here works beside a running pipeline, and without one: the destination's marks say what waits, each change is
made under the lock of the pipeline's position. Only `inspect_letter` and `export_letters` return values of rows.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Engine

from cdc_runner.catalog.credentials import Keyring
from cdc_runner.catalog.database import session_scope
from cdc_runner.catalog.dead_letters import record_discard, report_tables
from cdc_runner.catalog.pipelines import load_pipeline
from cdc_runner.catalog.repositories import get_pipeline
from cdc_runner.dead_letter.letter import Letter
from cdc_runner.destinations.marks import Mark, Selection
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import format_lsn
from cdc_runner.schema import TableId
from cdc_runner.services.dead_letter_desks import Desk, chosen_destinations, open_desks

MAX_LISTED = 1000


@dataclass(frozen=True, slots=True)
class Scope:
    """Which dead letters are meant.

    Attributes:
        pipeline: name of the pipeline.
        destination: only this destination of it.
        table: only this target table, `schema.table`.
        entry: only the key of this entry.
    """

    pipeline: str
    destination: str | None = None
    table: str | None = None
    entry: str | None = None

    def selection(self) -> Selection:
        """Return the keys as the replay wants them named.

        Raises:
            RosettaError: CONFIG_INVALID, the table has no schema.
        """
        if self.table is None:
            return Selection(entry=self.entry)
        schema, dot, name = self.table.partition(".")
        if not dot or not schema or not name:
            raise RosettaError(ErrorKind.CONFIG_INVALID, "a table is named schema.table, as at the destination")
        return Selection(TableId(schema, name), self.entry)


def list_letters(engine: Engine, scope: Scope, keyring: Keyring | None = None) -> list[dict[str, Any]]:
    """Return what waits, oldest first, without values of rows; at most MAX_LISTED of each destination.

    Raises:
        RosettaError: NOT_FOUND, and the kinds of the destinations.
    """
    rows: list[dict[str, Any]] = []
    with _desks(engine, scope, keyring) as desks:
        for desk in desks:
            marks = desk.waiting.marks(scope.selection(), MAX_LISTED)
            present = _present(desk, marks)
            rows += [_line(desk, mark, None if present is None else mark.entry in present) for mark in marks]
    return rows


def inspect_letter(engine: Engine, scope: Scope, keyring: Keyring | None = None) -> dict[str, Any]:
    """Return an entry with its values, and the entries that wait for the same key.

    Raises:
        RosettaError: NOT_FOUND, no such entry; DEAD_LETTER_UNAVAILABLE, Redis has lost it or cannot be reached.
    """
    with _desks(engine, scope, keyring) as desks:
        desk, marks = _find(desks, scope)
        mark = next(one for one in marks if one.entry == scope.entry)
        letter = _letter(desk, mark)
        return {
            **_line(desk, mark, True),
            "columns": [name for name, _ in letter.columns],
            "key": dict(zip(mark.key_columns, mark.key, strict=True)) if mark.key is not None else None,
            "values": letter.value_of(),
            "unchanged_columns": [
                name for (name, _), one in zip(letter.columns, letter.unchanged or "", strict=False) if one == "1"
            ],
            "rows": letter.count,
            "edited": letter.edited,
            "entries_of_this_key": [one.entry for one in marks],
        }


def edit_letter(
    engine: Engine, scope: Scope, values: Mapping[str, str | None], keyring: Keyring | None = None
) -> dict[str, Any]:
    """Give an entry other values, which a replay then writes; the source is not changed.

    Args:
        engine: of the config database.
        scope: names the entry.
        values: column -> value as PostgreSQL text, None for NULL.
        keyring: decrypts passwords.

    Raises:
        RosettaError: NOT_FOUND, CONFIG_INVALID, DEAD_LETTER_UNAVAILABLE.
    """
    with _desks(engine, scope, keyring) as desks:
        desk, marks = _find(desks, scope)
        mark = next(one for one in marks if one.entry == scope.entry)
        letter = _letter(desk, mark).with_values(values)
        desk.queue.edit(letter)
        return {"entry": letter.entry, "table": str(letter.target), "edited_columns": sorted(values)}


def replay_letters(
    engine: Engine,
    scope: Scope,
    keyring: Keyring | None = None,
    *,
    dry_run: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Bring what waits into the destinations, in order a key; return what was done, a destination.

    Raises:
        RosettaError: NOT_FOUND, and the kinds of the destinations and of the queue.
    """
    results: list[dict[str, Any]] = []
    with _desks(engine, scope, keyring) as desks:
        for desk in desks:
            selection = scope.selection()
            head = {"pipeline": desk.spec.name, "destination": desk.destination_spec.name}
            if dry_run:
                results.append({**head, "dry_run": True, **_sizes(desk, selection)})
                continue
            try:
                result = desk.waiting.replay(selection, stopping)
            finally:
                _tell_catalog(engine, desk)
            results.append({**head, "dry_run": False, **result})
    return results


def export_letters(engine: Engine, scope: Scope, path: Path, keyring: Keyring | None = None) -> int:
    """Write what waits to a file of JSON lines that only its owner can read; return how many entries.

    The file holds values of rows. It is complete or not there.

    Raises:
        RosettaError: NOT_FOUND, CONFIG_INVALID when the file cannot be written, and the destinations' kinds.
    """
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise RosettaError(ErrorKind.CONFIG_INVALID, f"cannot write {path}: {error.strerror}") from None
    try:
        with (
            os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass") as file,
            _desks(engine, scope, keyring) as desks,
        ):
            for desk in desks:
                count += _export(desk, scope.selection(), file)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return count


def purge_letters(
    engine: Engine, scope: Scope, keyring: Keyring | None = None, *, dry_run: bool = True, why: str = "an operator"
) -> list[dict[str, Any]]:
    """Remove what waits without applying it; the keys' later changes flow again. Recorded as an event, a table.

    Raises:
        RosettaError: NOT_FOUND, and the kinds of the destinations and of the queue.
    """
    results: list[dict[str, Any]] = []
    with _desks(engine, scope, keyring) as desks:
        for desk in desks:
            selection = scope.selection()
            sizes = _sizes(desk, selection)
            head = {"pipeline": desk.spec.name, "destination": desk.destination_spec.name}
            results.append({**head, "dry_run": dry_run, **sizes})
            if dry_run or not sizes["entries"]:
                continue
            removed = desk.waiting.purge(selection)
            with session_scope(engine) as session:
                for table, entries in removed.items():
                    record_discard(session, desk.destination_spec.id, table, entries, f"purged by {why}")
            _tell_catalog(engine, desk)
    return results


# -- pieces ------------------------------------------------------------------------------------------------------------


@contextmanager
def _desks(engine: Engine, scope: Scope, keyring: Keyring | None) -> Iterator[list[Desk]]:
    """Open the destinations that are meant."""
    scope.selection()
    with session_scope(engine) as session:
        spec = load_pipeline(session, get_pipeline(session, scope.pipeline).id, keyring)
    with open_desks(engine, spec, chosen_destinations(spec, scope.destination)) as desks:
        yield desks


def _find(desks: Sequence[Desk], scope: Scope) -> tuple[Desk, list[Mark]]:
    for desk in desks:
        marks = desk.waiting.marks(scope.selection(), MAX_LISTED)
        if any(mark.entry == scope.entry for mark in marks):
            return desk, marks
    raise RosettaError(ErrorKind.NOT_FOUND, f"no dead letter {str(scope.entry)[:40]!r} waits in {scope.pipeline}")


def _letter(desk: Desk, mark: Mark) -> Letter:
    letter = desk.queue.read(mark.source, [mark.stream_id]).get(mark.stream_id)
    if letter is None or letter.entry != mark.entry:
        raise RosettaError(
            ErrorKind.DEAD_LETTER_UNAVAILABLE,
            f"Redis does not have entry {mark.entry} any more; a replay reads the row from the source instead",
        )
    return letter


def _present(desk: Desk, marks: Sequence[Mark]) -> set[str] | None:
    """Return which entries Redis has; None when it cannot be asked."""
    by_source: dict[TableId, list[str]] = {}
    for mark in marks:
        by_source.setdefault(mark.source, []).append(mark.stream_id)
    try:
        return {letter.entry for source, ids in by_source.items() for letter in desk.queue.read(source, ids).values()}
    except RosettaError as error:
        if error.kind is not ErrorKind.DEAD_LETTER_UNAVAILABLE:
            raise
        return None


def _line(desk: Desk, mark: Mark, present: bool | None) -> dict[str, Any]:
    return {
        "entry": mark.entry,
        "pipeline": desk.spec.name,
        "destination": desk.destination_spec.name,
        "table": str(mark.target),
        "source_table": str(mark.source),
        "key_hash": mark.key_hash,
        "operation": mark.operation,
        "position": format_lsn(mark.end_lsn),
        "sqlstate": mark.sqlstate,
        "reason": mark.reason or "waits behind an earlier change of its key",
        "attempts": mark.attempts,
        "last_attempt_at": mark.last_attempt_at.isoformat() if mark.last_attempt_at else None,
        "stored_at": mark.created_at.isoformat(),
        "in_redis": present,
    }


def _sizes(desk: Desk, selection: Selection) -> dict[str, Any]:
    keys, entries = desk.waiting.count(selection)
    return {"keys": keys, "entries": entries}


def _export(desk: Desk, selection: Selection, file: IO[str]) -> int:
    count = 0
    after = 0
    while True:
        marks = desk.waiting.page(selection, after, MAX_LISTED)
        if not marks:
            return count
        first: dict[tuple[TableId, str], int] = {}
        for mark in marks:
            first.setdefault((mark.target, mark.key_hash), mark.number)
        after = max(first.values())
        by_source: dict[TableId, list[str]] = {}
        for mark in marks:
            by_source.setdefault(mark.source, []).append(mark.stream_id)
        letters = {
            letter.entry: letter
            for source, ids in by_source.items()
            for letter in desk.queue.read(source, ids).values()
        }
        for mark in marks:
            found = letters.get(mark.entry)
            value = {**_line(desk, mark, found is not None), "values": found.value_of() if found else None}
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
            count += 1


def _tell_catalog(engine: Engine, desk: Desk) -> None:
    """Bring the counts of the config database to what waits now."""
    counts = desk.waiting.counts()
    if counts is None:
        return
    settings = desk.spec.settings
    with session_scope(engine) as session:
        report_tables(
            session,
            desk.destination_spec.id,
            counts,
            alert_age_seconds=settings.dead_letter_alert_seconds,
            max_entries=settings.dead_letter_max_entries,
        )
