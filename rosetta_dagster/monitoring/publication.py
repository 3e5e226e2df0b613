"""Whether the publications still send what the pipelines rely on; a pipeline whose changes are being lost is paused.

A publication that was altered loses changes in silence: nothing comes, and nothing says that something should have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.capture.publication import OPERATIONS, published_tables
from cdc_runner.catalog.models import Pipeline, WalMonitor
from cdc_runner.catalog.notifications import record_event, resolve_event
from cdc_runner.catalog.pipelines import set_status
from cdc_runner.errors import RosettaError
from cdc_runner.schema import TableId
from rosetta_dagster.monitoring.sources import SourceToAsk, ask_all, sources_to_ask

SECONDS = 25.0
"""For all sources; the events of the assets wait for it."""


@dataclass(frozen=True, slots=True)
class WatchedPublication:
    """A pipeline's publication and the tables whose changes it needs."""

    source: SourceToAsk
    pipeline_id: int
    pipeline: str
    tables: frozenset[TableId]


@dataclass(frozen=True, slots=True)
class PublicationReading:
    """Operations that a publication leaves out, None when it is gone, and needed tables that it does not send."""

    missing_operations: tuple[str, ...] | None
    lost_tables: tuple[TableId, ...]


_STREAMING = text(
    """
    SELECT p.id AS pipeline_id, p.name AS pipeline, p.source_id, s.source_schema, s.source_table
    FROM pipelines p
    JOIN pipeline_destinations d ON d.pipeline_id = p.id
    JOIN pipelines_destination_table_sync s ON s.pipeline_destination_id = d.id
    LEFT JOIN wal_monitor w ON w.source_id = p.source_id
    WHERE s.origin = 'RESOLVED' AND s.load_state = 'STREAMING'
      -- One that was paused for it is looked at until the publication is right again.
      AND (p.status <> 'PAUSE' OR w.publication_problem IS NOT NULL)
    """
)


def watched_publications(session: Session) -> list[WatchedPublication]:
    """Return the publications that pipelines rely on now.

    Raises:
        RosettaError: there is no usable key, and so no source can be asked.
    """
    tables: dict[tuple[int, str, int], set[TableId]] = {}
    for row in session.execute(_STREAMING):
        key = (row.pipeline_id, row.pipeline, row.source_id)
        tables.setdefault(key, set()).add(TableId(row.source_schema, row.source_table))
    if not tables:
        return []
    sources = {source.id: source for source in sources_to_ask(session)}
    return [
        WatchedPublication(sources[source_id], pipeline_id, name, frozenset(needed))
        for (pipeline_id, name, source_id), needed in tables.items()
        if source_id in sources
    ]


_PUBLICATION = "SELECT pubinsert, pubupdate, pubdelete, pubtruncate FROM pg_publication WHERE pubname = %s"
_EXISTING = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND (n.nspname, c.relname) IN %s
"""


def read_publication(watched: WatchedPublication) -> PublicationReading:
    """Ask a source about a publication.

    Raises:
        RosettaError: unreachable, refused or too slow.
    """
    connection = watched.source.connect("publication monitor")
    try:
        with connection.cursor() as cursor:
            cursor.execute(_PUBLICATION, (watched.source.publication,))
            row = cursor.fetchone()
            if row is None:
                return PublicationReading(None, ())
            missing = tuple(name for name, there in zip(OPERATIONS, row, strict=True) if not there)
            unsent = set(watched.tables) - (published_tables(connection, watched.source.publication) or set())
            if unsent:
                # A table that was dropped is no loss; the schema monitor tells it.
                cursor.execute(_EXISTING, (tuple((one.schema, one.name) for one in unsent),))
                unsent = {TableId(schema, name) for schema, name in cursor.fetchall()}
    finally:
        connection.close()
    return PublicationReading(missing, tuple(sorted(unsent)))


def drift_of(reading: PublicationReading, publication: str) -> str | None:
    """Return what is wrong with a publication and what to do, None when it sends everything."""
    if reading.missing_operations is None:
        return f"publication {publication} is gone: changes are being lost; run `rosetta pipeline refresh`"
    if reading.missing_operations:
        left_out = ", ".join(reading.missing_operations)
        return (
            f"publication {publication} was altered and leaves out {left_out}: such changes are being lost; run"
            f" ALTER PUBLICATION … SET (publish = '{', '.join(OPERATIONS)}'), then `rosetta pipeline refresh`"
        )
    if reading.lost_tables:
        names = ", ".join(map(str, reading.lost_tables[:10]))
        more = f" and {len(reading.lost_tables) - 10} more" if len(reading.lost_tables) > 10 else ""
        return (
            f"publication {publication} has lost {names}{more}: their changes are being lost; start the pipeline again:"
            " it publishes them and copies them once more"
        )
    return None


def watch_publications(
    watched: Sequence[WatchedPublication], *, timeout_seconds: float = SECONDS
) -> list[PublicationReading | RosettaError]:
    """Ask all sources at once."""
    return ask_all(watched, read_publication, timeout_seconds=timeout_seconds)


def act_on_drift(
    session: Session, watched: Sequence[WatchedPublication], answers: Sequence[PublicationReading | RosettaError]
) -> list[str]:
    """Pause each pipeline whose publication drifts, with its reason; return one line for each that drifts.

    A pipeline is not started again by itself: what was lost meanwhile needs a refresh or a start by a person.
    """
    lines: list[str] = []
    for one, answer in zip(watched, answers, strict=True):
        if isinstance(answer, RosettaError):
            continue
        drift = drift_of(answer, one.source.publication)
        pipeline = session.get(Pipeline, one.pipeline_id)
        if pipeline is None:
            continue
        values = {"publication_problem": drift}
        session.execute(
            insert(WalMonitor)
            .values(source_id=one.source.id, **values)
            .on_conflict_do_update(index_elements=["source_id"], set_=values)
        )
        key = f"publication:{one.pipeline}"
        if drift is None:
            resolve_event(session, key)
            continue
        if pipeline.status != "PAUSE":
            set_status(session, pipeline.id, "PAUSE", reason=drift)
        record_event(session, key, "ERROR", "publication", drift, title=f"Pipeline {one.pipeline} is paused")
        lines.append(f"{one.pipeline}: {drift}")
    return lines
