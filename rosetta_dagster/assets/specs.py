"""From a row of the catalog to the asset that the Dagster pages show. Pure: no input but the arguments."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

from dagster import (
    AssetKey,
    AssetSpec,
    FreshnessPolicy,
    MetadataValue,
    TableColumn,
    TableColumnConstraints,
    TableColumnDep,
    TableColumnLineage,
    TableSchema,
)

from rosetta_dagster.assets.snapshot import CatalogSnapshot, ColumnRow, LineageRow, PipelineRow, TableRow

# Dagster keeps keys as JSON text in varchar(512).
_KEY_LENGTH_LIMIT = 512
_OWNER = "owner."
_DRAWN_TABLES = 100
"""Upstream assets that a lineage page still draws readably. With a thousand it shows an empty canvas, asks 300 times
for their state, and the page of the asset asks as often."""
_FRESHNESS_WARN = timedelta(minutes=5)
_FRESHNESS_FAIL = timedelta(minutes=15)


def pipeline_key(pipeline: str) -> AssetKey:
    """Return the key of the asset that carries a pipeline's health."""
    return AssetKey(["rosetta", pipeline])


def table_key(pipeline: str, destination: str, schema: str, table: str) -> AssetKey:
    """Return the key of a replicated table; a name that is too long for Dagster's storage ends in a hash."""
    return _bounded(["rosetta", pipeline, destination, schema, table])


def source_table_key(source: str, schema: str, table: str) -> AssetKey:
    """Return the key of a table at its source."""
    return _bounded(["source", source, schema, table])


def group_of(kind: str, name: str) -> str:
    """Return the asset group of a pipeline or source; Dagster takes letters, digits and underscores only."""
    return f"{kind}_{re.sub(r'[^A-Za-z0-9_]', '_', name)}"


def asset_specs(snapshot: CatalogSnapshot) -> list[AssetSpec]:
    """Return every asset of a catalog: source tables, replicated tables, and one health asset a pipeline.

    Two source tables that feed one target table become one asset with two upstream assets.
    """
    specs: dict[AssetKey, AssetSpec] = {}
    for pipeline in snapshot.pipelines:
        for spec in _pipeline_specs(pipeline):
            known = specs.get(spec.key)
            specs[spec.key] = spec if known is None else known.merge_attributes(deps=list(spec.deps))
    return list(specs.values())


def _pipeline_specs(pipeline: PipelineRow) -> Iterator[AssetSpec]:
    for table in pipeline.tables:
        yield source_table_spec(pipeline, table)
        yield table_spec(pipeline, table)
    for schema, name in sorted({joined for table in pipeline.tables for joined in table.joined}):
        # It may have no copy of its own; if it has one, this adds nothing to its asset.
        yield AssetSpec(
            key=source_table_key(pipeline.source, schema, name),
            group_name=group_of("source", pipeline.source),
            description=f"Table of source {pipeline.source}, joined by custom SQL.",
            kinds={"postgres", "source"},
            tags={"rosetta/source": pipeline.source, "rosetta/role": "source_table"},
        )
    yield pipeline_spec(pipeline)


def pipeline_spec(pipeline: PipelineRow) -> AssetSpec:
    """Return the asset of a pipeline: state, lag and throughput; fresh while it keeps up with its source.

    It is downstream of its tables as long as they are few enough for a picture.
    """
    destinations = sorted({table.destination for table in pipeline.tables})
    drawn = len(pipeline.tables) <= _DRAWN_TABLES
    return AssetSpec(
        key=pipeline_key(pipeline.name),
        deps=[
            table_key(pipeline.name, table.destination, table.target_schema, table.target_table)
            for table in (pipeline.tables if drawn else ())
        ],
        group_name=group_of("pipeline", pipeline.name),
        description=(
            f"Health of a pipeline: {len(pipeline.tables):,} tables of source {pipeline.source} "
            f"to {', '.join(destinations) or 'no destination yet'}.\n\n"
            "Each minute an event carries state, rows and lag. A materialization says up to which commit at the source "
            "every destination holds all changes; an observation that one of them is behind."
            + ("" if drawn else "\n\nIts lineage does not name the tables, which are too many: its group lists them.")
        ),
        kinds={"postgres", pipeline.capture_engine},
        tags={"rosetta/pipeline": pipeline.name, "rosetta/role": "pipeline"},
        metadata={"source": pipeline.source, "tables": len(pipeline.tables), "capture engine": pipeline.capture_engine},
        freshness_policy=FreshnessPolicy.time_window(fail_window=_FRESHNESS_FAIL, warn_window=_FRESHNESS_WARN),
    )


