"""Keeps the libraries that send from logging addresses and tokens.

httpx logs each request with its URL, urllib3 and apprise do at DEBUG, and for Telegram and Slack the URL is the secret.
While a thread sends, what these loggers say in that thread goes nowhere; warnings are kept for the one who asks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = ("httpx", "httpcore", "apprise", "urllib3", "requests", "charset_normalizer", "asyncio", "hpack", "h11")
_state = threading.local()


class _WhileSending(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        kept: list[str] | None = getattr(_state, "kept", None)
        if kept is None:
            return True
        if record.levelno >= logging.WARNING:
            kept.append(record.getMessage())
        return False


_FILTER = _WhileSending()


@contextmanager
def quiet_libraries() -> Iterator[list[str]]:
    """Silence the libraries in this thread; yield the list that their warnings are added to."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in _LIBRARIES:
            # A filter works on the records of its own logger only, so each child gets it; adding twice is one.
            logging.getLogger(name).addFilter(_FILTER)
    for name in _LIBRARIES:
        logging.getLogger(name).addFilter(_FILTER)
    before = getattr(_state, "kept", None)
    kept: list[str] = []
    _state.kept = kept
    try:
        yield kept
    finally:
        _state.kept = before
