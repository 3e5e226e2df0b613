"""Numbers in the tables of events as a person reads them; those that Dagster plots stay numbers."""

from __future__ import annotations

Cell = str | int | float | bool


def readable(value: Cell) -> Cell:
    """Return a cell with separators in a number from a thousand on, and one digit behind the point.

    A bool, a text and a small whole number stay as they are.
    """
    if isinstance(value, bool | str):
        return value
    shown = value if isinstance(value, int) else round(value, 1)
    return f"{shown:,}" if abs(shown) >= 1000 else shown
