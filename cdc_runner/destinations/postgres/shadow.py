"""Tables that are built aside, to take the place of a target: each apply writes them beside it.

From the moment at which a table is registered here, in a transaction that holds the lock of the position, every change
of its target goes into both, in the transaction that stores the position. So a backfill of the new table makes it what
the source is, exactly as it does with a target, and it stays so. A process that is killed loses nothing: the register
is at the destination, and whoever applies next reads it there.

A change that the new table refuses must not stop the stream: its part is rolled back, and the table is void. So it is
when its target gets another schema or is loaded again, of which the register notices by what it knew at the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import psycopg2
import psycopg2.extensions
import structlog

from cdc_runner.connections import classify
from cdc_runner.destinations.postgres.journal import Journal
from cdc_runner.destinations.postgres.shadow_register import (
    DEFINITION,
    Shadow,
    create_register,
    drop_shadow,
    read_shadows,
)
from cdc_runner.destinations.postgres.writer import TableWriter
from cdc_runner.position import Position
from cdc_runner.shaping.net import NetChange
from cdc_runner.spec import ResolvedSync

log = structlog.get_logger()

Cursor = psycopg2.extensions.cursor

_UNIQUE_VIOLATION = "23505"
_REFUSALS = ("0A", "22", "23", "2F", "38", "39", "42", "44", "54", "P0")
"""SQLSTATE classes of statements that fail again whenever they are tried."""


class Shadows:
    """The register of one pipeline at one destination, and what writes the tables in it.

    `beside` belongs to the thread that applies; the rest to backfills, under the lock of the position.
    """

    def __init__(self, pipeline: str, writer: TableWriter, journal: Journal) -> None:
        """Args:
        pipeline: whose targets these are.
        writer: of the thread that applies.
        journal: notes keys of the new tables, too.
        """
        self._pipeline = pipeline
        self._writer = writer
        self._journal = journal
        self.active = False
        """Whether there may be a table that is built. Set before the register's transaction commits."""

    def load(self, cursor: Cursor) -> None:
        """Find out whether there are any, for a new session."""
        self.active = bool(self.building(cursor))

    # -- the register ------------------------------------------------------------------------------------------------

    def building(self, cursor: Cursor) -> list[Shadow]:
        """Return the tables that are built now, those that are void included."""
        return read_shadows(cursor, self._pipeline, swapped=False)

    def find(self, cursor: Cursor, identifier: int) -> Shadow | None:
        """Return a table by the number of its backfill."""
        create_register(cursor)
        return next((one for one in read_shadows(cursor, self._pipeline) if one.id == identifier), None)

    def register(self, cursor: Cursor, shadow: Shadow) -> None:
        """Have a table written from the caller's commit on; its transaction must hold the lock of the position."""
        cursor.execute(
            "INSERT INTO _rosetta.table_rebuild (pipeline, id, target_schema, target_table, definition) "
            f"SELECT t.pipeline, %s, t.target_schema, t.target_table, {DEFINITION} FROM _rosetta.table_state t "
            "WHERE t.pipeline = %s AND t.target_schema = %s AND t.target_table = %s",
            (shadow.id, self._pipeline, shadow.target.schema, shadow.target.name),
        )
        self.active = True

    def mark_built(self, cursor: Cursor, shadow: Shadow) -> None:
        """Note that a table holds everything."""
        cursor.execute(
            "UPDATE _rosetta.table_rebuild SET built = true WHERE pipeline = %s AND id = %s",
            (self._pipeline, shadow.id),
        )

    def mark_swapped(self, cursor: Cursor, shadow: Shadow) -> None:
        """Note, in the transaction that does it, that a table has taken the place of its target."""
        cursor.execute(
            "UPDATE _rosetta.table_rebuild SET swapped_at = now() WHERE pipeline = %s AND id = %s",
            (self._pipeline, shadow.id),
        )

    def drop(self, cursor: Cursor, shadow: Shadow) -> None:
        """Remove a table that is not to be; its transaction must hold the lock of the position."""
        drop_shadow(cursor, self._pipeline, shadow)

    # -- the thread that applies ---------------------------------------------------------------------------------------

    def beside(self, cursor: Cursor, segment: Sequence[tuple[ResolvedSync, NetChange]], through: Position) -> None:
        """Write a segment into the tables that are built aside, in the transaction that applies it.

        Raises:
            psycopg2.Error: what is not the fault of such a table, and fails the whole apply.
        """
        shadows = self.building(cursor)
        # Under the lock of the position nobody registers one.
        self.active = bool(shadows)
        for shadow in shadows:
            own = [
                (replace(sync, target=shadow.aside), change) for sync, change in segment if sync.target == shadow.target
            ]
            if not own or shadow.marked:
                continue
            void = shadow.void
            if void is None:
                self._journal.record(cursor, own, through)
                void = self._write(cursor, own)
            if void is not None:
                # From here on it lacks changes: that must not be forgotten, whatever its target comes to be again.
                log.warning("rebuild.void", target=str(shadow.target), reason=void)
                cursor.execute(
                    "UPDATE _rosetta.table_rebuild SET void = %s WHERE pipeline = %s AND id = %s",
                    (void, self._pipeline, shadow.id),
                )
                self._journal.void(shadow.aside, void)

    def _write(self, cursor: Cursor, changes: Sequence[tuple[ResolvedSync, NetChange]]) -> str | None:
        """Write changes, or return why they are refused."""
        refusal = ""
        for careful in (False, True):
            cursor.execute("SAVEPOINT beside")
            try:
                for sync, change in changes:
                    staging = self._writer.stage(cursor, sync, change)
                    self._writer.take_away(cursor, sync, change, staging)
                    self._writer.put(cursor, sync, change, staging, careful=careful)
                self._writer.flush(cursor)
            except psycopg2.Error as error:
                sqlstate = error.pgcode or ""
                if sqlstate[:2] not in _REFUSALS:
                    raise
                cursor.execute("ROLLBACK TO SAVEPOINT beside; RELEASE SAVEPOINT beside")
                for sync, _ in changes:
                    # Its staging table was rolled back, too.
                    self._writer.forget_target(sync.target)
                refusal = f"it refuses a change: {classify(error, 'destination').message}"
                if sqlstate != _UNIQUE_VIOLATION:
                    break
            else:
                cursor.execute("RELEASE SAVEPOINT beside")
                return None
        return refusal
