"""Both sides of a running pipeline at one position: asks the pipeline for a fence and opens what reads there."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine

from cdc_runner.catalog import fences
from cdc_runner.catalog.database import session_scope
from cdc_runner.destinations.snowflake.held import HeldTargets
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.reconcile.session import Settings, SnapshotSessions
from cdc_runner.schema import TableId
from cdc_runner.spec import DestinationSpec, PipelineSpec, SnowflakeAddress

ANSWER_SECONDS = 30.0
"""How long the pipeline may take to set a fence: it looks twice a second and may hold its stream for 10 seconds."""
_LOOK_SECONDS = 0.05


@dataclass(slots=True)
class Fenced:
    """What reads both sides at one position.

    Attributes:
        lsn: the position.
        source: sessions of the source.
        targets: sessions of the destinations that have reached it, by pipeline destination.
        lakes: targets at Snowflake that have reached it, likewise.
        problems: why the others have not.
        pending: source tables of which changes are still to come, by pipeline destination.
        upserted_rows: rows written at the fence.
        deleted_rows: rows deleted at the fence.
    """

    lsn: int
    source: SnapshotSessions
    targets: dict[int, SnapshotSessions] = field(default_factory=dict)
    lakes: dict[int, HeldTargets] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    pending: dict[int, frozenset[TableId]] = field(default_factory=dict)
    upserted_rows: int = 0
    deleted_rows: int = 0


@contextmanager
def fenced(
    catalog: Engine,
    spec: PipelineSpec,
    destinations: Collection[DestinationSpec],
    settings: Settings,
    *,
    wait_seconds: float,
    keys: fences.Keys | None = None,
) -> Iterator[Fenced]:
    """Hold a running pipeline for a moment and give sessions that see both sides as they are there.

    The pipeline goes on before the block begins.

    Args:
        catalog: the config database.
        spec: the pipeline.
        destinations: those that are to be read.
        settings: bounds of the reading.
        wait_seconds: how long to wait for destinations that are behind.
        keys: rows to be fetched again from the source at the fence.

    Raises:
        RosettaError: the pipeline did not answer or could not set a fence, and the kinds of both sides.
    """
    with session_scope(catalog) as session:
        fence_id = fences.request(session, spec.id, keys)
    with ExitStack() as cleanup:
        try:
            state = _wait_until_set(catalog, fence_id)
            source = SnapshotSessions(spec.source.address, "source", state.source_snapshot, settings)
            cleanup.callback(source.close)
            assert state.lsn is not None, "a fence that is set has a position"
            found = Fenced(state.lsn, source)
            opening = _Opening(spec.identity, settings, found, cleanup)
            _open_targets(catalog, fence_id, destinations, wait_seconds, opening)
        finally:
            with session_scope(catalog) as session:
                fences.release(session, fence_id)
        yield found


def _look(catalog: Engine, fence_id: int) -> fences.FenceState:
    with session_scope(catalog) as session:
        state = fences.look(session, fence_id)
    if state.state == "FAILED":
        raise RosettaError(ErrorKind.RUNNER_FAILED, f"the pipeline could not set a fence: {state.error}")
    return state


def _wait_until_set(catalog: Engine, fence_id: int) -> fences.FenceState:
    deadline = time.monotonic() + ANSWER_SECONDS
    pause = threading.Event()
    while True:
        state = _look(catalog, fence_id)
        if state.state == "SET":
            return state
        if time.monotonic() > deadline:
            raise RosettaError(
                ErrorKind.RUNNER_FAILED,
                f"the pipeline did not answer within {ANSWER_SECONDS:g} s: it does not run, or is loading tables",
            )
        pause.wait(_LOOK_SECONDS)


@dataclass(frozen=True, slots=True)
class _Opening:
    """Opens what reads the destinations that answered."""

    pipeline: str
    settings: Settings
    found: Fenced
    cleanup: ExitStack

    def open(self, destination: DestinationSpec, answer: fences.Answer) -> None:
        found, identifier = self.found, destination.id
        found.upserted_rows += answer.upserted_rows
        found.deleted_rows += answer.deleted_rows
        if answer.snapshot is None:
            found.problems[identifier] = answer.error or "it could not be read at the fence"
            return
        try:
            if isinstance(destination.place, SnowflakeAddress):
                held = HeldTargets(destination.place, self.pipeline, destination.identity, found.lsn, answer.snapshot)
                self.cleanup.callback(held.close)
                found.lakes[identifier] = held
            else:
                sessions = SnapshotSessions(destination.address, "destination", answer.snapshot, self.settings)
                self.cleanup.callback(sessions.close)
                found.targets[identifier] = sessions
        except RosettaError as error:
            found.problems[identifier] = error.message


def _open_targets(
    catalog: Engine, fence_id: int, destinations: Collection[DestinationSpec], wait_seconds: float, opening: _Opening
) -> None:
    """Open sessions of each destination as it reaches the fence."""
    missing = {one.id: one for one in destinations}
    deadline = time.monotonic() + wait_seconds
    pause = threading.Event()
    while missing:
        answers = _look(catalog, fence_id).answers
        for identifier in missing.keys() & answers.keys():
            opening.open(missing.pop(identifier), answers[identifier])
        if missing and time.monotonic() > deadline:
            with session_scope(catalog) as session:
                errors = fences.errors_of(session, missing)
            for identifier in missing:
                reason = f": {errors[identifier]}" if identifier in errors else ""
                opening.found.problems[identifier] = f"it did not reach the fence within {wait_seconds:g} s{reason}"
            return
        pause.wait(_LOOK_SECONDS if missing else 0)
