"""Find the rows of a batch that a target refuses, and write all the others.

The search halves the rows on the server: a range that is refused as a whole is tried in two halves, each in a
subtransaction. One refused row among n costs about 2 log2 n attempts and no round trip; every row refused costs 2 n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg2.extensions
import pyarrow as pa

from cdc_runner.connections import refusal_text
from cdc_runner.destinations.letters import Refusal
from cdc_runner.destinations.postgres import statements
from cdc_runner.destinations.postgres.encode import BinaryEncoder
from cdc_runner.destinations.postgres.few_rows import Staging
from cdc_runner.destinations.postgres.statements import TargetShape
from cdc_runner.destinations.postgres.writer import TableWriter, has_null_key
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import ResolvedSync

Cursor = psycopg2.extensions.cursor
OnRefused = Callable[[ResolvedSync, NetChange, int, Refusal], None]
"""Told of a refused row: sync, net change, place of the row in it, reason."""

UNIQUE_VIOLATION = "23505"
_ROW_CLASSES = ("21", "22", "23", "38", "39", "44", "P0")

# The classes are those of errors that a row causes; anything else (a lost connection, a full disk, a deadlock) is no
# property of a row, and is raised again.
_FUNCTION = """
CREATE OR REPLACE FUNCTION pg_temp.rosetta_isolate(steps text[], low bigint, high bigint,
    OUT place bigint, OUT state text, OUT message text, OUT schema_ text, OUT table_ text, OUT column_ text,
    OUT constraint_ text, OUT type_ text)
RETURNS SETOF record LANGUAGE plpgsql AS $body$
DECLARE
    stack bigint[] := ARRAY[low, high];
    top integer;
    from_ bigint;
    to_ bigint;
    step text;
BEGIN
    WHILE cardinality(stack) > 0 LOOP
        top := cardinality(stack);
        from_ := stack[top - 1];
        to_ := stack[top];
        stack := stack[1:top - 2];
        BEGIN
            FOREACH step IN ARRAY steps LOOP
                EXECUTE step USING from_, to_;
            END LOOP;
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, schema_ = SCHEMA_NAME,
                table_ = TABLE_NAME, column_ = COLUMN_NAME, constraint_ = CONSTRAINT_NAME, type_ = PG_DATATYPE_NAME;
            IF state !~ '^(21|22|23|38|39|44|P0)' AND state <> '54000' THEN
                RAISE;
            END IF;
            IF from_ >= to_ THEN
                place := from_;
                RETURN NEXT;
            ELSE
                stack := stack || ARRAY[from_ + (to_ - from_) / 2 + 1, to_, from_, from_ + (to_ - from_) / 2];
            END IF;
        END;
    END LOOP;
