"""Write rows of a target anew from the source, while both sides stand at one position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg2
import psycopg2.extensions
import pyarrow as pa

from cdc_runner.capture.base import TableVersion
from cdc_runner.connections import classify
from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.reconcile.plan import output_text
from cdc_runner.reconcile.result import Key
from cdc_runner.schema import Column, TableId, TableSchema, quote_identifier
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.spec import ResolvedSync

_KEYS_AT_ONCE = 5_000

Rows = Mapping[Key, tuple[str | None, ...]]


def rewrite_rows(
    source: psycopg2.extensions.connection,
    present: Mapping[TableId, TableSchema],
    destination: PostgresDestination,
    keys: Mapping[TableId, Sequence[Key]],
    where: Mapping[TableId, str] | None = None,
) -> tuple[int, int]:
    """Bring the rows with these keys to what the source has, in one transaction of the destination.

    Exact when the source's session sees the destination's position: rows that the source has are written whole, the
    others deleted. The position does not change.

    Args:
        source: a session in a transaction under the snapshot.
        present: the source's tables in that snapshot.
        destination: at the same position.
        keys: key texts by target table.
        where: conditions that rows of a source must meet to be at a target, by target table.

    Returns:
        How many rows were written and how many keys deleted.

    Raises:
        RosettaError: nothing was written.
    """
    states = {one.sync.target: one for one in destination.table_states()}
    changes: list[tuple[ResolvedSync, NetChange]] = []
    upserted = deleted = 0
    for target, listed in keys.items():
        known = states.get(target)
        schema = None if known is None else present.get(known.sync.source)
        if known is None or known.shape or schema is None or not known.schema.key:
            raise RosettaError(ErrorKind.NOT_FOUND, f"table {target} has no rows that could be fetched by key")
        rows = _fetch(source, schema, known.schema, listed, (where or {}).get(target))
        gone = sorted({tuple(key) for key in listed} - rows.keys())
        changes.append((known.sync, _change(known, rows, gone)))
        upserted += len(rows)
        deleted += len(gone)
    destination.rewrite(changes)
    return upserted, deleted


def _fetch(
    source: psycopg2.extensions.connection,
    present: TableSchema,
    known: TableSchema,
    keys: Sequence[Key],
    where: str | None,
) -> dict[Key, tuple[str | None, ...]]:
    """Return the source's rows with these keys, by key text, in the order of the columns that the target knows."""
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
    identity = ", ".join(f"t.{quote_identifier(one.name)}::text" for one in columns)
    condition = "" if where is None else f" WHERE {where}"
    only = "" if present.partitioned else "ONLY "
    aliases = ", ".join(f"k{place}" for place in range(len(columns)))
    head = f"SELECT ARRAY[{identity}], {texts} FROM unnest("
    tail = f") AS w({aliases}) JOIN {only}{present.table.quoted} t ON {same}{condition}"
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


def _partner(present: TableSchema, column: Column) -> Column | None:
    """Return the source's present column for one that the target knows, which may have had another name then."""
    for one in present.stream_columns:
        if (one.number == column.number) if column.number else (one.name == column.name):
            return one
    return None


def _change(known: TableState, rows: Rows, gone: Sequence[Key]) -> NetChange:
    """Return the net change that writes some rows whole and deletes others."""
    names = known.schema.stream_names
    places = [names.index(name) for name in known.schema.key]
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
        version=TableVersion(known.schema, 0),
        truncate=False,
        rows=table,
        partial=False,
        deletes=bool(gone),
        events=0,
    )
