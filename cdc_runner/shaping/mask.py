"""Masks: what stands at the target in place of a value. Applied in the pipeline's process, so that no destination,
dead letter or log ever holds the value.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Sequence
from typing import IO

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import Column
from cdc_runner.spec import Mask, MaskKind

Masker = Callable[[str | None], str | None]


def masker(mask: Mask, column: Column, key: bytes | None) -> Masker:
    """Return the function that masks values of a column.

    Args:
        mask: what to do.
        column: the source's column; some types have two text forms, which must give one hash.
        key: of the source's hash masks; needed by HASH only.

    Raises:
        RosettaError: CONFIG_INVALID, a hash mask without a key.
    """
    canonical = _CANONICAL.get(column.type_name, _same)
    if mask.kind is MaskKind.NULL:
        return lambda _: None
    if mask.kind is MaskKind.CONSTANT:
        constant = mask.text or ""
        return lambda _: constant
    if mask.kind is MaskKind.TRUNCATE:
        length = mask.length or 0
        return lambda value: None if value is None else canonical(value)[:length]
    if key is None:
        raise RosettaError(ErrorKind.CONFIG_INVALID, "a hash mask has no key: apply the configuration file again")
    secret = key
    return lambda value: None if value is None else hmac.digest(secret, canonical(value).encode(), "sha256").hex()


def _same(value: str) -> str:
    return value


def _boolean(value: str) -> str:
    return {"t": "true", "f": "false"}.get(value, value)


_CANONICAL: dict[str, Callable[[str], str]] = {"bool": _boolean, "bpchar": lambda value: value.rstrip(" ")}
"""A cast to text writes these types in another way than the server's output function does."""


class CopyMasker:
    """Masks fields of a stream in COPY's text format, in UTF-8; give it pieces of any size, and at the end `finish`."""

    def __init__(self, maskers: Sequence[Masker | None]) -> None:
        """Args:
        maskers: one a field; None leaves the field as it is.
        """
        self._maskers = [(place, one) for place, one in enumerate(maskers) if one is not None]
        self._left = b""

    def __call__(self, data: bytes) -> bytes:
        """Return the masked form of the lines that are complete."""
        lines = (self._left + data).split(b"\n")
        self._left = lines.pop()
        return b"".join(self._line(line) for line in lines)

    def finish(self) -> None:
        """Make sure that nothing is left at the end: a COPY stream ends with a complete line.

        Raises:
            RosettaError: the stream was cut.
        """
        if self._left:
            raise RosettaError(ErrorKind.SOURCE_UNAVAILABLE, "the source's COPY ended inside a row")

    def _line(self, line: bytes) -> bytes:
        fields = line.split(b"\t")
        for place, mask in self._maskers:
            field = fields[place]
            fields[place] = copy_field(mask(None if field == b"\\N" else _unescape(field)))
        return b"\t".join(fields) + b"\n"


class MaskedFile:
    """A file that masks what is written to it."""

    def __init__(self, file: IO[bytes], mask: CopyMasker) -> None:
        """Args:
        file: gets the masked rows.
        mask: of the stream that is going to be written.
        """
        self._file = file
        self._mask = mask

    def write(self, data: bytes) -> int:
        """Write the masked form of the lines that are complete."""
        self._file.write(self._mask(data))
        return len(data)


_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_LETTERS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_SPECIAL = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _unescape(field: bytes) -> str:
    # COPY TO writes the letters above and the backslash itself, never octal or hexadecimal codes.
    return _ESCAPED.sub(lambda found: _LETTERS.get(found[1], found[1]), field).decode()


def copy_field(value: str | None) -> bytes:
    """Return a value as a field of COPY's text format."""
    return b"\\N" if value is None else value.translate(_SPECIAL).encode()
