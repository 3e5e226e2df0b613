"""The SQL of a backfill at the destination.

    STAGED   rows as they were read: c0 … as text
    DUE      those that differ from the target, numbered; in the layout of a staging table (r, d, x, n, c0 …)
    KEYS     keys that the source has, typed as the target's
    EXTRA    keys of the target that are not among them, numbered

All are temporary tables of the session that writes: they cost no WAL, and are gone with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc_runner.destinations.postgres.journal import Watch
from cdc_runner.destinations.postgres.statements import TargetShape
from cdc_runner.schema import quote_identifier, quote_literal
from cdc_runner.shaping.columns import DELETED, DELETED_AT

STAGED = "pg_temp.rosetta_backfill_staged"
DUE = "pg_temp.rosetta_backfill_due"
KEYS = "pg_temp.rosetta_backfill_keys"
EXTRA = "pg_temp.rosetta_backfill_extra"

PROBE_KEYS = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
"""The target is looked up by its key: for a chunk of a large table the planner might else read all of it."""


def create_staged(shape: TargetShape) -> str:
    """Statement for the table of the rows that are read."""
    return f"CREATE TEMPORARY TABLE {STAGED} ({', '.join(f'c{place} text' for place in range(len(shape.columns)))})"


def create_due(shape: TargetShape, actual_types: Sequence[str], *, compare: bool) -> str:
    """Statement that takes the staged rows that the target does not have exactly so.

    Rows are compared by their stored form, which every type has; one that is equal for the type but stored in another
    form counts as different, and is written.

    Args:
        shape: the target.
        actual_types: types of the written columns as the target has them.
        compare: take only what differs; else take all.
    """
    values = "".join(f", s.c{place}" for place in range(len(shape.columns)))
    where = ""
    if compare:
        here = ", ".join(f"t.{quote_identifier(shape.columns[place])}" for place in shape.written)
        there = ", ".join(
            f"s.c{place}::{shape.types[place]}::{actual}"
            for place, actual in zip(shape.written, actual_types, strict=True)
        )
        where = (
            f" WHERE NOT EXISTS (SELECT FROM {shape.table.quoted} t "
            f"WHERE {_same_key(shape)} AND record_image_eq(ROW({here}), ROW({there})))"
        )
    return (
        f"CREATE TEMPORARY TABLE {DUE} AS SELECT row_number() OVER () AS r, false AS d, NULL::text AS x, "
        f"1::bigint AS n{values} FROM {STAGED} s{where}"
    )


def drop_waiting(shape: TargetShape, pipeline: str) -> str:
    """Statement that leaves out rows whose keys wait in the dead-letter queue."""
    same = " AND ".join(f"w.key_text::json->>{number} = s.c{place}" for number, place in enumerate(shape.key))
    return f"DELETE FROM {DUE} s USING {_waiting(shape, pipeline)} w WHERE {same}"


def has_waiting(shape: TargetShape, pipeline: str) -> str:
    """Query whether any key of the target waits."""
    return f"SELECT EXISTS (SELECT FROM {_waiting(shape, pipeline)} w)"


def last_note(watch: Watch) -> str:
    """Query for the number of the newest note of a journal."""
    return f"SELECT coalesce(max(n), 0) FROM {watch.journal}"


def drop_touched(shape: TargetShape, watch: Watch, lsn: int, after: int, rows: str, *, moved: bool) -> str:
    """Statement that leaves out rows that the stream has written whole, or deleted, after a position.

    Args:
        shape: the target.
        watch: its journal.
        lsn: the position.
        after: number of the last note that was heeded before.
        rows: condition on the rows (`s`).
        moved: only those that have got another key, or just this one.
    """
    which = "j.m" if moved else "j.x IS NULL"
    return (
        f"DELETE FROM {DUE} s USING {watch.journal} j "
        f"WHERE j.n > {after} AND j.end_lsn > {lsn} AND {which} AND {rows} AND {_same_note(shape)}"
    )


def mark_touched(shape: TargetShape, watch: Watch, lsn: int, after: int, rows: str) -> str:
    """Statement that marks, in rows of which the stream has written some values, those values to be left alone.

    See `drop_touched`.
    """
    keys = ", ".join(f"k{place}" for place in range(len(shape.key)))
    none = "0" * len(shape.columns)
    return (
        f"UPDATE {DUE} s SET x = (coalesce(s.x, '{none}')::varbit | ~j.kept)::text FROM ("
        f"SELECT {keys}, bit_and(x::varbit) AS kept FROM {watch.journal} "
        f"WHERE n > {after} AND end_lsn > {lsn} AND x IS NOT NULL GROUP BY {keys}) j "
        f"WHERE {rows} AND {_same_note(shape)}"
    )


def checked_keys(shape: TargetShape) -> str:
    """Statement that casts the keys of a range of rows; the range is its parameters."""
    keys = ", ".join(f"(s.c{place}::{shape.types[place]})::text" for place in shape.key)
    return f"SELECT count(concat({keys})) FROM {DUE} s WHERE r BETWEEN $1 AND $2"


def actual_types(shape: TargetShape) -> str:
    """Query for the names and types of the target's columns."""
    return (
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        f"WHERE attrelid = {quote_literal(shape.table.quoted)}::regclass AND attnum > 0 AND NOT attisdropped"
    )


