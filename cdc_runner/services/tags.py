"""Smart tags of table syncs: give, take off, find, rename, and where they are used.

A tag belongs to a declared table of a pipeline's destination, and so to every table that its pattern takes, or to one
table that is copied without being declared. The last use that goes takes the tag with it (migration 013).
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cdc_runner.catalog.models import Pipeline, TableSync, TableSyncTag, Tag
from cdc_runner.catalog.repositories import get_pipeline, lock_configuration
from cdc_runner.catalog.table_entry import TagName, split_table
from cdc_runner.errors import ErrorKind, RosettaError

MAX_SUGGESTIONS = 50

_TAG_NAME: TypeAdapter[str] = TypeAdapter(TagName)

_USES = text(
    """
    SELECT DISTINCT t.tag, s.name AS source, p.name AS pipeline, d.name AS destination,
           CASE WHEN r.id IS NULL THEN l.table_name ELSE r.source_schema || '.' || r.source_table END AS "table",
           CASE WHEN r.id IS NULL THEN coalesce(l.table_name_target, '')
                ELSE r.target_schema || '.' || r.target_table END AS target
    FROM tbltag_list t
    JOIN pipelines_destination_table_sync_tag st ON st.tag_id = t.id
    JOIN pipelines_destination_table_sync l ON l.id = st.pipelines_destination_table_sync_id
    JOIN pipeline_destinations pd ON pd.id = l.pipeline_destination_id
    JOIN pipelines p ON p.id = pd.pipeline_id
    JOIN sources s ON s.id = p.source_id
    JOIN destinations d ON d.id = pd.destination_id
    LEFT JOIN pipelines_destination_table_sync r
        ON r.origin = 'RESOLVED' AND r.load_state <> 'EXCLUDED' AND (r.id = l.id OR r.declared_id = l.id)
    ORDER BY 1, 2, 3, 4, 5, 6
    """
)


@dataclass(frozen=True, slots=True)
class TagUse:
    """A table that carries a tag; the pattern itself, and no target, for one that no table was found for yet."""

    tag: str
    source: str
    pipeline: str
    destination: str
    table: str
    target: str

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What tells one table sync from another."""
        return self.pipeline, self.destination, self.table, self.target


def read_uses(session: Session) -> list[TagUse]:
    """Return every use of every tag, by tag, pipeline, destination and table."""
    return [TagUse(**row) for row in session.execute(_USES).mappings()]


def list_tags(
    session: Session,
    search: str = "",
    *,
    source: str | None = None,
    pipeline: str | None = None,
    destination: str | None = None,
) -> list[dict[str, Any]]:
    """Return tags with the number of their tables, by name.

    Args:
        session: of the caller.
        search: only tags that hold this text; those that begin with it come first.
        source: only uses of this source.
        pipeline: only uses of this pipeline.
        destination: only uses of this destination.
    """
    wanted = search.strip().lower()
    uses = [
        use
        for use in read_uses(session)
        if wanted in use.tag
        and source in (None, use.source)
        and pipeline in (None, use.pipeline)
        and destination in (None, use.destination)
    ]
    tables = Counter(use.tag for use in uses)
    return [
        {
            "tag": tag,
            "tables": tables[tag],
            "pipelines": sorted({use.pipeline for use in uses if use.tag == tag}),
            "destinations": sorted({use.destination for use in uses if use.tag == tag}),
        }
        for tag in sorted(tables, key=lambda tag: (not tag.startswith(wanted), tag))
    ]


def suggest_tags(session: Session, begun: str, limit: int = 10) -> list[str]:
    """Return tags that begin with a text, then those that hold it, the most used first."""
    found = list_tags(session, begun)
    found.sort(key=lambda one: (not one["tag"].startswith(begun.strip().lower()), -one["tables"], one["tag"]))
    return [one["tag"] for one in found[: min(limit, MAX_SUGGESTIONS)]]


