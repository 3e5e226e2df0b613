"""Targets that stand at one position while the stream flows: what compares them reads them here.

    writer (at the fence)      hold(token)       the tasks of the pipeline do not merge
    who compares               HeldTargets       merges what landed up to the fence, reads, lets go table by table

Every statement that reads a target also reads the position up to which it was merged, in one view of both; so what
somebody merged meanwhile is noticed, never taken for a difference. A hold that nobody prolongs ends by itself.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Sequence

from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.snowflake import state
from cdc_runner.destinations.snowflake.rows import Shape
from cdc_runner.destinations.snowflake.session import Session
from cdc_runner.destinations.snowflake.sql import literal
from cdc_runner.destinations.snowflake.transport import Refused, Unanswered, Unreachable, classified
from cdc_runner.errors import RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId
from cdc_runner.spec import ResolvedSync, SnowflakeAddress

HOLD_SECONDS = 180
"""How long a hold lasts after it was last prolonged."""
PROLONG_SECONDS = 60.0
WAIT_SECONDS = 30.0
"""How long a hold waits for a merge that is at work; the stream of the destination stands still meanwhile."""

_LAST_ORDINAL = (1 << 63) - 1


class MergedBeyond(Exception):
    """A target is not at the position any more; the text says what is known."""


def new_token() -> str:
    """Return a name for a hold."""
    return secrets.token_hex(8)


def upper_bound(lsn: int) -> str:
    """Return a position that is not below that of anything sent up to an LSN."""
    return str(Position(lsn, _LAST_ORDINAL))


class HeldTargets:
    """The targets of one pipeline and destination at one position. Thread-safe but for `close`."""

    def __init__(self, address: SnowflakeAddress, pipeline: str, destination: str, lsn: int, token: str) -> None:
        """Args:
        address: the account.
        pipeline: identity of the pipeline.
        destination: identity of the destination.
        lsn: everything up to it has landed, or waits to be merged.
        token: of the hold.

        Raises:
            RosettaError: CREDENTIAL_UNREADABLE.
        """
        self.address = address
        self._session = Session(address, pipeline, destination)
        self._lsn = lsn
        self._token = token
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._prolong, name="verify-hold", daemon=True)
        self._thread.start()

    def _prolong(self) -> None:
        while not self._stopping.wait(PROLONG_SECONDS):
            # A hold that ends too early is noticed by the next statement that reads.
            with contextlib.suppress(RosettaError):
                self._session.store.prolong(self._token, HOLD_SECONDS)

    def take(self) -> None:
        """Hold the merges, where no writer does it.

        Raises:
            RosettaError: a destination kind.
        """
        self._session.store.hold(self._token, HOLD_SECONDS, limit_seconds=WAIT_SECONDS)

    def position(self) -> Position | None:
        """Return how far the stream of a pipeline that does not run is durable; None where it never began."""
        return written_position(self._session)

    def states(self) -> list[TableState]:
        """Return the states of the pipeline's tables."""
        return self._session.store.tables()

    def shape(self, known: TableState, sync: ResolvedSync) -> Shape:
        """Return how a table is written."""
        return self._session.objects.shape(known.schema, sync)

    def columns(self, target: TableId) -> list[str]:
        """Return the stored names of a target's columns; empty when there is no target."""
        return self._session.objects.columns(self._session.naming.table(target).target)

    def settle(self, sync: ResolvedSync, shape: Shape) -> str:
        """Bring a target to the position, and return up to which one it is merged then.

        Raises:
            MergedBeyond: it was merged further before.
            RosettaError: a destination kind.
        """
        objects, bound = self._session.objects, upper_bound(self._lsn)
        objects.merge(sync, shape, bound)
        merged = self._session.store.merged(objects.names(sync).target)
        if merged > bound:
            raise MergedBeyond(f"table {sync.target} was merged beyond the position before it could be held")
        return merged

    def read(
        self, sync: ResolvedSync, merged: str, query: str, columns: Sequence[str], *, limit_seconds: float
    ) -> list[list[str | None]]:
        """Return the rows of a query, all of whose columns are text, while the target is merged up to a position.

        Args:
            sync: source and target.
            merged: the position.
            query: over the target.
            columns: names of its columns.
            limit_seconds: after so long it is cancelled.

        Raises:
            MergedBeyond: the target is at another position now, or is loaded again.
            RosettaError: a destination kind.
        """
        names = self._session.objects.names(sync)
        where = self._session.store.where(names.target)
        mark = ", ".join(f"CAST(NULL AS VARCHAR) AS {name}" for name in columns)
        statement = (
            f"SELECT NULL AS MERGED, {', '.join(columns)} FROM ({query}) AS found UNION ALL "
            f"SELECT MERGED, {mark} FROM {self._session.store.table.quoted} WHERE {where} AND READY"
        )
        found = self._session.sql.run(statement, f"compare {names.target.name}", limit_seconds=limit_seconds).rows
        if not any(row[0] == merged for row in found):
            raise MergedBeyond(f"table {sync.target} was merged or loaded again while it was read")
        return [row[1:] for row in found if row[0] is None]

    def target(self, sync: ResolvedSync) -> str:
        """Return a target's name as SQL."""
        return self._session.objects.names(sync).target.quoted

    def release(self, target: TableId) -> None:
        """Let the merges of a table go on."""
        self._session.store.release(self._token, self._session.naming.table(target).target)

    def release_others(self, targets: Sequence[TableId]) -> None:
        """Let the merges of all other tables go on."""
        naming = self._session.naming
        self._session.store.release(self._token, *(naming.table(one).target for one in targets), others=True)

    def close(self) -> None:
        """Let all merges go on, and end the connections; idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        try:
            with contextlib.suppress(RosettaError):
                self._session.store.release(self._token)
        finally:
            self._session.close()
            self._thread.join(5)


def written_position(session: Session) -> Position | None:
    """Return the position of a pipeline that does not run, without disturbing its channels.

    Raises:
        RosettaError: a destination kind.
    """
    store = session.store
    if not session.objects.columns(store.table):
        return None
    found = session.sql.run(
        f"SELECT MAX(POSITION) FROM {session.naming.state(state.PIPELINE).quoted} "
        f"WHERE PIPELINE = {literal(session.writer)}",
        "read the position",
    ).value
    if not found:
        return None
    pipe, channel = session.naming.state_pipe(state.POSITION), session.naming.channel("POSITION")
    try:
        status = session.streaming.statuses(pipe, [channel]).get(channel)
    except (Refused, Unanswered, Unreachable) as error:
        raise classified(error, "read the position") from None
    said = None if status is None else status.committed
    return max(Position.parse(found), Position.parse(said)) if said else Position.parse(found)