def table_spec(pipeline: PipelineRow, table: TableRow) -> AssetSpec:
    """Return the asset of a replicated table."""
    notes = [f"Copy of {table.source_schema}.{table.source_table} of source {pipeline.source}, in {table.destination}."]
    if table.filtered:
        notes.append("Only rows that pass the filter of the table sync are copied.")
    if table.custom_sql:
        notes.append("Rows are shaped by the custom SQL of the table sync.")
    if table.lookups:
        notes.append(
            f"Rows are looked up in {', '.join(table.lookups)} of the destination; a change there reaches this table "
            "with the next change of the row that is joined."
        )
    return AssetSpec(
        key=table_key(pipeline.name, table.destination, table.target_schema, table.target_table),
        deps=[
            source_table_key(pipeline.source, schema, name)
            for schema, name in ((table.source_schema, table.source_table), *table.joined)
        ],
        group_name=group_of("pipeline", pipeline.name),
        description="\n\n".join(notes),
        # In the graph, copies of one table in two destinations differ by nothing else.
        kinds={table.destination_type, table.destination},
        owners=owners_of(table.tags),
        tags={
            "rosetta/pipeline": pipeline.name,
            "rosetta/destination": table.destination,
            "rosetta/role": "table",
            **{f"tag/{tag}": "" for tag in table.tags},
        },
        metadata=_table_metadata(
            table.destination_database, table.target_schema, table.target_table, target_columns(table)
        )
        | _column_lineage(pipeline, table),
    )


def target_columns(table: TableRow) -> Sequence[ColumnRow | LineageRow]:
    """Return the columns of a target as far as they are known: types of custom SQL's results are not."""
    if table.custom_sql:
        return ()
    return table.lineage or table.columns


def _column_lineage(pipeline: PipelineRow, table: TableRow) -> dict[str, MetadataValue | str]:
    """Return which columns of the source tables' assets each column of a target comes from."""
    columns = {
        column.name: [
            TableColumnDep(source_table_key(pipeline.source, schema, name), source)
            for schema, name, source in column.sources
        ]
        for column in table.lineage
        if column.sources
    }
    return {"dagster/column_lineage": MetadataValue.column_lineage(TableColumnLineage(columns))} if columns else {}


def owners_of(tags: Iterable[str]) -> list[str]:
    """Return the owners that smart tags name: `owner.finance` is the team finance."""
    return [f"team:{tag.removeprefix(_OWNER)}" for tag in tags if tag.startswith(_OWNER) and tag != _OWNER]


def source_table_spec(pipeline: PipelineRow, table: TableRow) -> AssetSpec:
    """Return the asset of a table at its source, the upstream of every copy."""
    return AssetSpec(
        key=source_table_key(pipeline.source, table.source_schema, table.source_table),
        group_name=group_of("source", pipeline.source),
        description=f"Table of source {pipeline.source}, read through its replication slot.",
        kinds={"postgres", "source"},
        tags={"rosetta/source": pipeline.source, "rosetta/role": "source_table"},
        metadata=_table_metadata(pipeline.source_database, table.source_schema, table.source_table, table.columns),
    )


def _table_metadata(
    database: str, schema: str, table: str, columns: Sequence[ColumnRow | LineageRow]
) -> dict[str, MetadataValue | str]:
    metadata: dict[str, MetadataValue | str] = {"dagster/table_name": f"{database}.{schema}.{table}"}
    if columns:
        metadata["dagster/column_schema"] = MetadataValue.table_schema(
            TableSchema(
                columns=[
                    TableColumn(
                        name=column.name,
                        type=column.type_text or "?",
                        description="part of the key" if column.in_key else None,
                        constraints=TableColumnConstraints(nullable=not column.not_null),
                    )
                    for column in columns
                ]
            )
        )
    return metadata


def _bounded(path: list[str]) -> AssetKey:
    key = AssetKey(path)
    if len(key.to_string()) <= _KEY_LENGTH_LIMIT:
        return key
    digest = hashlib.sha256(key.to_string().encode()).hexdigest()[:12]
    parts = [part[: _part_limit(len(path))] for part in path]
    return AssetKey([*parts[:-1], f"{parts[-1]}~{digest}"])


def _part_limit(parts: int) -> int:
    # Six characters a letter outside ASCII in JSON; quotes, commas and the hash take about 8 a part.
    return (_KEY_LENGTH_LIMIT // parts - 20) // 6
