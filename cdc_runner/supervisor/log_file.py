"""The log file of a pipeline process.

The process writes to the file itself, so that its last words are kept when the supervisor is gone. The file is opened
for appending, therefore it can be copied aside and emptied under the process: the next line goes to its new end.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

ROTATE_BYTES = 16 * 1024 * 1024
KEPT_FILES = 3
_TAIL_BYTES = 16 * 1024
_ERROR_CLASS = re.compile(r"^\s*(?:[a-z_][\w]*\.)*([A-Z]\w*(?:Error|Exception|Interrupt|Exit|Killed))\b", re.MULTILINE)
_FATAL = re.compile(r"^(Fatal Python error|# A fatal error has been detected|Killed|MemoryError)\b", re.MULTILINE)

_HEAP_LIMIT = re.compile(r'"heap_megabytes": (\d+)')
_HEAP_FULL = re.compile(r"^Terminating due to java\.lang\.OutOfMemoryError: Java heap space\s*\Z", re.MULTILINE)


def open_log(path: Path) -> int:
    """Return a descriptor that appends to the file; the file is for its owner only. The caller closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def rotate(path: Path, *, limit_bytes: int = ROTATE_BYTES, kept: int = KEPT_FILES) -> bool:
    """Copy a file that is larger than the limit aside and empty it; say whether that was done.

    Lines written between the copy and the cut are lost: that is the price of not passing each line through here.
    """
    try:
        if path.stat().st_size <= limit_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(kept, 1, -1):
        older = path.with_name(f"{path.name}.{number - 1}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number}"))
    shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    path.with_name(f"{path.name}.1").chmod(0o600)
    os.truncate(path, 0)
    return True


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - _TAIL_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def exhausted_heap(path: Path) -> int | None:
    """Return the limit of the JVM's heap in megabytes when the process ended because it was full, else None.

    0 when the log does not tell the limit any more.
    """
    tail = _tail(path)
    if _HEAP_FULL.search(tail) is None:
        return None
    limits = _HEAP_LIMIT.findall(tail)
    return int(limits[-1]) if limits else 0


def last_error_class(path: Path) -> str | None:
    """Return the class name of the last error in a log, without its text (which may hold anything)."""
    tail = _tail(path)
    found = _ERROR_CLASS.findall(tail)
    if found:
        return str(found[-1])
    fatal = _FATAL.findall(tail)
    return "fatal error of the interpreter or the JVM" if fatal else None
