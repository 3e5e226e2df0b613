"""Write rows of a target anew from the source, while both sides stand at one position."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import psycopg2
import psycopg2.extensions
import pyarrow as pa

from cdc_runner.capture.base import TableVersion
from cdc_runner.connections import classify
from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.destinations.snowflake.destination import SnowflakeDestination
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.reconcile.plan import NotComparable, Rules, output_text
from cdc_runner.reconcile.result import Key
from cdc_runner.reconcile.shape import Outdated, rules_of, sync_of
from cdc_runner.schema import Column, TableId, TableSchema, quote_identifier
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.shaping.sync import SyncShaper, TableShaper
from cdc_runner.spec import DestinationSpec, ResolvedSync

_KEYS_AT_ONCE = 5_000

Rows = Mapping[Key, tuple[str | None, ...]]


def rewrite_rows(
    source: psycopg2.extensions.connection,
    present: Mapping[TableId, TableSchema],
    destination: PostgresDestination | SnowflakeDestination,
    keys: Mapping[TableId, Sequence[Key]],
    spec: DestinationSpec,
    shapers: Mapping[TableId, TableShaper],
) -> tuple[int, int]:
    """Bring the rows with these keys to what the source has, in one transaction of the destination.

    Exact when the source's session sees the destination's position: rows that the source has for the target are
    written whole, through the shape of the target's sync, the others deleted or marked. The position does not change.
    To be called by the thread that applies, whose shapers these are.

    Args:
        source: a session in a transaction under the snapshot.
        present: the source's tables in that snapshot.
        destination: at the same position.
        keys: key texts by target table.
        spec: the destination, with its syncs.
        shapers: by target table, of the syncs that are no plain copies.

    Returns:
        How many rows were written and how many keys deleted or marked.

    Raises:
        RosettaError: nothing was written.
    """
    states = {one.sync.target: one for one in destination.table_states()}
    changes: list[tuple[ResolvedSync, NetChange]] = []
    upserted = deleted = 0
    for target, listed in keys.items():
        known = states.get(target)
        schema = None if known is None else present.get(known.sync.source)
        if known is None or schema is None or not known.schema.key:
            raise RosettaError(ErrorKind.NOT_FOUND, f"table {target} has no rows that could be fetched by key")
        origin = known.captured_schema
        where = _rules(spec, known, schema).where
        lake = isinstance(destination, SnowflakeDestination)
        rows = _fetch(source, schema, origin, listed, where, identity=output_text if lake else _cast_text)
        gone = sorted({tuple(key) for key in listed} - rows.keys())
        change = _events(origin, rows, gone, _first(destination, target)) if lake else _change(origin, rows, gone)
        configured = sync_of(spec, known)
        sync = known.sync if configured is None else replace(known.sync, shape=configured.shape)
        changes += [(sync, one) for one in _shaped(known, change, shapers.get(target))]
        upserted += len(rows)
        deleted += len(gone)
    destination.rewrite(changes)
    return upserted, deleted


def _first(destination: PostgresDestination | SnowflakeDestination, target: TableId) -> Position:
    """Return a position for events above all that was sent for a table, below all that is to come.

    Raises:
        RosettaError: RUNNER_FAILED when that cannot be told now.
    """
    assert isinstance(destination, SnowflakeDestination), "takes events"
    found = destination.replay_position(target)
    if found is None:
        raise RosettaError(
            ErrorKind.RUNNER_FAILED, f"table {target}: a batch was interrupted and is not whole again yet; try again"
        )
    return found


def _rules(spec: DestinationSpec, known: TableState, present: TableSchema) -> Rules:
    """Return which rows of the source are for a target.

    Raises:
        RosettaError: its rows are not to be written from the source.
    """
    try:
        rules = rules_of(spec, known, present)
    except (Outdated, NotComparable) as reason:
        raise RosettaError(ErrorKind.DESTINATION_SCHEMA, f"table {known.sync.target}: {reason}") from None
    if rules.skipped is not None:
        raise RosettaError(ErrorKind.NOT_FOUND, f"table {known.sync.target}: {rules.skipped}")
    return rules


def _shaped(known: TableState, change: NetChange, shaper: TableShaper | None) -> Iterable[NetChange]:
    """Return a change of the source's table as those of the target.

    Raises:
        RosettaError: the pipeline does not shape the table as its rows are.
    """
    if not known.shape:
        return (change,)
    if not isinstance(shaper, SyncShaper) or shaper.sync.shape.fingerprint != known.shape:
        # Plain rows would hold what a filter or a mask keeps back.
        raise RosettaError(ErrorKind.INTERNAL, f"the pipeline does not shape table {known.sync.target} as its rows are")
    return shaper.shape(change, time.time())


def _fetch(
    source: psycopg2.extensions.connection,
    present: TableSchema,
    known: TableSchema,
    keys: Sequence[Key],
    where: str | None,
    identity: Callable[[str], str],
) -> dict[Key, tuple[str | None, ...]]:
    """Return the source's rows with these keys, by key text, in the order of the columns that are known."""
    partners = [_partner(present, column) for column in known.stream_columns]
    texts = ", ".join("NULL" if one is None else output_text(f"t.{quote_identifier(one.name)}") for one in partners)
    names = [known.stream_names.index(name) for name in known.key]
    own = [partners[place] for place in names]
    if any(one is None for one in own):
        raise RosettaError(ErrorKind.DESTINATION_SCHEMA, f"the key of table {present.table} has changed")
    columns = [one for one in own if one is not None]
    wanted = ", ".join("%s::text[]" for _ in columns)
    same = " AND ".join(
        f"t.{quote_identifier(one.name)} = w.k{place}::{one.type_text}" for place, one in enumerate(columns)
    )
    texts_of_key = ", ".join(identity(f"t.{quote_identifier(one.name)}") for one in columns)
    only = "" if present.partitioned else "ONLY "
    table = f"{only}{present.table.quoted}"
    if where is not None:
        # A condition names columns alone: it must not see those of the wanted keys.
        table = f"(SELECT * FROM {table} WHERE {where})"
    aliases = ", ".join(f"k{place}" for place in range(len(columns)))
    head = f"SELECT ARRAY[{texts_of_key}], {texts} FROM unnest("
    tail = f") AS w({aliases}) JOIN {table} t ON {same}"
    # Names and conditions may hold the driver's own mark.
    statement = head.replace("%", "%%") + wanted + tail.replace("%", "%%")
    found: dict[Key, tuple[str | None, ...]] = {}
    try:
        with source.cursor() as cursor:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                part = keys[start : start + _KEYS_AT_ONCE]
                cursor.execute(statement, [[key[place] for key in part] for place in range(len(columns))])
                for key, *values in cursor.fetchall():
                    found[tuple(key)] = tuple(values)
    except psycopg2.Error as error:
        raise classify(error, "source") from error
    return found


