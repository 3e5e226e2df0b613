"""What waits at a destination: marks of changes in the dead-letter queue, and which of them are meant.

The marks are kept by the destination; the payloads they name are in the queue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cdc_runner.schema import TableId


@dataclass(frozen=True, slots=True)
class Mark:
    """One change that waits.

    Attributes:
        source: source table, which names the stream of the queue.
        target: target table.
        key_hash: name of the key.
        number: order of the marks.
        entry: name of the payload.
        stream_id: its place in the queue.
        key_columns: names of the identifying columns when it was put aside.
        key: their values; None for a table without a key.
        end_lsn: position of the transaction.
        operation: put, delete or count.
        sqlstate: why it was refused; None when it waits behind another change.
        reason: the same in words, without a value.
        attempts: replays that were refused.
        last_attempt_at: time of the last of them.
        created_at: when it was put aside.
    """

    source: TableId
    target: TableId
    key_hash: str
    number: int
    entry: str
    stream_id: str
    key_columns: tuple[str, ...]
    key: tuple[str, ...] | None
    end_lsn: int
    operation: str
    sqlstate: str | None
    reason: str | None
    attempts: int
    last_attempt_at: datetime | None
    created_at: datetime


@dataclass(slots=True)
class WaitingTable:
    """The waiting keys of one target: hash of the key -> number of changes.

    Attributes:
        source: the source table.
        key_columns: the columns by which its keys were told apart; None while nothing waits.
        counts: changes that wait, a key.
        first_values: values of the first key column, to sort out most rows quickly; None for a table without a key.
        oldest_at: when the first of them was put aside, seconds since the epoch.
    """

    source: TableId
    key_columns: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)
    first_values: set[str] | None = None
    oldest_at: float | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which waiting keys are meant.

    Attributes:
        target: those of one target table only.
        entry: that of one entry only.
        retry_seconds: only keys whose next automatic attempt is due: that long after they were put aside, then
            twice as long after each refused attempt, six hours at most.
        retries: only keys with fewer refused attempts.
    """

    target: TableId | None = None
    entry: str | None = None
    retry_seconds: float | None = None
    retries: int | None = None
