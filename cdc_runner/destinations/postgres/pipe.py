"""Rows from one server to another by COPY, without passing through memory as a whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import psycopg2
import psycopg2.extensions

from cdc_runner.connections import classify
from cdc_runner.shaping.mask import CopyMasker, MaskedFile

_PIPE_BYTES = 1 << 20


def copy_across(
    reader: psycopg2.extensions.connection,
    copy_out: str,
    writer: psycopg2.extensions.cursor,
    copy_in: str,
    mask: CopyMasker | None = None,
    gate: Callable[[int], None] | None = None,
) -> None:
    """Copy from one server to the other through a pipe; both directions run at once.

    Args:
        reader: session of the source.
        copy_out: a `COPY … TO STDOUT`.
        writer: of the destination.
        copy_in: a `COPY … FROM STDIN`.
        mask: masks the rows on their way.
        gate: told of the bytes of each part of masked rows; may wait, and may raise to end the copy.
    """
    out, into = os.pipe()
    failure: list[BaseException] = []

    def send() -> None:
        try:
            with os.fdopen(into, "wb", buffering=_PIPE_BYTES) as file, reader.cursor() as cursor:
                cursor.copy_expert(copy_out, file if mask is None else MaskedFile(file, mask), size=_PIPE_BYTES)
                if mask is not None:
                    mask.finish()
        except BaseException as error:
            failure.append(classify(error, "source") if isinstance(error, psycopg2.Error) else error)

    thread = threading.Thread(target=send, name="load-read", daemon=True)
    thread.start()
    try:
        with os.fdopen(out, "rb", buffering=_PIPE_BYTES) as file:
            # An end of the pipe after a failed read would look like the end of the data.
            writer.copy_expert(copy_in, _Checked(file, thread, failure, gate), size=1 << 18)
    finally:
        thread.join()
    if failure:
        raise failure[0]


class _Checked:
    """A file that raises at its end when its writer failed."""

    def __init__(
        self,
        file: object,
        thread: threading.Thread,
        failure: list[BaseException],
        gate: Callable[[int], None] | None,
    ) -> None:
        self._read = file.read  # type: ignore[attr-defined]  # any binary file
        self._thread = thread
        self._failure = failure
        self._gate = gate

    def readline(self, size: int = -1) -> bytes:
        """Not used by COPY; part of what a readable file is."""
        raise NotImplementedError

    def read(self, size: int = -1) -> bytes:
        """Read, and at the end make sure that it is the end."""
        data: bytes = self._read(size)
        if self._gate is not None:
            self._gate(len(data))
        if not data:
            self._thread.join()
            if self._failure:
                raise self._failure[0]
        return data
