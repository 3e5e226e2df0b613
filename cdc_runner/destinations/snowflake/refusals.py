"""Rows that Snowflake does not take: found before or after they were sent, put aside, their keys made to wait.

Order of steps, so that a crash loses nothing and repeats nothing: payloads into the queue, marks into the state table,
then the events behind them into the channel. An event at or below the channel's token is durable or has a mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import structlog

from cdc_runner.destinations.letters import LetterSink, Refusal, RowChange
from cdc_runner.destinations.snowflake import naming
from cdc_runner.destinations.snowflake.channel import Channel, RowsRejected
from cdc_runner.destinations.snowflake.divert import MISFIT, Aside, EventDiversion, row_change
from cdc_runner.destinations.snowflake.pack import unpacked
from cdc_runner.destinations.snowflake.rows import RowWriter, Shape
from cdc_runner.destinations.snowflake.session import Session
from cdc_runner.destinations.snowflake.sql import literal
from cdc_runner.destinations.snowflake.waiting import EventMark, PutAside
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position
from cdc_runner.schema import TableId, quote_identifier
from cdc_runner.spec import ResolvedSync

log = structlog.get_logger()

REJECTED = "rejected by the service: see SNOWPIPE_STREAMING_CHANNEL_HISTORY and the landing table's error table"
_AT_ONCE = 2000


class Refusals:
    """What waits at one destination. Used by the destination's thread."""

    def __init__(self, session: Session, diversion: EventDiversion) -> None:
        """Args:
        session: of the opened destination.
        diversion: the destination's.
        """
        self._session = session
        self.store = session.waiting
        self.diversion = diversion
        self._accounted: dict[str, int] = {}

    def open(self) -> None:
        """Make the tables of marks unless they are there."""
        self.store.create()
        self._accounted = self.store.rejected()

    def reload(self) -> None:
        """Read what waits."""
        self.diversion.load(self.store.read())

    # -- before rows are sent ----------------------------------------------------------------------------------------

    def take_out(
        self,
        sync: ResolvedSync,
        shape: Shape,
        rows: pa.Table,
        writer: RowWriter,
        above: str | None,
        sink: LetterSink | None,
        at: tuple[Position, float],
    ) -> pa.Table:
        """Return the events that are to be sent now; what is refused, or waits behind that, is stored first.

        Args:
            sync: source and target.
            shape: of the table.
            rows: events in order, without `m`.
            writer: knows what can be carried.
            above: the channel's token: events at or below it were sent or have marks.
            sink: the queue; None where there is none.
            at: position and commit time of the batch.

        Raises:
            RosettaError: DESTINATION_ROW_REJECTED without a queue, DEAD_LETTER_UNAVAILABLE, DEAD_LETTER_FULL.
        """
        refused = writer.misfits(shape, rows, above)
        if not refused and sync.target not in self.diversion.tables:
            return rows
        if refused and sink is None:
            first = min(refused)
            raise RosettaError(
                ErrorKind.DESTINATION_ROW_REJECTED,
                f"table {shape.schema.table}: {len(refused)} rows cannot go to Snowflake, the first at {first}: "
                f"{refused[first]}",
                {"table": str(shape.schema.table), "rows": len(refused), "position": first},
            )
        split = self.diversion.split(sync, shape.schema, _above(rows, above), refused)
        if split.emptied:
            self.forget(sync.target)
        self._keep(split.aside, sink, at)
        return split.rows

    def forget(self, target: TableId) -> None:
        """Let a target's keys flow: it was emptied, or is loaded anew."""
        if target in self.diversion.tables:
            self.store.forget_target(target)
            self.diversion.forget(target)

    def keep_loaded(self, aside: Sequence[Aside], sink: LetterSink, at: tuple[Position, float]) -> None:
        """Store rows of a load that cannot be carried; the destination reads the marks when the load is over."""
        self._store(aside, sink, at)

    def _keep(self, aside: Sequence[Aside], sink: LetterSink | None, at: tuple[Position, float]) -> None:
        if not aside:
            return
        if sink is None:
            raise RosettaError(ErrorKind.DEAD_LETTER_UNAVAILABLE, "there is no dead-letter queue to put rows aside")
        self.diversion.add(self._store(aside, sink, at))
        log.info("snowflake.put_aside", table=str(aside[0].change.sync.target), changes=len(aside))

    def _store(self, aside: Sequence[Aside], sink: LetterSink, at: tuple[Position, float]) -> list[EventMark]:
        marks: list[EventMark] = []
        last = self.diversion.marks[-1].mark.number if self.diversion.marks else 0
        for start in range(0, len(aside), _AT_ONCE):
            some = aside[start : start + _AT_ONCE]
            letters = sink.append([one.change for one in some], *at)
            pairs = zip(letters, some, strict=True)
            stored = [PutAside(letter, one.position, one.late) for letter, one in pairs]
            marks += self.store.add(stored, last + len(marks))
        return marks

    # -- after rows were sent ----------------------------------------------------------------------------------------

    def unaccounted(self, channel: Channel) -> bool:
        """Tell whether the service rejected rows of a channel while nobody looked."""
        return channel.rows_rejected > self._accounted.get(channel.name, 0)

    def account(self, channel: Channel) -> None:
        """Note that all rejected rows of a channel are put aside, or that their table is to be loaded again."""
        self.store.note_rejected(channel.name, channel.rows_rejected)
        self._accounted[channel.name] = channel.rows_rejected

    def take_rejected(
        self, sync: ResolvedSync, shape: Shape, channel: Channel, error: RowsRejected, sink: LetterSink | None,
        at: tuple[Position, float],
    ) -> bool:  # fmt: skip
        """Put the rows aside that the service rejected; False when it cannot be told which they are."""
        sent = _sent(error)
        missing = None if sink is None else self.rejected_positions(sync, error)
        if missing is None:
            return False
        later: dict[str, str] = {}
        changes: dict[str, RowChange] = {}
        for position, row in sorted(sent.items()):
            if row[naming.OPERATION] != "t":
                change = sent_change(sync, shape, row)
                changes[position] = change
                later[change.key_hash] = position
        aside = [Aside(changes[one], one, late=later[changes[one].key_hash] > one) for one in missing if one in changes]
        self._keep(aside, sink, at)
        self.account(channel)
        return True

    def rejected_positions(self, sync: ResolvedSync, error: RowsRejected) -> list[str] | None:
        """Return the positions of the rows that the service rejected; None when that cannot be told.

        They are the ones that were sent and are not in the landing table, as long as no merge has removed rows of it.
        """
        missing = self._missing(sync, _sent(error))
        return missing if missing is not None and len(missing) == error.missing else None

    def _missing(self, sync: ResolvedSync, sent: dict[str, dict[str, str | None]]) -> list[str] | None:
        names, low, high = self._session.naming.table(sync.target), min(sent), max(sent)
        position = quote_identifier(naming.POSITION)
        found = self._session.sql.run(
            f"SELECT {position} FROM {names.landing.quoted} "
            f"WHERE {position} BETWEEN {literal(low)} AND {literal(high)}",
            "look which rows have landed",
        )
        # Asked afterwards: a merge in between would have removed rows that did land.
        if self._session.store.merged(names.target) >= low:
            return None
        return sorted(set(sent) - {str(row[0]) for row in found.rows})


def _sent(error: RowsRejected) -> dict[str, dict[str, str | None]]:
    return {str(row[naming.POSITION]): row for request in error.requests for row in unpacked(request)}


def sent_change(sync: ResolvedSync, shape: Shape, row: Mapping[str, str | None], reason: str = REJECTED) -> RowChange:
    """Return the change of a row as it is sent to a landing table, which was refused for a reason."""
    names = shape.schema.stream_names
    event: dict[str, object] = {f"c{n}": row.get(shape.columns.get(name, "")) for n, name in enumerate(names)}
    event |= {"op": row[naming.OPERATION], "x": row.get(naming.UNCHANGED)}
    return row_change(sync, shape.schema, event, Refusal(MISFIT, reason))


def _above(rows: pa.Table, position: str | None) -> pa.Table:
    """Return the events above a position."""
    if position is None:
        return rows
    limit = Position.parse(position)
    lsn, seq = rows.column("lsn").to_numpy(), rows.column("seq").to_numpy()
    above = (lsn > limit.lsn) | ((lsn == limit.lsn) & (seq > limit.ordinal))
    return rows if above.all() else rows.filter(pa.array(above))
