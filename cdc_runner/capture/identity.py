"""Which server a source is, and which history of it: positions of one history mean nothing in another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import psycopg2
import psycopg2.extras

from cdc_runner.connections import classify, connect
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position, format_lsn, parse_lsn
from cdc_runner.spec import PostgresAddress


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Which server and which history of it a connection reaches.

    Attributes:
        system: the server's system identifier.
        timeline: its timeline.
        began: LSN where the timeline left the one before, 0 for the first and where it was not asked for: two restores
            of one backup may both be on a timeline 2.
    """

    system: str
    timeline: int
    began: int = 0

    def __str__(self) -> str:
        return f"{self.system}/{self.timeline}/{self.began:x}"

    @classmethod
    def parse(cls, text: str) -> ServerIdentity:
        """Return the identity of its text form.

        Raises:
            ValueError: the text is no identity.
        """
        system, timeline, began = text.split("/")
        return cls(system, int(timeline), int(began, 16))


@dataclass(frozen=True, slots=True)
class ServerHistory:
    """A server as it is now.

    Attributes:
        identity: its system and its timeline.
        ends: where each earlier timeline of it ended, as LSN.
    """

    identity: ServerIdentity
    ends: Mapping[int, int]


def read_history(address: PostgresAddress) -> ServerHistory:
    """Ask a server who it is and where it comes from.

    Raises:
        RosettaError: a source kind.
    """
    connection = connect(
        address,
        application_name="rosetta identity",
        connection_factory=psycopg2.extras.LogicalReplicationConnection,
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute("IDENTIFY_SYSTEM")
            row = cursor.fetchone()
            assert row is not None, "IDENTIFY_SYSTEM returns a row"
            identity = ServerIdentity(str(row[0]), int(row[1]))
            if identity.timeline == 1:
                return ServerHistory(identity, {})
            cursor.execute(f"TIMELINE_HISTORY {identity.timeline}")
            row = cursor.fetchone()
            assert row is not None, "TIMELINE_HISTORY returns a row"
            # Which type the content has differs between servers.
            content = row[1] if isinstance(row[1], str) else bytes(row[1]).decode("utf-8", "replace")
            ends = parse_history(content)
            return ServerHistory(replace(identity, began=max(ends.values(), default=0)), ends)
    except psycopg2.Error as error:
        raise classify(error, "source") from error
    finally:
        connection.close()


def parse_history(content: str) -> dict[int, int]:
    """Return where each timeline of a history file ended, as LSN."""
    ends: dict[int, int] = {}
    for line in content.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0].isdigit():
            ends[int(fields[0])] = parse_lsn(fields[1])
    return ends


def check_same_history(known: ServerIdentity, now: ServerHistory, positions: Iterable[Position]) -> None:
    """Make sure that positions reached in one history of a source are part of its present one.

    Raises:
        RosettaError: SLOT_AHEAD, the source is another server, or was restored or failed over to a point before one of
            the positions: what a destination holds beyond that point never happened there.
    """
    if known.system != now.identity.system:
        raise RosettaError(
            ErrorKind.SLOT_AHEAD,
            f"the source is another server now (system {now.identity.system}, before {known.system}): "
            "positions of one mean nothing on the other",
        )
    if known == now.identity:
        return
    end = now.ends.get(known.timeline)
    if end is None or known.began != max((one for line, one in now.ends.items() if line < known.timeline), default=0):
        raise RosettaError(
            ErrorKind.SLOT_AHEAD,
            f"the source is on timeline {now.identity.timeline}, which does not come from timeline {known.timeline} "
            "as it was: it was restored to another point",
        )
    furthest = max(positions, default=None)
    if furthest is not None and furthest.lsn > end:
        raise RosettaError(
            ErrorKind.SLOT_AHEAD,
            f"the source left timeline {known.timeline} at {format_lsn(end)}, but a destination is at "
            f"{format_lsn(furthest.lsn)}: what is beyond was lost at the source by a failover or a restore",
        )
