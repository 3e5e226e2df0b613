"""How the process asks the system for memory, and gives it back."""

from __future__ import annotations

import ctypes

import pyarrow as pa

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
"""Parameters of glibc's mallopt."""


def return_large_blocks() -> None:
    """Let blocks of a megabyte and more go back to the system when they are freed; does nothing without glibc.

    Batches are made of such blocks. glibc raises its threshold when it sees them freed and keeps them for later, and
    Arrow's own pool keeps them as well.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 20)
        mallopt(_ARENA_MAX, 2)
