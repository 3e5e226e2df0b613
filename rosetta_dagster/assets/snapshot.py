"""What the catalog holds, as far as Dagster's pages show it: a frozen copy that survives an outage of its database.

The copy says which pipelines and tables exist, not how they are doing: it changes only when an asset has to appear,
change or go, so that its fingerprint tells whether the definitions are out of date.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cdc_runner.errors import RosettaError
from cdc_runner.lineage import ColumnLineage, table_lineage
from cdc_runner.schema import TableId
from cdc_runner.services.lineage import column_names
from cdc_runner.spec import TableShape


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnRow(_Frozen):
    """A column of a source table: its name, type as PostgreSQL writes it, and whether it is part of the key."""

    name: str
    type_text: str
    not_null: bool = False
    in_key: bool = False


class LineageRow(_Frozen):
    """A column of a target, and the source columns that it comes from as schema, table and column.

    `type_text` is None where the type is not known here; the other fields are as in `ColumnRow`.
    """

    name: str
    sources: tuple[tuple[str, str, str], ...] = ()
    type_text: str | None = None
    not_null: bool = False
    in_key: bool = False


class TableRow(_Frozen):
    """One source table that feeds one target table of one destination.

    `columns` are those of the source table, `lineage` those of the target, `joined` the other source tables that the
    target reads, as schema and table, `lookups` the tables of the destination in which it looks rows up.
    """

    destination: str
    destination_type: str
    destination_database: str
    source_schema: str
    source_table: str
    target_schema: str
    target_table: str
    tags: tuple[str, ...] = ()
    columns: tuple[ColumnRow, ...] = ()
    filtered: bool = False
    custom_sql: bool = False
    lineage: tuple[LineageRow, ...] = ()
    joined: tuple[tuple[str, str], ...] = ()
    lookups: tuple[str, ...] = ()


class PipelineRow(_Frozen):
    """A pipeline with the tables it copies."""

    name: str
    source: str
    source_database: str
    capture_engine: str
    tables: tuple[TableRow, ...] = ()


class CatalogSnapshot(_Frozen):
    """All pipelines at one time.

    Attributes:
        pipelines: in the order of their names.
        fingerprint: as `read_catalog_fingerprint` gave it; another one means that the copy is out of date.
        taken_at: when the config database was read; None for a catalog that was never read.
        problem: why the config database could not be read this time; None for a fresh copy.
    """

    pipelines: tuple[PipelineRow, ...] = ()
    fingerprint: str = ""
    taken_at: datetime | None = None
    problem: str | None = None


def store_snapshot(path: Path, snapshot: CatalogSnapshot) -> None:
    """Write a snapshot for later outages; a reader sees the old file or the new one, never half of one.

    Raises:
        OSError: the directory cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(snapshot.model_dump_json())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_stored_snapshot(path: Path) -> CatalogSnapshot | None:
    """Return the stored snapshot, or None when there is none that this version can read."""
    try:
        return CatalogSnapshot.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, json.JSONDecodeError):
        return None


def current_snapshot(fetch: Callable[[], CatalogSnapshot], path: Path) -> CatalogSnapshot:
    """Return the catalog from the config database, or the last good copy with the reason why it is not fresh.

    Never raises for an unreachable config database: a code location that fails to load would take the sensors away, and
    with them the ones that watch the config database.
    """
    try:
        snapshot = fetch()
    except RosettaError as error:
        stored = load_stored_snapshot(path) or CatalogSnapshot()
        return stored.model_copy(update={"problem": str(error)})
    try:
        store_snapshot(path, snapshot)
    except OSError as error:
        return snapshot.model_copy(update={"problem": f"the copy for outages was not written: {error.strerror}"})
    return snapshot


def snapshot_of_rows(
    pipelines: list[dict[str, Any]], tables: list[dict[str, Any]], fingerprint: str
) -> CatalogSnapshot:
    """Return the snapshot of what `read_catalog_rows` has read.

    Columns are left out where the stored schema has another form than this version knows: a page without columns is
    better than no page.
    """
    by_pipeline: dict[str, list[TableRow]] = {}
    for row in tables:
        left_out = ("pipeline", "schema_table", "filter_sql", "custom_sql", "shape", "known")
        fields = {key: value for key, value in row.items() if key not in left_out}
        columns = _columns(row["schema_table"])
        lineage, joined, lookups = _lineage(row, columns)
        table = TableRow(
            **fields,
            columns=columns,
            filtered=row["filter_sql"] is not None,
            custom_sql=row["custom_sql"] is not None,
            lineage=lineage,
            joined=joined,
            lookups=lookups,
        )
        by_pipeline.setdefault(row["pipeline"], []).append(table)
    return CatalogSnapshot(
        pipelines=tuple(PipelineRow(**row, tables=tuple(by_pipeline.get(row["name"], ()))) for row in pipelines),
        fingerprint=fingerprint,
        taken_at=datetime.now(UTC),
    )


def _lineage(
    row: dict[str, Any], columns: tuple[ColumnRow, ...]
) -> tuple[tuple[LineageRow, ...], tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Return the target's columns with where they come from, and the tables of source and destination that it joins."""
    source = TableId(row["source_schema"], row["source_table"])
    known = {TableId(schema, name): column_names(stored) for schema, name, stored in row["known"] or ()}
    known[source] = tuple(column.name for column in columns)
    shape = TableShape.from_json(row["shape"] or {}, row["filter_sql"], row["custom_sql"])
    found = table_lineage(source, shape, known)
    by_name = {column.name: column for column in columns}
    return (
        tuple(_lineage_row(one, by_name) for one in found.columns),
        tuple((table.schema, table.name) for table in found.tables if table != source),
        tuple(map(str, found.lookups)),
    )


def _lineage_row(column: ColumnLineage, by_name: dict[str, ColumnRow]) -> LineageRow:
    sources = tuple((one.table.schema, one.table.name, one.name) for one in column.sources if not one.looked_up)
    origin = by_name.get(column.sources[0].name) if len(column.sources) == len(sources) == 1 else None
    types = {"hash": "text", "truncate": "text", "constant": "text"}
    if column.how == "copied" and origin is not None:
        return LineageRow(
            name=column.name,
            sources=sources,
            type_text=origin.type_text,
            not_null=origin.not_null,
            in_key=origin.in_key,
        )
    return LineageRow(name=column.name, sources=sources, type_text=types.get(column.how))


def _columns(schema: Any) -> tuple[ColumnRow, ...]:
    if not isinstance(schema, dict):
        return ()
    key = set(schema.get("primary_key") or schema.get("key") or ())
    try:
        return tuple(
            ColumnRow(
                name=column["name"],
                type_text=column["type_text"],
                not_null=bool(column.get("not_null")),
                in_key=column["name"] in key,
            )
            for column in schema.get("columns", ())
        )
    except (KeyError, TypeError, AttributeError, ValidationError):
        return ()
