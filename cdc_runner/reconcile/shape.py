"""What a sync's shape means for a comparison: which rows and columns of the source its target is to hold."""

from __future__ import annotations

from cdc_runner.capture.inspect import is_pattern, matches
from cdc_runner.destinations.base import TableState, target_of
from cdc_runner.errors import RosettaError
from cdc_runner.reconcile.plan import NOTHING, NotComparable, Rules
from cdc_runner.schema import TableSchema, quote_identifier, quote_literal
from cdc_runner.shaping.columns import DELETED, plan_columns
from cdc_runner.spec import PLAIN, DestinationSpec, Mask, MaskKind, SyncMode, TableShape, TableSync


class Outdated(Exception):
    """A target does not have the shape that its sync asks for (yet): nothing is known of it."""


def sync_of(destination: DestinationSpec, known: TableState) -> TableSync | None:
    """Return the sync that feeds a target; None where none names it, which makes it a plain copy or a forgotten one."""
    # A table that is named has its own sync, whatever pattern takes it too.
    for sync in sorted(destination.syncs, key=lambda one: is_pattern(one.table)):
        source = known.sync.source
        if matches(source, [sync.table]) and target_of(source, destination.schema, sync.target) == known.sync.target:
            return sync
    return None


def rules_of(destination: DestinationSpec, known: TableState, present: TableSchema | None) -> Rules:
    """Return how a target is meant to differ from its source table.

    Args:
        destination: with its syncs.
        known: what it remembers of the target.
        present: the source table at the fence; None when the source does not have it.

    Raises:
        Outdated: the target was made under another shape.
        NotComparable: the shape does not fit the source table any more.
    """
    sync = sync_of(destination, known)
    shape = PLAIN if sync is None else sync.shape
    if shape.custom_sql is not None:
        return Rules(skipped="its rows are computed by custom SQL")
    if shape.mode is SyncMode.HISTORY:
        return Rules(skipped="it keeps a history: each change is a row of its own")
    if sync is None and (known.shape or destination.syncs):
        return Rules(skipped="no sync feeds it any more")
    if known.shape != shape.fingerprint:
        raise Outdated("its filter, columns, masks or mode were changed: the pipeline loads it again")
    captured = known.captured_schema
    masked = sorted(set(captured.key) & dict(shape.masks).keys())
    if masked:
        return Rules(skipped=f"column {masked[0]} of its key is masked, so rows cannot be told by it")
    if sync is None or shape.plain or present is None:
        return Rules()
    try:
        plan = plan_columns(shape, captured, sync.mask_key)
        now = plan_columns(shape, present, sync.mask_key)
    except RosettaError as error:
        raise NotComparable(error.message) from None
    _check_identity(shape, captured, present)
    names = plan.target.stream_names[: len(plan.places)]
    masks = {name: mask for name, mask in zip(names, plan.masks, strict=True) if mask is not None}
    chosen = {present.stream_names[place] for place in now.places}
    return Rules(
        where=plan.filter,
        target_where=f"NOT t.{quote_identifier(DELETED)}" if shape.mode is SyncMode.SOFT_DELETE else None,
        origins={name: captured.stream_columns[place] for name, place in zip(names, plan.places, strict=True)},
        added=frozenset(column.name for column in plan.added),
        fixed={name: text for name, mask in masks.items() if (text := _fixed_text(mask)) is not None},
        altered={name: "a mask stands in its place" for name, mask in masks.items() if _fixed_text(mask) is None},
        left_behind=frozenset(present.stream_names) - chosen,
    )


def not_rebuildable(destination: DestinationSpec, known: TableState) -> str | None:
    """Return why a target cannot be built anew from its source and compared with it; None when it can."""
    if not known.ready or known.joining:
        return "it is being loaded"
    if not known.schema.key:
        return "it has no key by which rows could be told apart"
    sync = sync_of(destination, known)
    if sync is not None and sync.shape.mode is SyncMode.SOFT_DELETE:
        return "it keeps deleted rows, which the source does not have any more"
    try:
        return rules_of(destination, known, None).skipped
    except (Outdated, NotComparable) as reason:
        return str(reason)


def _fixed_text(mask: Mask) -> str | None:
    """Return the SQL of what a mask puts into every row; None when it depends on the value."""
    if mask.kind is MaskKind.NULL:
        return NOTHING
    return f"{quote_literal(mask.text or '')}::text" if mask.kind is MaskKind.CONSTANT else None


def _check_identity(shape: TableShape, captured: TableSchema, present: TableSchema) -> None:
    """Make sure that the columns that a shape names are those that it named when the target was made.

    Raises:
        NotComparable: a column was renamed, and another has its name.
    """
    named = {name for name, _ in (*shape.rename, *shape.masks)}
    for name in sorted(named.union(shape.filter_columns, shape.columns or (), shape.exclude)):
        if captured.column(name).number != present.column(name).number:
            raise NotComparable(
                f"column {name} is another one at the source now, and the stream has not told of it yet"
            )
