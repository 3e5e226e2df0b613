"""The copy-both mode of a psycopg2 connection, driven through libpq itself.

psycopg2's own replication cursor reports the server's WAL end as flushed as soon as the last message was confirmed, and
cannot be kept from it. That moves the slot past the position that destinations have stored, which the next start takes
for lost changes. So only the connection and START_REPLICATION are psycopg2's; messages and status go through the libpq
that it has loaded. The calls keep the interpreter's lock (none of them waits), so that threads do not meet in libpq.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import psycopg2.extensions

from cdc_runner.connections import classify_fields
from cdc_runner.errors import ErrorKind, RosettaError

# A look-up in psycopg2's module finds the functions of the libpq that this module is linked with, wherever that is.
_LIBRARY = ctypes.PyDLL(importlib.import_module("psycopg2._psycopg").__file__)

DATA_HEADER = 25
"""Bytes before a message of the output plugin: `w`, WAL start, WAL end, time."""

KEEPALIVE_LENGTH = 18
"""Length of a keepalive: `k`, WAL end, time, whether a reply is wanted. A message of the plugin is longer than 25."""


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = getattr(_LIBRARY, name)
    function.argtypes, function.restype = arguments, result
    return function  # type: ignore[no-any-return]  # ctypes has no better type


_pointer, _int, _text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
_get_copy_data = _function("PQgetCopyData", _int, _pointer, _pointer, _int)
_put_copy_data = _function("PQputCopyData", _int, _pointer, _text, _int)
_consume_input = _function("PQconsumeInput", _int, _pointer)
_flush = _function("PQflush", _int, _pointer)
_set_nonblocking = _function("PQsetnonblocking", _int, _pointer, _int)
_free_memory = _function("PQfreemem", None, _pointer)
_get_result = _function("PQgetResult", _pointer, _pointer)
_clear = _function("PQclear", None, _pointer)
_error_field = _function("PQresultErrorField", _text, _pointer, _int)
_error_message = _function("PQerrorMessage", _text, _pointer)


class CopyBoth:
    """A connection in copy-both mode, after START_REPLICATION. Not to be used after the connection is closed."""

    def __init__(self, connection: psycopg2.extensions.connection) -> None:
        self._connection = connection
        pointer = connection.pgconn_ptr
        assert pointer, "an open connection has its libpq object"
        self._address: int = pointer
        self._buffer = ctypes.c_void_p()
        _set_nonblocking(self._address, 1)

    def read(self, max_messages: int, max_bytes: int) -> tuple[list[bytes], int]:
        """Return what has arrived, keepalives whole and of other messages what the plugin wrote, and its size.

        Nothing is waited for. A result as large as a limit may mean that there is more.

        Raises:
            RosettaError: the server ended the stream, or the connection is lost.
        """
        address, buffer, string_at = self._address, self._buffer, ctypes.string_at
        reference = ctypes.byref(buffer)
        messages: list[bytes] = []
        size = 0
        fresh = False
        while len(messages) < max_messages and size < max_bytes:
            length = _get_copy_data(address, reference, 1)
            if length > 0:
                data: int = buffer.value  # type: ignore[assignment]  # libpq has set it
                if length > DATA_HEADER:
                    messages.append(string_at(data + DATA_HEADER, length - DATA_HEADER))
                else:
                    messages.append(string_at(data, length))
                _free_memory(data)
                size += length
                fresh = False
            elif length == 0:
                if fresh:
                    break
                if not _consume_input(address):
                    raise self._lost()
                fresh = True
            elif messages:
                break
            else:
                raise self._ended()
        return messages, size

    def write(self, message: bytes) -> None:
        """Send a message as soon as the network takes it; one that finds no room is dropped.

        Raises:
            RosettaError: the connection is lost.
        """
        if _put_copy_data(self._address, message, len(message)) < 0 or _flush(self._address) < 0:
            raise self._lost()

    def _ended(self) -> RosettaError:
        result = _get_result(self._address)
        if not result:
            return self._lost()
        try:
            state = (_error_field(result, ord("C")) or b"").decode()
            primary = (_error_field(result, ord("M")) or b"").decode(errors="replace")
        finally:
            _clear(result)
        if not state:
            return RosettaError(ErrorKind.SOURCE_UNAVAILABLE, "source: the server ended the change stream")
        return classify_fields(state, primary, "source")

    def _lost(self) -> RosettaError:
        text = " ".join((_error_message(self._address) or b"").decode(errors="replace").split())
        return RosettaError(ErrorKind.SOURCE_UNAVAILABLE, f"source: {text[:500] or 'the connection is lost'}")
