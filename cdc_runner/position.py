"""The position in a source's change stream: the only clock of the system."""

from __future__ import annotations

from dataclasses import dataclass


def parse_lsn(text: str) -> int:
    """Return the 64-bit number of an LSN in PostgreSQL's text form (`16/B374D848`).

    Raises:
        ValueError: the text is not an LSN.
    """
    high, separator, low = text.partition("/")
    if not separator:
        raise ValueError(f"not an LSN: {text!r}")
    return (int(high, 16) << 32) | int(low, 16)


def format_lsn(lsn: int) -> str:
    """Return an LSN in PostgreSQL's text form."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """End LSN of a transaction's commit record, and the ordinal of an event in that transaction.

    Totally ordered; both capture engines give the same positions. The fixed-width text form sorts as the
    position does, which makes it usable as an offset token.
    """

    lsn: int
    ordinal: int = 0

    def __str__(self) -> str:
        return f"{self.lsn:016x}/{self.ordinal:016x}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position of its fixed-width text form.

        Raises:
            ValueError: the text is not a position.
        """
        lsn, separator, ordinal = text.partition("/")
        if not separator:
            raise ValueError(f"not a position: {text!r}")
        return cls(int(lsn, 16), int(ordinal, 16))


ZERO = Position(0)
"""Before every change."""
