"""Pipelines with a destination behind a link that can be cut, whose batches are parked meanwhile."""

from __future__ import annotations

from tests.support.pipelines import PipelineHarness
from tests.support.proxy import TcpProxy
from tests.support.waiting import wait_for


def begin(
    pipeline: PipelineHarness,
    setup: str,
    link: TcpProxy,
    redis_url: str,
    *,
    behind_link: str = "target",
    syncs: list[dict[str, object]] | None = None,
    environment: dict[str, str] | None = None,
    **settings: object,
) -> None:
    """Start a pipeline that parks after a second, one of its destinations behind a link, and wait for its load."""
    pipeline.ports[behind_link] = link.port
    pipeline.source.execute(setup)
    pipeline.configure(syncs=syncs, settings={"park_after_seconds": 1, "heartbeat_seconds": 1, **settings})
    pipeline.environment |= {"REDIS_URL": redis_url, **(environment or {})}
    pipeline.start()
    pipeline.wait_caught_up()
    # The load alone may be at that position: what comes now is of the stream.
    pipeline.wait_caught_up()


def parked(pipeline: PipelineHarness) -> tuple[int, int]:
    """Return how many batches and bytes are parked, as the process has told."""
    state = "SELECT coalesce(max(parked_batches), 0), coalesce(max(parked_bytes), 0) FROM dead_letter_queues"
    ((batches, size),) = pipeline.config.execute(state)
    return int(batches), int(size)


def confirmed(pipeline: PipelineHarness) -> int:
    """Return up to where the slot was released."""
    rows = pipeline.source.execute(
        "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE database = %s AND NOT temporary",
        (pipeline.source.name,),
    )
    return int(rows[0][0])


def cut_off(pipeline: PipelineHarness, link: TcpProxy, target: str = "target") -> int:
    """Let the destination be away, wait until batches are parked, and return the position at which it stands."""
    link.refuse()
    link.reset()
    wait_for(lambda: parked(pipeline)[0] > 2, 60, "batches to be parked")
    return pipeline.position(target)


def wait_passed(pipeline: PipelineHarness) -> None:
    """Wait until the slot has passed what is committed now, which for a destination that is away means: parked."""
    # Something must come behind it: a heartbeat does.
    (now,) = pipeline.source.execute("SELECT (pg_current_wal_lsn() - '0/0')::bigint")[0]
    wait_for(lambda: confirmed(pipeline) >= now, 60, "the slot to be released")
