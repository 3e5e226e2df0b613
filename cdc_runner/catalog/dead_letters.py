"""Dead letters in the config database: counts for readers, and the events that a person is to hear of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog.events import record_event, resolve_event
from cdc_runner.catalog.models import DeadLetterQueueState, DeadLetterTable, Destination, Pipeline, PipelineDestination
from cdc_runner.schema import TableId

QueueState = Literal["OK", "NOT_CONFIGURED", "UNAVAILABLE", "NOT_DURABLE"]


@dataclass(frozen=True, slots=True)
class DeadLetterCount:
    """The dead letters of one target table.

    Attributes:
        source: source table.
        target: target table.
        keys: keys that wait.
        entries: changes that wait.
        lost: of these, how many the queue does not have any more.
        oldest_at: when the first was put aside.
        reason: why the first was refused.
    """

    source: TableId
    target: TableId
    keys: int
    entries: int
    lost: int = 0
    oldest_at: datetime | None = None
    reason: str | None = None


def is_late(one: DeadLetterCount, alert_age_seconds: float) -> bool:
    """Tell whether a table's oldest dead letter is older than it should become."""
    return one.oldest_at is not None and (datetime.now(UTC) - one.oldest_at).total_seconds() > alert_age_seconds


def is_nearly_full(one: DeadLetterCount, max_entries: int) -> bool:
    """Tell whether nine tenths of the dead letters that a table may have are there."""
    return one.entries * 10 >= max_entries * 9


def report_tables(
    session: Session,
    pipeline_destination_id: int,
    counts: Sequence[DeadLetterCount],
    *,
    alert_age_seconds: float,
    max_entries: int,
) -> None:
    """Store the dead letters of a destination, in place of what was stored before, and open or close their events.

    Args:
        session: of the caller.
        pipeline_destination_id: the destination of the pipeline.
        counts: tables that have dead letters.
        alert_age_seconds: age of the oldest from which the event is an ERROR.
        max_entries: most dead letters of a table; near to it the event is an ERROR.
    """
    removed = session.execute(
        delete(DeadLetterTable)
        .where(DeadLetterTable.pipeline_destination_id == pipeline_destination_id)
        .returning(DeadLetterTable.target_schema, DeadLetterTable.target_table)
    )
    known = {(row[0], row[1]) for row in removed}
    subject = _subject(session, pipeline_destination_id)
    for one in counts:
        session.execute(
            insert(DeadLetterTable).values(
                pipeline_destination_id=pipeline_destination_id,
                source_schema=one.source.schema,
                source_table=one.source.name,
                target_schema=one.target.schema,
                target_table=one.target.name,
                waiting_keys=one.keys,
                entries=one.entries,
                lost_entries=one.lost,
                oldest_at=one.oldest_at,
                reason=one.reason,
            )
        )
        _open_event(session, subject, one, alert_age_seconds, max_entries)
    for schema, table in known - {(one.target.schema, one.target.name) for one in counts}:
        resolve_event(session, "dead_letters", f"{subject}/{schema}.{table}")


def _open_event(
    session: Session, subject: str, one: DeadLetterCount, alert_age_seconds: float, max_entries: int
) -> None:
    late, full = is_late(one, alert_age_seconds), is_nearly_full(one, max_entries)
    severe = one.lost > 0 or late or full
    text = f"{one.entries} changes of {one.keys} keys of table {one.target} wait in the dead-letter queue"
    if one.lost:
        text += f"; {one.lost} of them are gone from Redis and will be read from the source"
    if late and one.oldest_at is not None:
        text += f"; the oldest for {timedelta(seconds=round((datetime.now(UTC) - one.oldest_at).total_seconds()))}"
    if full:
        text += f"; beyond {max_entries} (dead_letter_max_entries) the destination waits"
    if one.reason:
        text += f". Reason: {one.reason}"
    title = f"Dead letters: {subject}, table {one.target}"
    advice = "Correct the target, or edit the entry, then run `rosetta dlq replay`."
    severity: Literal["ERROR", "WARNING"] = "ERROR" if severe else "WARNING"
    record_event(session, "dead_letters", f"{subject}/{one.target}", severity, title, f"{text}. {advice}")


def report_queue(
    session: Session,
    pipeline_destination_id: int,
    state: QueueState,
    problem: str | None = None,
) -> None:
    """Store whether a destination's queue can be used, and open or close its event."""
    values = {"state": state, "problem": problem}
    session.execute(
        insert(DeadLetterQueueState)
        .values(pipeline_destination_id=pipeline_destination_id, **values)
        .on_conflict_do_update(index_elements=[DeadLetterQueueState.pipeline_destination_id], set_=values)
    )
    subject = _subject(session, pipeline_destination_id)
    if state in ("OK", "NOT_CONFIGURED"):
        resolve_event(session, "dead_letter_queue", subject)
    else:
        title = f"Dead-letter queue of {subject}: {state.lower().replace('_', ' ')}"
        text = f"{problem}. A row that the destination refuses would hold it back until the queue can be used again."
        record_event(session, "dead_letter_queue", subject, "WARNING", title, text)


