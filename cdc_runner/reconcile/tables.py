"""Which tables of a destination are compared, and their comparison one after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from cdc_runner.capture.inspect import matches, read_tables
from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres import state
from cdc_runner.destinations.postgres.target_table import read_target
from cdc_runner.destinations.postgres.type_names import TypePlaces
from cdc_runner.reconcile.compare import Comparison, Subject
from cdc_runner.reconcile.fenced import Fenced
from cdc_runner.reconcile.lake import compare_lake
from cdc_runner.reconcile.plan import NotComparable, Rules
from cdc_runner.reconcile.result import TableOutcome, TableResult
from cdc_runner.reconcile.shape import Outdated, rules_of
from cdc_runner.schema import TableId, TableSchema
from cdc_runner.spec import DestinationSpec

Selection = Callable[[DestinationSpec, TableState], bool]
"""Tells whether a target table is to be compared."""


def by_patterns(patterns: Sequence[str]) -> Selection:
    """Return a selection by patterns `schema.table` of source or target; none selects everything."""
    return lambda _, one: not patterns or matches(one.sync.source, patterns) or matches(one.sync.target, patterns)


def by_targets(targets: Collection[tuple[int, TableId]]) -> Selection:
    """Return a selection of target tables by pipeline destination and name."""
    return lambda destination, one: (destination.id, one.sync.target) in targets


def compare_destination(
    pipeline: str,
    fence: Fenced,
    destination: DestinationSpec,
    selected: Selection,
    in_place_of: Mapping[TableId, TableId] | None = None,
) -> Iterator[TableResult]:
    """Yield what each selected table of a destination has differently at the fence.

    Args:
        pipeline: its identity.
        fence: both sides.
        destination: whose tables.
        selected: which of them.
        in_place_of: tables that are looked at in place of targets, by target.
    """
    pending = fence.pending.get(destination.id, frozenset())

    def known(one: TableState, present: TableSchema | None) -> TableResult | Rules:
        return _without_reading(fence.lsn, pending, destination, one, present)

    if destination.id in fence.lakes:
        held = fence.lakes[destination.id]
        yield from compare_lake(fence.source, held, destination, lambda one: selected(destination, one), known)
        return
    source, target = fence.source, fence.targets[destination.id]
    with target.keeper.cursor() as cursor:
        states = [one for one in state.read_tables(cursor, pipeline) if selected(destination, one)]
    places = TypePlaces(lambda schema: destination.schema or schema)
    places.learn(target.keeper)
    present = {one.table: one for one in read_tables(source.keeper, tables={one.sync.source for one in states})}
    comparison = Comparison(source, target)
    for one in states:
        rules = known(one, present.get(one.sync.source))
        if isinstance(rules, TableResult):
            yield rules
            continue
        result = TableResult(destination.id, destination.name, one.sync.source, one.sync.target, TableOutcome.FAILED)
        there = read_target(target.keeper, (in_place_of or {}).get(one.sync.target, one.sync.target))
        yield comparison.compare(Subject(result, present.get(one.sync.source), one, there, places, rules))


def _without_reading(
    lsn: int, pending: frozenset[TableId], destination: DestinationSpec, one: TableState, present: TableSchema | None
) -> TableResult | Rules:
    """Return the outcome of a table that is not to be read, else how its target is meant to differ."""
    result = TableResult(destination.id, destination.name, one.sync.source, one.sync.target, TableOutcome.BEHIND)
    try:
        rules = rules_of(destination, one, present)
    except Outdated as reason:
        return replace(result, reason=str(reason))
    except NotComparable as reason:
        return replace(result, outcome=TableOutcome.NOT_COMPARABLE, reason=str(reason))
    if rules.skipped is not None:
        return replace(result, outcome=TableOutcome.SKIPPED, reason=rules.skipped)
    if not one.ready and present is None:
        return replace(result, outcome=TableOutcome.SKIPPED, reason="the source has dropped the table")
    if not one.ready or one.joining:
        return replace(result, reason="it is being loaded")
    if one.sync.source in pending:
        return replace(result, reason="changes of it wait in the slot: start the pipeline")
    if one.snapshot.lsn > lsn:
        return replace(result, reason="it was loaded at a later position than that of the comparison")
    return rules
