"""Which tables of a destination are compared, and their comparison one after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from cdc_runner.capture.inspect import matches, read_tables
from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres import state
from cdc_runner.destinations.postgres.target_table import read_target
from cdc_runner.destinations.postgres.type_names import TypePlaces
from cdc_runner.reconcile.compare import Comparison, Subject
from cdc_runner.reconcile.fenced import Fenced
from cdc_runner.reconcile.plan import NotComparable
from cdc_runner.reconcile.result import TableOutcome, TableResult
from cdc_runner.reconcile.shape import Outdated, rules_of
from cdc_runner.schema import TableId
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
    pipeline: str, fence: Fenced, destination: DestinationSpec, selected: Selection
) -> Iterator[TableResult]:
    """Yield what each selected table of a destination has differently at the fence."""
    source, target = fence.source, fence.targets[destination.id]
    pending = fence.pending.get(destination.id, frozenset())
    with target.keeper.cursor() as cursor:
        known = [one for one in state.read_tables(cursor, pipeline) if selected(destination, one)]
    places = TypePlaces(lambda schema: destination.schema or schema)
    places.learn(target.keeper)
    present = {one.table: one for one in read_tables(source.keeper, tables={one.sync.source for one in known})}
    comparison = Comparison(source, target)
    for one in known:
        result = TableResult(destination.id, destination.name, one.sync.source, one.sync.target, TableOutcome.BEHIND)
        try:
            rules = rules_of(destination, one, present.get(one.sync.source))
        except Outdated as reason:
            yield replace(result, reason=str(reason))
            continue
        except NotComparable as reason:
            yield replace(result, outcome=TableOutcome.NOT_COMPARABLE, reason=str(reason))
            continue
        if rules.skipped is not None:
            yield replace(result, outcome=TableOutcome.SKIPPED, reason=rules.skipped)
        elif not one.ready:
            yield replace(result, reason="it is being loaded")
        elif one.sync.source in pending:
            yield replace(result, reason="changes of it wait in the slot: start the pipeline")
        elif one.snapshot.lsn > fence.lsn:
            yield replace(result, reason="it was loaded at a later position than that of the comparison")
        else:
            there = read_target(target.keeper, one.sync.target)
            yield comparison.compare(Subject(result, present.get(one.sync.source), one, there, places, rules))