def tag_usage(session: Session, tag: str) -> dict[str, dict[str, list[dict[str, str]]]]:
    """Return where a tag is used: pipeline -> destination -> tables with their targets.

    Raises:
        RosettaError: NOT_FOUND, with tags like it.
    """
    known = _existing(session, tag)
    tree: dict[str, dict[str, list[dict[str, str]]]] = {}
    for use in read_uses(session):
        if use.tag == known.tag:
            tables = tree.setdefault(use.pipeline, {}).setdefault(use.destination, [])
            tables.append({"table": use.table, "target": use.target})
    return tree


def tag_relations(session: Session) -> list[dict[str, Any]]:
    """Return pairs of tags with the number of tables that carry both, the closest first."""
    tags: dict[tuple[str, str, str, str], list[str]] = {}
    for use in read_uses(session):
        tags.setdefault(use.place, []).append(use.tag)
    weights = Counter(pair for carried in tags.values() for pair in combinations(sorted(set(carried)), 2))
    return [
        {"tag": one, "other": two, "shared_tables": weight}
        for (one, two), weight in sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    ]


def add_tags(
    session: Session, pipeline: str, tables: Sequence[str], tags: Sequence[str], destination: str | None = None
) -> int:
    """Give tags to tables of a pipeline; tell how many were given that were not there.

    Args:
        session: of the caller.
        pipeline: its name.
        tables: `schema.table`, or patterns with * and ?, of source tables or as they were declared.
        tags: names; capitals become small.
        destination: only of this one; None for all of the pipeline.

    Raises:
        RosettaError: NOT_FOUND when a table matches nothing; CONFIG_INVALID for a name that no tag may have.
    """
    lock_configuration(session)
    syncs = _syncs(get_pipeline(session, pipeline), tables, destination)
    names = sorted({check_tag(tag) for tag in tags})
    if not names:
        raise RosettaError(ErrorKind.CONFIG_INVALID, "no tag was given")
    identifiers = _ensure(session, names)
    links = [
        {"pipelines_destination_table_sync_id": sync.id, "tag_id": identifier}
        for sync in syncs
        for identifier in identifiers
    ]
    added = session.execute(
        insert(TableSyncTag).values(links).on_conflict_do_nothing().returning(TableSyncTag.id)
    ).all()
    session.expire_all()
    return len(added)


def remove_tags(
    session: Session, pipeline: str, tables: Sequence[str], tags: Sequence[str], destination: str | None = None
) -> int:
    """Take tags off tables of a pipeline; tell how many were taken.

    Raises:
        RosettaError: NOT_FOUND when a table matches nothing, or no tag has the name.
    """
    lock_configuration(session)
    syncs = _syncs(get_pipeline(session, pipeline), tables, destination)
    identifiers = [_existing(session, tag).id for tag in tags]
    gone = session.execute(
        delete(TableSyncTag)
        .where(
            TableSyncTag.pipelines_destination_table_sync_id.in_([sync.id for sync in syncs]),
            TableSyncTag.tag_id.in_(identifiers),
        )
        .returning(TableSyncTag.id)
    ).all()
    session.expire_all()
    return len(gone)


def rename_tag(session: Session, tag: str, new_name: str, *, merge: bool = False) -> int:
    """Give a tag another name wherever it is used; tell at how many places.

    Raises:
        RosettaError: NOT_FOUND; CONFIG_INVALID; CONFLICT when a tag has the new name and they are not to be merged.
    """
    lock_configuration(session)
    old, name = _existing(session, tag), check_tag(new_name)
    if old.tag == name:
        return 0
    places = list(
        session.scalars(select(TableSyncTag.pipelines_destination_table_sync_id).where(TableSyncTag.tag_id == old.id))
    )
    other = session.scalars(select(Tag).where(Tag.tag == name)).one_or_none()
    if other is None:
        old.tag = name
        session.flush()
        return len(places)
    if not merge:
        raise RosettaError(ErrorKind.CONFLICT, f"a tag {name} exists already; ask for a merge to make them one")
    links = [{"pipelines_destination_table_sync_id": place, "tag_id": other.id} for place in places]
    if links:
        session.execute(insert(TableSyncTag).values(links).on_conflict_do_nothing())
    session.execute(delete(TableSyncTag).where(TableSyncTag.tag_id == old.id))
    session.expire_all()
    return len(places)


