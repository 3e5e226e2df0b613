"""Join parts of the stream into a batch of whole transactions, decoded segment by segment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cdc_runner.capture.base import ChangeBatch, Segment, TableChanges, TableVersion
from cdc_runner.capture.buffer import Part
from cdc_runner.schema import TableId


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Sizes of batches.

    Attributes:
        max_events: most events joined in one batch (one source transaction may have more).
        max_bytes: most raw bytes joined in one batch (likewise).
        memory_bytes: most raw bytes waiting in memory.
        segment_bytes: raw bytes decoded at once.
        stamped: whether rows say where they belong in the stream (`STAMPS` of `capture.base`).
    """

    max_events: int = 250_000
    max_bytes: int = 8 * 1024 * 1024
    memory_bytes: int = 16 * 1024 * 1024
    segment_bytes: int = 8 * 1024 * 1024
    stamped: bool = False


Decode = Callable[[TableVersion, Sequence[bytes]], pa.Table]
"""Makes the rows of a table version from the raw pieces of an engine."""


def assemble(parts: Sequence[Part], segment_bytes: int, decode: Decode) -> ChangeBatch:
    """Return the batch of parts that end with a complete transaction."""
    end = parts[-1].end
    assert end is not None, "a batch ends with a whole transaction"

    def segments() -> Iterator[Segment]:
        return _segments(parts, segment_bytes, decode)

    def release() -> None:
        for part in parts:
            part.release()

    return ChangeBatch(
        last=end,
        last_commit_time=parts[-1].commit_time,
        transactions=sum(part.transactions for part in parts),
        events=sum(part.events for part in parts),
        raw_bytes=sum(part.size for part in parts),
        segments=segments,
        release=release,
        numbers=b"".join(part.numbers for part in parts),
    )


def _segments(parts: Sequence[Part], segment_bytes: int, decode: Decode) -> Iterator[Segment]:
    """Yield segments of about the given size; a table has one version in each."""
    gathered: dict[TableId, tuple[TableVersion, list[bytes]]] = {}
    size = 0
    for part in parts:
        for version, payload in part.payloads:
            table = version.schema.table
            present = gathered.get(table)
            if present is not None and (present[0] is not version or size + payload.size > segment_bytes):
                segment = [_decoded(gathered, decode)]
                gathered, size = {}, 0
                # Whoever takes it is the only one to hold it.
                yield segment.pop()
            gathered.setdefault(table, (version, []))[1].append(payload.read())
            size += payload.size
    if gathered:
        segment = [_decoded(gathered, decode)]
        gathered = {}
        yield segment.pop()


def _decoded(
    gathered: dict[TableId, tuple[TableVersion, list[bytes]]],
    decode: Decode,
) -> Segment:
    return Segment([TableChanges(version, decode(version, pieces)) for version, pieces in gathered.values()])
