"""Checks of the dead-letter queue: Redis configured, reachable, and keeping what it is given."""

from __future__ import annotations

from cdc_runner.catalog.environment import read_environment
from cdc_runner.dead_letter.store import LetterStore
from cdc_runner.doctor.finding import Findings
from cdc_runner.errors import RosettaError

_DURABLE = (
    "Set appendonly yes and maxmemory-policy noeviction in redis.conf; until then a row that a destination refuses "
    "holds that destination back."
)


def check_dead_letter_queue(found: Findings) -> None:
    """Check the Redis of REDIS_URL, as this process has it."""
    store = LetterStore(read_environment().redis_url)
    if not store.configured:
        found.warning(
            "dead_letter_queue",
            "REDIS_URL is not set: a row that a destination refuses would hold that destination back",
            "Set REDIS_URL for the runner, to a Redis server with appendonly yes and maxmemory-policy noeviction.",
        )
        return
    try:
        durability = store.durability()
    except RosettaError as error:
        found.error("dead_letter_queue", error.message, error.policy.solution)
        return
    finally:
        store.close()
    if durability.problems:
        found.error("dead_letter_queue", f"Redis is not durable: {'; '.join(durability.problems)}", _DURABLE)
    else:
        found.ok("dead_letter_queue", f"Redis {durability.version} at {store.place} keeps what it is given")
    for warning in durability.warnings:
        found.warning("dead_letter_queue", warning, "Set a password (requirepass) and name it in REDIS_URL.")
