"""Which changes of a batch go to which table syncs of a destination, in which form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from cdc_runner.destinations.base import Destination
from cdc_runner.pipeline.batch import ShapedBatch
from cdc_runner.position import Position
from cdc_runner.schema import TableId
from cdc_runner.shaping.net import NetChange, NetKind
from cdc_runner.shaping.sync import TableShaper
from cdc_runner.spec import ResolvedSync


class Routing:
    """The table syncs of one destination by the source tables that they read."""

    def __init__(
        self, destination: Destination, syncs: Sequence[ResolvedSync], shapers: Mapping[TableId, TableShaper]
    ) -> None:
        """Args:
        destination: opened and prepared.
        syncs: what it takes.
        shapers: by target table, for the syncs that are no plain copies.
        """
        self._all_events = destination.takes_events
        self._shapers = shapers
        self._by_source: dict[TableId, list[tuple[ResolvedSync, Position]]] = {}
        snapshots = {one.sync.target: one.snapshot for one in destination.table_states()}
        for sync in syncs:
            shaper = shapers.get(sync.target)
            for table in {sync.source} if shaper is None else shaper.reads:
                self._by_source.setdefault(table, []).append((sync, snapshots[sync.target]))

    @property
    def takes_events(self) -> frozenset[bool]:
        """Whether every event is needed, net changes, or both."""
        if self._all_events:
            return frozenset({True})
        return frozenset({False} | {shaper.takes_events for shaper in self._shapers.values()})

    def segments(self, batch: ShapedBatch) -> Iterator[list[tuple[ResolvedSync, NetChange]]]:
        """Yield a batch's segments, shaped."""
        for changes in self._changes(batch):
            yield [
                (sync, shaped)
                for change in changes
                for sync, snapshot in self._by_source.get(change.version.schema.table, ())
                # The rows were read at the snapshot, which holds these changes already.
                if batch.last > snapshot and self._takes(sync, change)
                for shaped in self._shaped(sync, change, batch.commit_time)
            ]

    def _changes(self, batch: ShapedBatch) -> Iterator[Sequence[NetChange]]:
        if self._all_events:
            yield from batch.event_segments()
        elif True in self.takes_events:
            for net, events in zip(batch.segments(), batch.event_segments(), strict=True):
                yield [*net, *events]
        else:
            yield from batch.segments()

    def _takes(self, sync: ResolvedSync, change: NetChange) -> bool:
        shaper = self._shapers.get(sync.target)
        events = self._all_events or (shaper is not None and shaper.takes_events)
        return events == (change.kind is NetKind.EVENTS)

    def _shaped(self, sync: ResolvedSync, change: NetChange, commit_time: float) -> Iterable[NetChange]:
        shaper = self._shapers.get(sync.target)
        return (change,) if shaper is None else shaper.shape(change, commit_time)
