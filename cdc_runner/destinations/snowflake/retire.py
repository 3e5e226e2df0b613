"""Remove what was made beside a target that is not fed any more, when everything that landed for it is merged."""

from __future__ import annotations

from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.snowflake.session import Session
from cdc_runner.errors import ErrorKind, RosettaError

RETIRED = "RETIRED"
"""In place of the digest of a table's task: there is none, nor anything else beside the target."""


def settle(session: Session, known: TableState) -> None:
    """Merge what has landed for a target that is loaded; nobody writes to its landing table.

    Raises:
        RosettaError: DESTINATION_CONFLICT when rows stay that are not merged, and destination kinds.
    """
    objects, sync = session.objects, known.sync
    if not known.ready or not objects.columns(objects.names(sync).landing):
        return
    objects.merge(sync, objects.made_shape(known.schema, sync))
    left = objects.unmerged(sync)
    if left:
        name = objects.names(sync).landing.name
        raise RosettaError(
            ErrorKind.DESTINATION_CONFLICT, f"landing table {name} has {left} rows that are not merged: it is kept"
        )


def retire(session: Session, known: TableState) -> list[str]:
    """Drop task, stream and landing table of a target, after a merge, and return their names.

    What is kept of the target says from now on that it is to be loaded before it is fed again. What landed for a table
    whose load was not complete is dropped: only another load makes its target right.

    Raises:
        RosettaError: nothing that is not merged was dropped; it can be repeated.
    """
    settle(session, known)
    target = session.objects.names(known.sync).target
    # First: a table that is ready is taken to have everything.
    session.store.mark_ready(target, False)
    dropped = session.objects.drop(known.sync)
    session.store.note_task(target, RETIRED)
    return dropped