END $body$
"""


def is_row_error(sqlstate: str | None) -> bool:
    """Tell whether an error may be one of a row, so that the search above makes sense."""
    return sqlstate is not None and (sqlstate[:2] in _ROW_CLASSES or sqlstate == "54000")


class RowSearch:
    """Runs statements over numbered rows of a session, all but those that are refused."""

    def __init__(self) -> None:
        self._has_function = False

    def forget_session(self) -> None:
        """The session is gone, and what it had with it."""
        self._has_function = False

    def run(self, cursor: Cursor, steps: Sequence[str], low: int, high: int) -> dict[int, Refusal]:
        """Run the statements over rows `low` to `high`; return the rows that are refused, with the reason.

        Args:
            cursor: of the caller's transaction.
            steps: statements with the bounds of a range as parameters.
            low: number of the first row.
            high: number of the last row.
        """
        if not self._has_function:
            cursor.execute(_FUNCTION)
            self._has_function = True
        cursor.execute("SELECT * FROM pg_temp.rosetta_isolate(%s, %s, %s)", (list(steps), low, high))
        return {
            place: Refusal(state, refusal_text(state, message, names))
            for place, state, message, *names in cursor.fetchall()
        }


class IsolatingWriter:
    """Writes net changes like `TableWriter`, but passes over the rows that the target refuses, and tells of them.

    MOVE changes are not known here: they are made into MERGE changes before.
    """

    def __init__(self, writer: TableWriter, encoder: BinaryEncoder, on_refused: OnRefused) -> None:
        """Args:
        writer: knows the targets.
        encoder: writes rows as binary COPY.
        on_refused: told of each refused row.
        """
        self._writer = writer
        self._encoder = encoder
        self._on_refused = on_refused
        self._made: set[str] = set()
        self._rows = RowSearch()

    def forget_session(self) -> None:
        """The session is gone, and what it had with it."""
        self._made.clear()
        self._rows.forget_session()

    def stage(self, cursor: Cursor, sync: ResolvedSync, change: NetChange) -> Staging:
        """Copy the rows, numbered, into a temporary table."""
        target = self._writer.target(sync, change)
        name = f"pg_temp.rosetta_{target.number}_{change.kind.value}_numbered"
        if change.rows.num_rows == 0:
            return Staging(name)
        columns = [("r", "bigint"), *statements.staging_columns(change.kind, target.shape)]
        if name not in self._made:
            # With a key on the numbers a range costs its own rows: without, ten thousand refused rows took 100 s.
            columns[0] = ("r", "bigint PRIMARY KEY")
            cursor.execute(f"CREATE TEMPORARY TABLE {name} ({', '.join(f'{one} {type_}' for one, type_ in columns)})")
            columns[0] = ("r", "bigint")
            self._made.add(name)
        else:
            cursor.execute(f"TRUNCATE {name}")
        numbers = pa.array(range(change.rows.num_rows), pa.int64())
        with self._encoder.encoded(change.rows.append_column("r", numbers), columns) as file:
            cursor.copy_expert(f"COPY {name} FROM STDIN (FORMAT binary)", file, size=1 << 18)
        cursor.execute(f"ANALYZE {name} (r)")
        if change.kind is NetKind.MERGE:
            # A key that the target's type does not take would make every statement fail that looks at it.
            keys = ", ".join(f"(s.c{place}::{target.shape.types[place]})::text" for place in target.shape.key)
            self._run(cursor, sync, change, name, [f"SELECT count(concat({keys})) FROM {numbered(name)} s"])
        return Staging(name)

    def take_away(self, cursor: Cursor, sync: ResolvedSync, change: NetChange, staging: Staging) -> None:
        """Empty the target if it was truncated, and delete the rows that are staged as gone."""
        shape, rows = self._shape(sync, change), staging.rows
        if change.truncate and change.emptied_at is not None:
            cursor.execute(statements.mark_deleted(shape.table, change.emptied_at))
        elif change.truncate:
            self._writer.truncate(cursor, shape.table)
        if not change.deletes or change.rows.num_rows == 0:
            return
        if change.kind is NetKind.MERGE:
            steps = [statements.delete_keys(shape, numbered(rows))]
            if has_null_key(change, shape):
                steps.append(statements.delete_null_keys(shape, numbered(rows), gone=True))
            self._run(cursor, sync, change, rows, steps)
        elif change.kind is NetKind.MULTISET:
            self._run(cursor, sync, change, rows, [statements.delete_multiset(shape, numbered(rows))])

    def put(
        self, cursor: Cursor, sync: ResolvedSync, change: NetChange, staging: Staging, *, careful: bool = True
    ) -> None:
        """Write the staged rows that the target is to hold; always in the careful way."""
        if change.rows.num_rows == 0:
            return
        shape, table = self._shape(sync, change), staging.rows
        if change.kind is NetKind.MULTISET:
            self._run(cursor, sync, change, table, [statements.insert_multiset(shape, numbered(table))])
            return
        if change.partial:
            self._writer.fetch_missing(cursor, shape, change, table)
            cursor.execute(statements.complete_partial(shape, table))
        steps = [
            statements.delete_upserted(shape, numbered(table)),
            statements.upsert(shape, numbered(table), partial=False),
        ]
        if has_null_key(change, shape):
            steps.insert(1, statements.delete_null_keys(shape, numbered(table), gone=False))
        refused = self._search(cursor, steps, table)
        # Unique values that change places between rows are refused when the rows come in different halves: those rows
        # are tried again together, as long as that helps.
        while True:
            again = sorted(place for place, why in refused.items() if why.sqlstate == UNIQUE_VIOLATION)
            if len(again) < 2:
                break
            left = self._search_among(cursor, steps, table, again)
            if len(left) == len(again):
                break
            refused = {place: why for place, why in refused.items() if place not in again} | left
        self._tell(sync, change, refused)

    def _shape(self, sync: ResolvedSync, change: NetChange) -> TargetShape:
        return self._writer.target(sync, change).shape

    def _run(self, cursor: Cursor, sync: ResolvedSync, change: NetChange, staging: str, steps: Sequence[str]) -> None:
        refused = self._search(cursor, steps, staging)
        self._tell(sync, change, refused)
        if refused:
            cursor.execute(f"DELETE FROM {staging} WHERE r = ANY(%s)", (sorted(refused),))

    def _tell(self, sync: ResolvedSync, change: NetChange, refused: dict[int, Refusal]) -> None:
        for place, why in sorted(refused.items()):
            self._on_refused(sync, change, place, why)

    def _search_among(
        self, cursor: Cursor, steps: Sequence[str], staging: str, places: Sequence[int]
    ) -> dict[int, Refusal]:
        """Search among some rows only: they get numbers of their own for that time, from -1 downwards."""
        cursor.execute(
            f"UPDATE {staging} s SET r = -n.number FROM unnest(%s::bigint[]) WITH ORDINALITY n(place, number) "
            "WHERE s.r = n.place",
            (list(places),),
        )
        found = self._rows.run(cursor, steps, -len(places), -1)
        cursor.execute(
            f"UPDATE {staging} s SET r = n.place FROM unnest(%s::bigint[]) WITH ORDINALITY n(place, number) "
            "WHERE s.r = -n.number",
            (list(places),),
        )
        return {places[-number - 1]: why for number, why in found.items()}

    def _search(self, cursor: Cursor, steps: Sequence[str], staging: str) -> dict[int, Refusal]:
        cursor.execute(f"SELECT min(r), max(r) FROM {staging}")
        row = cursor.fetchone()
        if row is None or row[0] is None:
            return {}
        return self._rows.run(cursor, steps, row[0], row[1])


def numbered(staging: str) -> str:
    """Return the rows of a range as a table; the bounds are the statement's parameters."""
    return f"(SELECT * FROM {staging} WHERE r BETWEEN $1 AND $2)"