def _cast_text(column: str) -> str:
    return f"{column}::text"


def _partner(present: TableSchema, column: Column) -> Column | None:
    """Return the source's present column for one that the target knows, which may have had another name then."""
    for one in present.stream_columns:
        if (one.number == column.number) if column.number else (one.name == column.name):
            return one
    return None


def _events(schema: TableSchema, rows: Rows, gone: Sequence[Key], first: Position) -> NetChange:
    """Return events of the source's table that write some rows whole and delete others, at positions from one on."""
    change = _change(schema, rows, gone)
    count = change.rows.num_rows
    columns = {f"c{place}": change.rows.column(f"c{place}") for place in range(len(schema.stream_columns))}
    table = pa.table(
        {
            "op": pa.array(["u"] * len(rows) + ["d"] * len(gone), pa.string()),
            "x": pa.array([None] * count, pa.string()),
            **columns,
            "lsn": pa.array([first.lsn] * count, pa.int64()),
            "seq": pa.array(range(first.ordinal, first.ordinal + count), pa.int64()),
            "xid": pa.array([0] * count, pa.int64()),
            "at": pa.array([time.time()] * count, pa.float64()),
        }
    )
    return replace(change, kind=NetKind.EVENTS, rows=table)


def _change(schema: TableSchema, rows: Rows, gone: Sequence[Key]) -> NetChange:
    """Return the net change of the source's table that writes some rows whole and deletes others."""
    names = schema.stream_names
    places = [names.index(name) for name in schema.key]
    values: list[list[str | None]] = [[] for _ in names]
    for row in rows.values():
        for place, value in enumerate(row):
            values[place].append(value)
    for key in gone:
        deleted: list[str | None] = [None] * len(names)
        for place, text in zip(places, key, strict=True):
            deleted[place] = text
        for place, value in enumerate(deleted):
            values[place].append(value)
    count = len(rows) + len(gone)
    table = pa.table(
        {
            "d": pa.array([False] * len(rows) + [True] * len(gone), pa.bool_()),
            "x": pa.array([None] * count, pa.string()),
            **{f"c{place}": pa.array(column, pa.string()) for place, column in enumerate(values)},
        }
    )
    return NetChange(
        kind=NetKind.MERGE,
        version=TableVersion(schema, 0),
        truncate=False,
        rows=table,
        partial=False,
        deletes=bool(gone),
        events=0,
    )
