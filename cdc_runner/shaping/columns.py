"""Which columns of a source table a target has, under which names, types and masks."""

from __future__ import annotations

from collections.abc import Collection, Container
from dataclasses import dataclass, replace

import pyarrow as pa
from pydantic import SecretStr

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position, format_lsn
from cdc_runner.schema import Column, TableSchema, quote_identifier, quote_literal
from cdc_runner.shaping.mask import CopyMasker, Masker, masker
from cdc_runner.spec import Mask, MaskKind, ResolvedSync, SyncMode, TableShape

DELETED = "_rosetta_deleted"
DELETED_AT = "_rosetta_deleted_at"
OPERATION = "_rosetta_operation"
LSN = "_rosetta_lsn"
ORDINAL = "_rosetta_ordinal"
COMMITTED_AT = "_rosetta_committed_at"
UNCHANGED = "_rosetta_unchanged"

_ADDED: dict[SyncMode, tuple[Column, ...]] = {
    SyncMode.SOFT_DELETE: (
        Column(DELETED, "boolean", "bool", type_category="B", not_null=True),
        Column(DELETED_AT, "timestamp with time zone", "timestamptz", type_category="D"),
    ),
    SyncMode.HISTORY: (
        Column(OPERATION, "text", "text", type_category="S", not_null=True),
        Column(LSN, "pg_lsn", "pg_lsn", not_null=True),
        Column(ORDINAL, "bigint", "int8", type_category="N", not_null=True),
        Column(COMMITTED_AT, "timestamp with time zone", "timestamptz", type_category="D"),
        Column(UNCHANGED, "text[]", "_text", type_category="A", element="text"),
    ),
}
_LOADED: dict[str, str] = {
    DELETED: "false",
    DELETED_AT: "NULL",
    OPERATION: "'r'",
    ORDINAL: "0",
    COMMITTED_AT: "NULL",
    UNCHANGED: "NULL",
}


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """One version of a source table, and what its target looks like under a shape.

    Attributes:
        source: the table's schema at the source.
        target: the schema that the target is made for; names and types are the target's, numbers the source's.
        places: for each stream column of the target its place among the source's; those that Rosetta adds are left out.
        maskers: likewise, None where the value goes over as it is.
        masks: likewise.
        deciding: places at the source of the columns that the filter reads.
        key_places: places at the source of the key's columns, in the key's order.
        filter: the shape's filter.
    """

    source: TableSchema
    target: TableSchema
    places: tuple[int, ...]
    maskers: tuple[Masker | None, ...]
    masks: tuple[Mask | None, ...]
    deciding: tuple[int, ...]
    key_places: tuple[int, ...]
    filter: str | None

    @property
    def added(self) -> tuple[Column, ...]:
        """The columns that Rosetta adds."""
        return self.target.stream_columns[len(self.places) :]

    def select_list(self, snapshot: Position) -> str:
        """Return what a load selects of the source's table, in the order of the target's stream columns.

        Args:
            snapshot: position of the snapshot that is read.
        """
        return ", ".join(self.select_parts(snapshot))

    def select_parts(self, snapshot: Position | None = None) -> list[str]:
        """Return the same one by one; only a history needs the position. What a mask does not need is not even read."""
        loaded = _LOADED | {LSN: quote_literal(format_lsn(snapshot.lsn if snapshot else 0))}
        names = self.source.stream_names
        parts = []
        for place, mask in zip(self.places, self.masks, strict=True):
            if mask is not None and mask.kind is MaskKind.NULL:
                parts.append("NULL")
            elif mask is not None and mask.kind is MaskKind.CONSTANT:
                parts.append(f"{quote_literal(mask.text or '')}::text")
            else:
                parts.append(quote_identifier(names[place]))
        return parts + [loaded[column.name] for column in self.added]

    def copy_masker(self) -> CopyMasker | None:
        """Return what masks the rows of a load on their way; None when nothing is left to mask."""
        needed = [
            one if mask is not None and mask.kind in (MaskKind.HASH, MaskKind.TRUNCATE) else None
            for mask, one in zip(self.masks, self.maskers, strict=True)
        ]
        return CopyMasker(needed) if any(one is not None for one in needed) else None


def column_plan(sync: ResolvedSync, schema: TableSchema) -> ColumnPlan | None:
    """Return how a sync shapes a version of its table; None for a plain copy.

    Raises:
        RosettaError: see `plan_columns`.
    """
    return None if sync.shape.plain else plan_columns(sync.shape, schema, sync.mask_key)


def shaped_marks(marks: pa.ChunkedArray, plan: ColumnPlan, *, always: bool = False) -> pa.Array | pa.ChunkedArray:
    """Return the marks of unchanged values for the target's columns."""
    if marks.null_count == len(marks):
        return marks
    shaped: list[str | None] = []
    for mark in marks.to_pylist():
        if mark is None:
            shaped.append(None)
            continue
        # A mask that does not depend on the value is known although the value is not.
        kept = "".join(
            "0" if mask is not None and mask.kind.value in ("null", "constant") else mark[place]
            for place, mask in zip(plan.places, plan.masks, strict=True)
        )
        shaped.append(kept if always or "1" in kept else None)
    return pa.array(shaped, pa.string())