# -- rows that the source does not have --------------------------------------------------------------------------------


def create_keys(watch: Watch) -> str:
    """Statement for the table of the keys that the source has."""
    columns = ", ".join(f"k{place} {type_}" for place, type_ in enumerate(watch.types))
    return f"CREATE TEMPORARY TABLE {KEYS} ({columns})"


def create_extra(shape: TargetShape, watch: Watch, *, soft: bool) -> str:
    """Statement that takes the target's keys that the source does not have."""
    own = [f"t.{quote_identifier(name)}" for name in watch.key]
    listed = ", ".join(f"{name} AS k{place}" for place, name in enumerate(own))
    same = " AND ".join(f"p.k{place} = {name}" for place, name in enumerate(own))
    alive = f" AND NOT t.{quote_identifier(DELETED)}" if soft else ""
    return (
        f"CREATE TEMPORARY TABLE {EXTRA} AS SELECT row_number() OVER () AS r, {listed} FROM {shape.table.quoted} t "
        f"WHERE NOT EXISTS (SELECT FROM {KEYS} p WHERE {same}){alive}"
    )


def remove_extra(shape: TargetShape, watch: Watch, lsn: int, pipeline: str, low: int, high: int, *, soft: bool) -> str:
    """Statement that removes a range of extra rows, but for those touched after a position and those that wait."""
    table = shape.table.quoted
    same = " AND ".join(f"t.{quote_identifier(name)} = s.k{place}" for place, name in enumerate(watch.key))
    noted = " AND ".join(f"j.k{place} = s.k{place}" for place in range(len(watch.key)))
    waits = " AND ".join(f"w.key_text::json->>{place} = s.k{place}::text" for place in range(len(watch.key)))
    action = f"DELETE FROM {table} t USING"
    if soft:
        deleted, at = quote_identifier(DELETED), quote_identifier(DELETED_AT)
        action = f"UPDATE {table} t SET {deleted} = true, {at} = now() FROM"
    return (
        f"{action} {EXTRA} s WHERE s.r BETWEEN {low} AND {high} AND {same} "
        f"AND NOT EXISTS (SELECT FROM {watch.journal} j WHERE j.end_lsn > {lsn} AND {noted}) "
        f"AND NOT EXISTS (SELECT FROM {_waiting(shape, pipeline)} w WHERE {waits})"
    )


def _waiting(shape: TargetShape, pipeline: str) -> str:
    table = shape.table
    return (
        f"(SELECT key_text FROM _rosetta.waiting_key WHERE pipeline = {quote_literal(pipeline)} "
        f"AND target_schema = {quote_literal(table.schema)} AND target_table = {quote_literal(table.name)})"
    )


def _same_key(shape: TargetShape) -> str:
    return " AND ".join(
        f"t.{quote_identifier(shape.columns[place])} = s.c{place}::{shape.types[place]}" for place in shape.key
    )


def _same_note(shape: TargetShape) -> str:
    return " AND ".join(f"j.k{number} = s.c{place}::{shape.types[place]}" for number, place in enumerate(shape.key))
