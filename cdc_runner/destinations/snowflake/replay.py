"""Net changes of waiting keys as events, at positions between what was sent and what is to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from cdc_runner.destinations.letters import Refusal, RowChange, RowOperation
from cdc_runner.destinations.snowflake.divert import MISFIT
from cdc_runner.position import Position
from cdc_runner.schema import TableSchema

REPLAY_ORDINAL = 1 << 61
"""Ordinals of what is brought back begin here: above those of events and of loaded rows."""


def replay_events(
    schema: TableSchema, changes: Sequence[RowChange], first: Position, at: float
) -> tuple[pa.Table, dict[str, str]]:
    """Return the events of net changes, with the hash of each one's key, and the last position of each key.

    Args:
        schema: of the table.
        changes: one a key.
        first: position of the first event.
        at: when they are brought back, seconds since the epoch.
    """
    rows: list[dict[str, object]] = []
    last: dict[str, str] = {}
    for change in changes:
        operation = {RowOperation.PUT: "u", RowOperation.DELETE: "d"}.get(change.operation)
        times = 1 if operation else abs(change.count)
        for _ in range(times):
            position = Position(first.lsn, first.ordinal + len(rows))
            last[change.key_hash] = str(position)
            values = {f"c{number}": value for number, value in enumerate(change.values)}
            rows.append({
                "op": operation or ("i" if change.count > 0 else "d"), "x": change.unchanged, **values,
                "lsn": position.lsn, "seq": position.ordinal, "xid": 0, "at": at, "key": change.key_hash,
            })  # fmt: skip
    texts = [("op", pa.string()), ("x", pa.string())]
    texts += [(f"c{number}", pa.string()) for number in range(len(schema.stream_columns))]
    stamps = [("lsn", pa.int64()), ("seq", pa.int64()), ("xid", pa.int64()), ("at", pa.float64()), ("key", pa.string())]
    return pa.Table.from_pylist(rows, schema=pa.schema([*texts, *stamps])), last


def refused_keys(
    changes: Sequence[tuple[RowChange, Sequence[str]]], last: Mapping[str, str], misfits: Mapping[str, str]
) -> dict[str, Refusal]:
    """Return which keys are refused again, and why; equal rows of a table without a key share one fate."""
    return {
        change.key_hash: Refusal(MISFIT, misfits[last[change.key_hash]])
        for change, _ in changes
        if last.get(change.key_hash) in misfits
    }
