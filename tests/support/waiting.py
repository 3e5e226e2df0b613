"""The one place where tests wait: for a state, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def wait_for(condition: Callable[[], Result], timeout: float = 30.0, what: str = "the condition") -> Result:
    """Call `condition` until it gives something true, and return that.

    An AssertionError counts as "not yet", so that a condition may be written with `assert`; every other exception is
    raised at once.

    Raises:
        AssertionError: the deadline passed; names what was waited for and what was seen last.
    """
    deadline = time.monotonic() + timeout
    interval = 0.01
    while True:
        try:
            seen: object = (value := condition())
            if value:
                return value
        except AssertionError as error:
            seen = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout} s for {what}; last seen: {seen!r}")
        time.sleep(interval)
        interval = min(interval * 1.5, 0.25)