def plan_columns(shape: TableShape, schema: TableSchema, mask_key: SecretStr | None) -> ColumnPlan:
    """Return how a version of a source table is shaped.

    Raises:
        RosettaError: CONFIG_INVALID, naming the table and the column: its rows are computed and not copied; the shape
            names a column that the table does not have (so a masked column that was renamed is not copied unmasked), or
            leaves out or masks what identifies a row.
    """
    if shape.custom_sql is not None:
        # Whatever copies rows must not take this for a copy.
        raise _invalid(schema, "its rows are computed by custom SQL and not copied; a reload computes them anew")
    names = schema.stream_names
    key = None if mask_key is None else mask_key.get_secret_value().encode()
    _check_names(shape, schema)
    chosen = [name for name in names if _is_chosen(shape, name)]
    renamed, masks = dict(shape.rename), dict(shape.masks)
    _check_key(schema, chosen, masks)
    if shape.mode is SyncMode.SOFT_DELETE and not schema.key:
        raise _invalid(schema, "mode soft_delete needs a key to tell rows by")
    if not chosen:
        raise _invalid(schema, "no column is left to copy")
    history = shape.mode is SyncMode.HISTORY
    touched = history or shape.columns is not None or bool(shape.exclude or shape.rename or shape.masks)
    columns = tuple(
        _target_column(column, renamed.get(column.name, column.name), masks.get(column.name))
        for column in schema.columns
        # A generated column is computed at the target from columns that may be others there, or masked.
        if (not touched if column.generated else column.name in chosen)
    )
    return ColumnPlan(
        source=schema,
        target=_target_schema(shape, schema, columns, chosen),
        places=tuple(names.index(name) for name in chosen),
        maskers=tuple(_masker_of(schema.column(name), masks.get(name), key) for name in chosen),
        masks=tuple(masks.get(name) for name in chosen),
        deciding=tuple(names.index(name) for name in shape.filter_columns),
        key_places=tuple(names.index(name) for name in schema.key),
        filter=shape.filter,
    )


def _target_schema(
    shape: TableShape, schema: TableSchema, columns: tuple[Column, ...], chosen: Collection[str]
) -> TableSchema:
    history = shape.mode is SyncMode.HISTORY
    if history:
        # Rows of former times have no value in a column that is new, whatever those of the table have.
        columns = tuple(replace(one, not_null=False, default=None, missing_value=None) for one in columns)
    columns = (*columns, *_ADDED.get(shape.mode, ()))
    names = [column.name for column in columns]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise _invalid(schema, f"two columns would be named {sorted(twice)[0]} at the target")
    if history:
        # Nothing identifies a row, and a table that was written or created anew takes nothing back.
        return replace(schema, columns=columns, key=(), primary_key=(), oid=0, filenode=0)
    renamed = dict(shape.rename)
    primary = schema.primary_key if set(schema.primary_key) <= set(chosen) else ()
    key, primary = (tuple(renamed.get(name, name) for name in one) for one in (schema.key, primary))
    return replace(schema, columns=columns, key=key, primary_key=primary)


def _is_chosen(shape: TableShape, name: str) -> bool:
    return (shape.columns is None or name in shape.columns) and name not in shape.exclude


def _check_names(shape: TableShape, schema: TableSchema) -> None:
    named = {
        "columns": shape.columns or (),
        "exclude": shape.exclude,
        "rename": [name for name, _ in shape.rename],
        "mask": [name for name, _ in shape.masks],
        "filter": shape.filter_columns,
    }
    for field, names in named.items():
        for name in names:
            if name not in schema.stream_names:
                other = " that the change stream carries" if name in schema.column_names else ""
                raise _invalid(schema, f"{field} names {name}, which is no column of the table{other}")
    for name in [*(one for one, _ in shape.rename), *(one for one, _ in shape.masks)]:
        if not _is_chosen(shape, name):
            raise _invalid(schema, f"column {name} is renamed or masked, and left out")


def _check_key(schema: TableSchema, chosen: Container[str], masks: dict[str, Mask]) -> None:
    for name in schema.key:
        if name not in chosen:
            raise _invalid(schema, f"column {name} identifies the rows and cannot be left out")
        if name in masks and masks[name].kind is not MaskKind.HASH:
            raise _invalid(schema, f"column {name} identifies the rows and can only be masked by hash")


def _target_column(column: Column, name: str, mask: Mask | None) -> Column:
    if mask is None:
        return replace(column, name=name)
    if mask.kind is MaskKind.NULL:
        return replace(column, name=name, not_null=False, default=None, missing_value=None)
    # The default and the missing value are values of rows, too.
    return Column(name, "text", "text", type_category="S", not_null=column.not_null, number=column.number)


def _masker_of(column: Column, mask: Mask | None, key: bytes | None) -> Masker | None:
    return None if mask is None else masker(mask, column, key)


def _invalid(schema: TableSchema, reason: str) -> RosettaError:
    return RosettaError(ErrorKind.CONFIG_INVALID, f"table {schema.table}: {reason}")