def delete_tag(session: Session, tag: str) -> int:
    """Take a tag off everything, which removes it; tell off how many.

    Raises:
        RosettaError: NOT_FOUND.
    """
    lock_configuration(session)
    known = _existing(session, tag)
    gone = session.execute(delete(TableSyncTag).where(TableSyncTag.tag_id == known.id).returning(TableSyncTag.id)).all()
    session.expire_all()
    return len(gone)


def check_tag(name: str) -> str:
    """Return a tag's name as it is stored.

    Raises:
        RosettaError: CONFIG_INVALID.
    """
    try:
        return _TAG_NAME.validate_python(name.strip())
    except ValidationError:
        raise RosettaError(
            ErrorKind.CONFIG_INVALID,
            "a tag has letters, digits, _, . and - only, begins with a letter or digit, and has at most 63 characters",
        ) from None


def _existing(session: Session, name: str) -> Tag:
    wanted = name.strip().lower()
    found = session.scalars(select(Tag).where(Tag.tag == wanted)).one_or_none()
    if found is None:
        near = suggest_tags(session, wanted[:3]) or suggest_tags(session, "")
        raise RosettaError(ErrorKind.NOT_FOUND, f"no tag {wanted[:80]!r}; known: {', '.join(near) or 'none'}")
    return found


def _ensure(session: Session, names: Sequence[str]) -> list[int]:
    """Return the ids of tags, made when absent, and locked against their removal as unused."""
    session.execute(insert(Tag).values([{"tag": name} for name in names]).on_conflict_do_nothing())
    return list(session.scalars(select(Tag.id).where(Tag.tag.in_(names)).with_for_update(read=True, key_share=True)))


def _syncs(pipeline: Pipeline, tables: Iterable[str], destination: str | None) -> list[TableSync]:
    """Return the table syncs that patterns take: a declared one by its own words, else tables that are copied."""
    rows = [row for row in pipeline.destinations if destination in (None, row.destination.name)]
    if not rows:
        raise RosettaError(ErrorKind.NOT_FOUND, f"pipeline {pipeline.name} has no destination {destination!r}")
    found: dict[int, TableSync] = {}
    for pattern in tables:
        matching = [sync for row in rows for sync in _matching(row.table_syncs, pattern)]
        if not matching:
            raise RosettaError(
                ErrorKind.NOT_FOUND, f"pipeline {pipeline.name} copies no table {pattern[:120]!r} that is known yet"
            )
        found |= {sync.id: sync for sync in matching}
    if not found:
        raise RosettaError(ErrorKind.CONFIG_INVALID, "no table was given")
    return list(found.values())


def _matching(syncs: Sequence[TableSync], pattern: str) -> list[TableSync]:
    declared = [sync for sync in syncs if sync.origin == "DECLARED"]
    exact = [sync for sync in declared if sync.table_name == pattern]
    if exact:
        return exact
    schema, table = split_table(pattern)
    resolved = [
        sync
        for sync in syncs
        if sync.origin == "RESOLVED"
        and fnmatch.fnmatchcase(sync.source_schema or "", schema)
        and fnmatch.fnmatchcase(sync.source_table or "", table)
    ]
    # The declared table's own row outlives a copy of it, and is what a configuration file speaks of.
    own = {sync.id: sync for sync in declared if not any(character in sync.table_name for character in "*?[")}
    return [own.get(sync.declared_id or 0, sync) for sync in resolved]
