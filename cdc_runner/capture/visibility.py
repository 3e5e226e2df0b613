"""Whether the source shows what its stream has told.

A commit is in the WAL, and so in the stream, before other sessions see it: for microseconds, under synchronous
replication for as long as the standby takes. A row that is read in between is older than the change that asks for it,
and no later change would correct that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import psycopg2.extensions

from cdc_runner.errors import ErrorKind, RosettaError

VISIBLE_SECONDS = 60.0
_LOOK_SECONDS = 0.005


class Patience:
    """Waits between looks, for a bounded time."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + VISIBLE_SECONDS

    def wait(self) -> None:
        """Wait a moment.

        Raises:
            RosettaError: SOURCE_UNAVAILABLE, it took too long; it is tried again from the stream.
        """
        if time.monotonic() > self._deadline:
            raise RosettaError(
                ErrorKind.SOURCE_UNAVAILABLE,
                f"transactions that were streamed are not visible at the source after {VISIBLE_SECONDS:g} s: "
                "it waits for a synchronous standby",
            )
        time.sleep(_LOOK_SECONDS)


def hidden_now(cursor: psycopg2.extensions.cursor, transactions: Iterable[int]) -> frozenset[int]:
    """Return the transactions that the snapshot of the next statement, or of the present transaction, lacks."""
    cursor.execute("SELECT txid_current_snapshot()::text")
    row = cursor.fetchone()
    assert row is not None, "a function gives a row"
    return frozenset(hidden_transactions(row[0], transactions))


def wait_until_shown(connection: psycopg2.extensions.connection, transactions: Iterable[int]) -> None:
    """Wait until every statement from here on sees transactions that the stream has told.

    Args:
        connection: of which each statement has a snapshot of its own: in autocommit, or READ COMMITTED.
        transactions: numbers without epoch.

    Raises:
        RosettaError: SOURCE_UNAVAILABLE, it took too long.
    """
    patience = Patience()
    hidden = frozenset(transactions)
    with connection.cursor() as cursor:
        while hidden and (hidden := hidden_now(cursor, hidden)):
            patience.wait()


def hidden_transactions(snapshot: str, transactions: Iterable[int]) -> Iterator[int]:
    """Yield the transactions that a snapshot, given as text, does not show.

    Args:
        snapshot: `xmin:xmax:xip,…`, numbers with their epoch.
        transactions: numbers without epoch, none of which is older than half of their range.
    """
    low, high, running = snapshot.split(":")
    xmin, xmax = int(low), int(high)
    open_ones = {int(one) for one in running.split(",") if one}
    for number in transactions:
        # The number nearest to the snapshot that ends in these 32 bits.
        whole = (xmax & ~0xFFFFFFFF) | number
        if whole - xmax > 1 << 31:
            whole -= 1 << 32
        elif xmax - whole > 1 << 31:
            whole += 1 << 32
        if whole >= xmax or (whole >= xmin and whole in open_ones):
            yield number
