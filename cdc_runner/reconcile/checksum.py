"""The SQL that brings rows down to counts and checksums by bucket, the same on every server.

A row falls into a bucket by the hash of its key's text; a bucket's checksum is the sum of the hashes of its rows'
texts, which depends on no order. Neither does it depend on a collation, so a bucket holds the same rows on both sides
where a range of a text key would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import psycopg2.extensions

from cdc_runner.reconcile.plan import Side

MAX_BUCKETS = 16_384
_ROWS_PER_BUCKET = 512

_PROBE = """
SELECT current_setting('server_encoding'),
       array_agg(hashtextextended(repeat('Rosetta ' || n || chr(126), n), n) ORDER BY n)::text
FROM generate_series(1, 24) n
"""


class Hashing(Protocol):
    """How texts are hashed."""

    def of(self, text: str, seed: int) -> str:
        """Return SQL of type bigint for the hash of a text."""
        ...


@dataclass(frozen=True, slots=True)
class Hash:
    """How texts are hashed.

    Attributes:
        fast: by the server's own 64-bit hash, which both servers were seen to compute alike; else by 64 bits of MD5
            over UTF-8.
    """

    fast: bool

    def of(self, text: str, seed: int) -> str:
        """Return SQL of type bigint for the hash of a text."""
        if self.fast:
            return f'hashtextextended(({text}) COLLATE "C", {seed})'
        return f"('x' || substr(md5(convert_to('{seed}' || ({text}), 'UTF8')), 1, 16))::bit(64)::bigint"


def choose_hash(source: psycopg2.extensions.connection, target: psycopg2.extensions.connection) -> Hash:
    """Return the fastest hash that gives the same numbers on both servers."""
    answers = []
    for connection in (source, target):
        with connection.cursor() as cursor:
            cursor.execute(_PROBE)
            answers.append(cursor.fetchone())
    return Hash(fast=answers[0] == answers[1])


def bucket_count(rows: float) -> int:
    """Return a power of two that suits an estimated number of rows."""
    wanted = max(64, min(MAX_BUCKETS, int(rows) // _ROWS_PER_BUCKET))
    return 1 << (wanted - 1).bit_length()


def sums(side: Side, hashing: Hashing, buckets: int, relation: str, pages: str) -> str:
    """Query for bucket, rows and checksum of a part of a relation."""
    return (
        f"SELECT b, count(*), sum(h)::text FROM (SELECT {_bucket(side, hashing, buckets)} AS b, "
        f"{hashing.of(side.row, 1)} AS h FROM {relation} t WHERE {_condition(side, pages)}) AS hashed GROUP BY b"
    )


def rows(side: Side, hashing: Hashing, buckets: int, relation: str, pages: str, wanted: Sequence[int]) -> str:
    """Query for key texts (an array) and hash of the rows of some buckets; a row without a key has its hash as key."""
    row = hashing.of(side.row, 1)
    key = f"ARRAY[{', '.join(side.key)}]" if side.key else f"ARRAY[({row})::text]"
    listed = ", ".join(map(str, wanted))
    return (
        f"SELECT {key}, {row} FROM {relation} t "
        f"WHERE {_condition(side, pages)} AND {_bucket(side, hashing, buckets)} IN ({listed})"
    )


def _bucket(side: Side, hashing: Hashing, buckets: int) -> str:
    return f"({hashing.of(side.identity, 0)} & {buckets - 1})"


def _condition(side: Side, pages: str) -> str:
    return pages if side.where is None else f"({side.where}) AND {pages}"