def report_parked(session: Session, pipeline_destination_id: int, batches: int, size: int) -> None:
    """Store how much is parked for a destination that is away, and open or close its event.

    Args:
        session: of the caller.
        pipeline_destination_id: the destination of the pipeline.
        batches: how many batches.
        size: their bytes in Redis.
    """
    values = {"parked_batches": batches, "parked_bytes": size}
    session.execute(
        insert(DeadLetterQueueState)
        .values(pipeline_destination_id=pipeline_destination_id, state="OK", **values)
        .on_conflict_do_update(index_elements=[DeadLetterQueueState.pipeline_destination_id], set_=values)
    )
    subject = _subject(session, pipeline_destination_id)
    if not batches:
        resolve_event(session, "destination_parked", subject)
        return
    title = f"Changes for {subject} are parked in Redis"
    text = (
        f"The destination is away: {batches} batches ({size / 1048576:.1f} MB) wait in Redis, and the slot has passed "
        "them. Redis must keep them until the destination is back; they are then applied in order."
    )
    record_event(session, "destination_parked", subject, "WARNING", title, text)


def parked_batches(session: Session, pipeline_destination_id: int) -> int:
    """Return how many batches were parked for a destination when its pipeline told last."""
    row = session.get(DeadLetterQueueState, pipeline_destination_id)
    return 0 if row is None else row.parked_batches


def record_discard(session: Session, pipeline_destination_id: int, table: str, entries: int, why: str) -> None:
    """Record that entries were removed without being applied: never silently."""
    subject = _subject(session, pipeline_destination_id)
    title = f"Dead letters discarded: {subject}, table {table}"
    text = f"{entries} changes were removed from the dead-letter queue without being applied: {why}."
    record_event(session, "dead_letters_discarded", f"{subject}/{table}", "WARNING", title, text, lasting=False)


def record_restart(session: Session, pipeline_destination_id: int, place: str) -> None:
    """Record that the Redis of a queue was restarted; what it lost by that is counted with the tables."""
    subject = _subject(session, pipeline_destination_id)
    title = f"Dead-letter queue of {subject}: Redis was restarted"
    text = f"Redis at {place} was restarted. What waits was compared with what it still has; losses are told by table."
    record_event(session, "dead_letter_queue_restarted", subject, "INFO", title, text, lasting=False)


@dataclass(frozen=True, slots=True)
class DestinationLetters:
    """Everything about the dead letters of one destination of a pipeline."""

    pipeline: str
    destination: str
    state: QueueState | None
    problem: str | None
    parked_batches: int
    parked_bytes: int
    tables: tuple[DeadLetterCount, ...]

    @property
    def entries(self) -> int:
        """Changes that wait."""
        return sum(one.entries for one in self.tables)

    @property
    def keys(self) -> int:
        """Keys that wait."""
        return sum(one.keys for one in self.tables)

    @property
    def lost(self) -> int:
        """Changes that wait and are gone from the queue."""
        return sum(one.lost for one in self.tables)


def read_dead_letters(session: Session) -> dict[int, DestinationLetters]:
    """Return the dead letters of every destination of a pipeline, by the id of `pipeline_destinations`."""
    tables: dict[int, list[DeadLetterCount]] = {}
    for row in session.scalars(
        select(DeadLetterTable).order_by(DeadLetterTable.target_schema, DeadLetterTable.target_table)
    ):
        tables.setdefault(row.pipeline_destination_id, []).append(
            DeadLetterCount(
                TableId(row.source_schema, row.source_table),
                TableId(row.target_schema, row.target_table),
                row.waiting_keys,
                row.entries,
                row.lost_entries,
                row.oldest_at,
                row.reason,
            )
        )
    found: dict[int, DestinationLetters] = {}
    rows = session.execute(
        select(PipelineDestination.id, Pipeline.name, Destination.name, DeadLetterQueueState)
        .join(Pipeline, Pipeline.id == PipelineDestination.pipeline_id)
        .join(Destination, Destination.id == PipelineDestination.destination_id)
        .outerjoin(DeadLetterQueueState, DeadLetterQueueState.pipeline_destination_id == PipelineDestination.id)
    )
    for identifier, pipeline, destination, state in rows:
        queue: DeadLetterQueueState | None = state  # an outer join
        found[identifier] = DestinationLetters(
            pipeline,
            destination,
            None if queue is None else queue.state,  # type: ignore[arg-type]  # CHECK of the table
            None if queue is None else queue.problem,
            0 if queue is None else queue.parked_batches,
            0 if queue is None else queue.parked_bytes,
            tuple(tables.get(identifier, ())),
        )
    return found


def _subject(session: Session, pipeline_destination_id: int) -> str:
    names = session.execute(
        select(Pipeline.name, func.coalesce(Destination.name, ""))
        .select_from(PipelineDestination)
        .join(Pipeline, Pipeline.id == PipelineDestination.pipeline_id)
        .join(Destination, Destination.id == PipelineDestination.destination_id)
        .where(PipelineDestination.id == pipeline_destination_id)
    ).first()
    return "?/?" if names is None else f"{names[0]}/{names[1]}"
