"""The table syncs of a destination that have custom SQL, ready to be computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager

from cdc_runner.capture.inspect import matches
from cdc_runner.destinations.postgres.lookups import lookup_session
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.shaping.custom_source import CustomSource, Masks
from cdc_runner.shaping.custom_sync import CustomShaper
from cdc_runner.shaping.mask import Masker, masker
from cdc_runner.shaping.net import Lookups
from cdc_runner.spec import DestinationSpec, MaskKind, PipelineSpec, ResolvedSync

_STRICTEST = (MaskKind.NULL, MaskKind.CONSTANT, MaskKind.HASH, MaskKind.TRUNCATE)


def custom_shapers(
    spec: PipelineSpec,
    destination: DestinationSpec,
    syncs: Sequence[ResolvedSync],
    present: Mapping[TableId, TableSchema],
    written: Collection[TableId],
) -> dict[TableId, CustomShaper]:
    """Return what computes the rows of the syncs with custom SQL, by target; close each.

    Args:
        spec: the pipeline.
        destination: of PostgreSQL.
        syncs: of the destination.
        present: the tables of the source that are captured.
        written: all targets of the pipeline at the destination.

    Raises:
        RosettaError: CONFIG_INVALID, naming the target, when a statement does not fit the source's tables, or those of
            the destination in which it looks rows up; DESTINATION_PERMISSION when it may not read these.
    """

    def lookups() -> AbstractContextManager[Lookups]:
        return lookup_session(destination.address, spec.identity)

    found: dict[TableId, CustomShaper] = {}
    try:
        for sync in syncs:
            if sync.shape.custom_sql is not None:
                source = CustomSource(spec.source.address, spec.identity)
                masks = sync_masks(sync, present)
                found[sync.target] = CustomShaper(sync, source, present, masks, spec.settings, lookups, written)
    except BaseException:
        for one in found.values():
            one.close()
        raise
    return found


def sync_masks(sync: ResolvedSync, present: Mapping[TableId, TableSchema]) -> Masks:
    """Return what hides columns from a sync's SQL: the strictest mask that any sync has for a column."""
    key = None if sync.mask_key is None else sync.mask_key.get_secret_value().encode()
    chosen: dict[tuple[TableId, str], Masker] = {}
    for name, column, mask in sorted(sync.shape.table_masks, key=lambda one: _STRICTEST.index(one[2].kind)):
        for table, schema in present.items():
            if matches(table, [name]) and column in schema.column_names:
                chosen.setdefault((table, column), masker(mask, schema.column(column), key))
    return Masks(chosen)
