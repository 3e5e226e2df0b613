"""Ticks that could do nothing: one that failed as a whole, and one that found its forerunner still at work."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator

from dagster import SkipReason

from cdc_runner.errors import RosettaError
from rosetta_dagster.resources.catalog import catalog_session, record_job

_at_work: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def failed_tick(job: str, error: RosettaError) -> SkipReason:
    """Note a tick that was worth nothing, so that three in a row are told, and return its status line.

    While the config database is away there is nowhere to note it; the work then counts as late once that is back.
    """
    with contextlib.suppress(RosettaError), catalog_session() as session:
        record_job(session, job, str(error))
    return SkipReason(str(error))


@contextlib.contextmanager
def alone(job: str) -> Iterator[bool]:
    """Yield whether no earlier tick of this work is still going on in this process.

    The daemon gives a tick up after a minute and starts the next one, while the code server goes on with the first:
    two of them would wait for each other's rows.
    """
    lock = _at_work[job]
    free = lock.acquire(blocking=False)
    try:
        yield free
    finally:
        if free:
            lock.release()


STILL_AT_WORK = "the tick before is still at work: this machine, or a server that is asked, is too slow"
