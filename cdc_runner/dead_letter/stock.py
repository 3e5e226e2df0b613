"""Compare what the destination says is waiting with what the queue has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from cdc_runner.catalog.dead_letters import DeadLetterCount
from cdc_runner.dead_letter.queue import DeadLetterQueue
from cdc_runner.destinations.marks import WaitingTable
from cdc_runner.destinations.postgres import waiting
from cdc_runner.destinations.postgres.destination import PostgresDestination
from cdc_runner.schema import TableId

log = structlog.get_logger()


@dataclass(slots=True)
class Stock:
    """What was found.

    Attributes:
        lost: target -> changes that are marked as waiting and are not in the queue.
        removed: source table -> entries without a mark that were removed: left over from a transaction that was
            rolled back, from a replay that died before it could acknowledge, or void since their table was emptied or
            loaded anew.
    """

    lost: dict[TableId, int] = field(default_factory=dict)
    removed: dict[TableId, int] = field(default_factory=dict)


def take_stock(
    destination: PostgresDestination, pipeline: str, queue: DeadLetterQueue, *, thorough: bool = True
) -> Stock:
    """Remove entries that no mark knows, and count marks whose entries are gone.

    Under the lock of the position: nobody appends meanwhile, so that an entry without a mark is nobody's.

    Args:
        destination: opened.
        pipeline: its pipeline.
        queue: its queue.
        thorough: compare entry by entry even where there are as many as there should be.

    Raises:
        RosettaError: the kinds of the destination and of the queue.
    """
    stock = Stock()
    left_over: dict[TableId, dict[str, str]] = {}
    with destination.exclusive() as cursor:
        if not thorough and _as_many(waiting.count_by_source(cursor, pipeline), queue):
            return stock
        marked = waiting.read_entries(cursor, pipeline)
        for source in sorted({*queue.sources(), *(one.source for one in marked.values())}):
            for stream_id, entry in queue.ids(source):
                if entry in marked:
                    del marked[entry]
                else:
                    left_over.setdefault(source, {})[stream_id] = entry
        for source, entries in left_over.items():
            queue.finish(source, entries)
            stock.removed[source] = len(entries)
    for mark in marked.values():
        stock.lost[mark.target] = stock.lost.get(mark.target, 0) + 1
    if stock.lost or stock.removed:
        counts = {str(table): count for table, count in stock.lost.items()}
        log.warning("dead_letters.stock", lost=counts, removed=sum(stock.removed.values()))
    return stock


def _as_many(marks: Mapping[TableId, int], queue: DeadLetterQueue) -> bool:
    return all(queue.length(source) == marks.get(source, 0) for source in {*queue.sources(), *marks})


def count_waiting(
    tables: Mapping[TableId, WaitingTable], lost: Mapping[TableId, int], reasons: Mapping[TableId, str]
) -> list[DeadLetterCount]:
    """Return what waits, a target table, as it is reported.

    Args:
        tables: the waiting keys, by target.
        lost: changes that the queue does not have any more, by target.
        reasons: why the first change was refused, by target.
    """
    return [
        DeadLetterCount(
            table.source,
            target,
            len(table.counts),
            sum(table.counts.values()),
            lost.get(target, 0),
            None if table.oldest_at is None else datetime.fromtimestamp(table.oldest_at, UTC),
            reasons.get(target),
        )
        for target, table in sorted(tables.items())
    ]
