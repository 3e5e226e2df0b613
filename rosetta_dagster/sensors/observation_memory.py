"""What `replication_monitor` has told, kept beside its cursor.

The page of a sensor shows the whole cursor, pages of it before the ticks, and every tick stores it: with a thousand
tables 52 KB a minute. The cursor is therefore the number of a look, and what was told then lies in Dagster's key-value
storage. There are two places, used in turn: when Dagster cannot store a tick's events, the cursor stays what it was,
and so does what it names.
"""

from __future__ import annotations

import re

from dagster import DagsterInstance

from rosetta_dagster.sensors.observation_plan import Memory

_LOOK = re.compile(r"look (\d+)")


def recall(instance: DagsterInstance, cursor: str | None) -> Memory:
    """Return what was told up to the look that a cursor names; nothing when that is not known, so that all is told."""
    look = _number(cursor)
    if look is None:
        # Of a version that kept everything in the cursor, or the first look of all.
        return Memory.from_text(cursor)
    place = _place(look)
    found = instance.daemon_cursor_storage.get_cursor_values({place}).get(place, "")
    name, _, text = found.partition("\n")
    return Memory.from_text(text if name == cursor else None)


def remember(instance: DagsterInstance, cursor: str | None, memory: Memory) -> str:
    """Keep what was told up to the look after the one that a cursor names, and return its cursor."""
    look = (_number(cursor) or 0) + 1
    name = f"look {look}"
    instance.daemon_cursor_storage.set_cursor_values({_place(look): f"{name}\n{memory.to_text()}"})
    return name


def _number(cursor: str | None) -> int | None:
    found = _LOOK.fullmatch(cursor or "")
    return int(found[1]) if found else None


def _place(look: int) -> str:
    return f"rosetta/replication_monitor/{look % 2}"
