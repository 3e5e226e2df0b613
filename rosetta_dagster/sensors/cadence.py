"""How often Dagster looks at a sensor."""

from __future__ import annotations


def interval_for(wanted_seconds: int) -> int:
    """Return the `minimum_interval_seconds` that gives a tick every `wanted_seconds` (5 s at the least).

    The daemon wakes every 5 s and starts a sensor when at least its interval has passed: a sensor with an interval of
    10 that was looked at after 9.9 s waits for the wake-up after. Measured: 10 gives a tick each 12.5 s, 9 one each
    10.1 s.
    """
    return max(1, wanted_seconds - 1)
