"""What is compared of a table at Snowflake, and the SQL of both sides. Pure functions.

The text of a value is PostgreSQL's own: the source writes it, Snowflake makes it of what it stored. A row is the texts
of its columns, each with its length before it, so that no two rows have one text; what is long stands there by its
digest. Both sides hash with MD5 over UTF-8 and take 18 decimal digits of it, in which `a` to `f` count as 0 to 5: that
needs no function that only one of them has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.snowflake import naming
from cdc_runner.destinations.snowflake.rows import Shape
from cdc_runner.destinations.snowflake.texts import stored_text, why_not
from cdc_runner.reconcile.checksum import Hashing
from cdc_runner.reconcile.plan import NOTHING, Rules, Side, output_text, pair_columns
from cdc_runner.schema import Column, TableSchema, quote_identifier
from cdc_runner.spec import SyncMode

_LONG_TEXT = 1_000
"""Characters from which on a text stands in its row by its digest: a row's text has an end at Snowflake."""
_ALIAS = "t"


@dataclass(frozen=True, slots=True)
class Text:
    """A column's text on one side.

    Attributes:
        value: SQL of the text.
        free: whether it may be any text, long ones too.
        digest: SQL function of a text that gives its MD5 in hexadecimal digits.
    """

    value: str
    free: bool
    digest: str

    @property
    def framed(self) -> str:
        """As a part of a row's text, from which the next part can be told; NULL is a part of its own."""
        if not self.free:
            return f"COALESCE(({self.value}) || '|', '!')"
        length = f"CAST(LENGTH({self.value}) AS VARCHAR)"
        short = (
            f"CASE WHEN LENGTH({self.value}) > {_LONG_TEXT} THEN {self.digest.format(self.value)} ELSE {self.value} END"
        )
        return f"COALESCE({length} || ':' || ({short}), '!')"


_MD5_HERE = "md5(convert_to({}, 'UTF8'))"
_MD5_THERE = "MD5({})"


@dataclass(frozen=True, slots=True)
class FramedSide(Side):
    """A side whose row's text is that of its parts.

    Attributes:
        frames: parts of the key; `columns` are parts of the row, `key` are plain texts.
    """

    frames: tuple[str, ...] = ()

    @property
    def row(self) -> str:
        """A row as one text."""
        return " || ".join(self.columns)

    @property
    def identity(self) -> str:
        """A row's key as one text; the whole row where there is no key."""
        return " || ".join(self.frames) if self.key else self.row


class SourceHash:
    """The hash as PostgreSQL computes it."""

    def of(self, text: str, seed: int) -> str:
        """Return SQL of type bigint for the hash of a text; not negative."""
        digest = _MD5_HERE.format(f"'{seed}' || ({text})")
        return f"translate(substr({digest}, 1, 18), 'abcdef', '012345')::bigint"


class LakeHash:
    """The hash as Snowflake computes it."""

    def of(self, text: str, seed: int) -> str:
        """Return SQL of type NUMBER(18,0) for the hash of a text; not negative."""
        digest = _MD5_THERE.format(f"'{seed}' || ({text})")
        return f"CAST(TRANSLATE(SUBSTR({digest}, 1, 18), 'abcdef', '012345') AS NUMBER(18,0))"


SOURCE_HASH: Hashing = SourceHash()
LAKE_HASH: Hashing = LakeHash()


@dataclass(frozen=True, slots=True)
class LakePlan:
    """How a source table and its target at Snowflake are compared.

    Attributes:
        source: how the source is read.
        target: how the target is read, in the same way.
        key: names of the key's columns at the target.
        left_out: columns that are not compared, with the reason.
    """

    source: FramedSide
    target: FramedSide
    key: tuple[str, ...]
    left_out: Mapping[str, str]


def plan_lake_table(
    present: TableSchema, known: TableState, shape: Shape, there: Sequence[str], rules: Rules
) -> LakePlan:
    """Return how a table is compared.

    Args:
        present: the source table at the fence.
        known: what the destination remembers of it.
        shape: how the table is written.
        there: stored names of the target's columns.
        rules: how the target is meant to differ.

    Raises:
        NotComparable: see `pair_columns`.
    """
    names = {name for name, stored in shape.columns.items() if stored in there}

    def pair(name: str, source: Column) -> tuple[Text, Text] | str:
        column = known.schema.column(name)
        type_ = shape.carried(column).type
        text = stored_text(type_)
        if text is None:
            return why_not(type_)
        there = text(f"{_ALIAS}.{quote_identifier(shape.columns[name])}")
        free = type_.startswith(("VARCHAR", "BINARY"))
        if name in rules.fixed:
            here = rules.fixed[name]
            if here != NOTHING and not type_.startswith("VARCHAR"):
                return f"a mask's constant stands in its place, as {type_}"
        elif rules.origins.get(name, column).type_text != source.type_text:
            return "its type has changed; the stream has not told of it yet"
        else:
            here = output_text(f"{_ALIAS}.{quote_identifier(source.name)}")
        return Text(here, free, _MD5_HERE), Text(there, free, _MD5_THERE)

    key, pairs, left_out = pair_columns(present, known, rules, names, pair)
    gone = f"NOT {_ALIAS}.{quote_identifier(naming.DELETED)}"
    where = gone if shape.keeps is SyncMode.SOFT_DELETE and shape.schema.key else None
    sides = [
        FramedSide(
            table,
            tuple(pairs[name][place].value for name in key),
            tuple(one[place].framed for one in pairs.values()),
            rules.where if place == 0 else where,
            tuple(pairs[name][place].framed for name in key),
        )
        for place, table in enumerate((present.table, known.sync.target))
    ]
    return LakePlan(sides[0], sides[1], key, left_out)


# -- statements of Snowflake -----------------------------------------------------------------------------------------

SUM_COLUMNS = ("BUCKET", "TOTAL", "CHECKSUM")


def lake_sums(side: Side, buckets: int, relation: str) -> str:
    """Query for bucket, rows and checksum of a target, as texts."""
    return (
        "SELECT TO_VARCHAR(B) AS BUCKET, TO_VARCHAR(COUNT(*)) AS TOTAL, TO_VARCHAR(SUM(H)) AS CHECKSUM FROM ("
        f"SELECT {_bucket(side, buckets)} AS B, {LAKE_HASH.of(side.row, 1)} AS H "
        f"FROM {relation} AS {_ALIAS}{_where(side)}) AS hashed GROUP BY B"
    )


def key_columns(side: Side) -> tuple[str, ...]:
    """Return the names of the columns of `lake_rows`."""
    return (*(f"K{place}" for place in range(max(1, len(side.key)))), "ROW_HASH")


def lake_rows(side: Side, buckets: int, relation: str, wanted: Sequence[int]) -> str:
    """Query for key texts and hash of the rows of some buckets; a row without a key has its hash as key."""
    hashed = f"TO_VARCHAR({LAKE_HASH.of(side.row, 1)})"
    keys = side.key or (hashed,)
    named = ", ".join(f"{text} AS {name}" for text, name in zip((*keys, hashed), key_columns(side), strict=True))
    condition = f"{_bucket(side, buckets)} IN ({', '.join(map(str, wanted))})"
    where = _where(side)
    return f"SELECT {named} FROM {relation} AS {_ALIAS}{where}{' AND' if where else ' WHERE'} {condition}"


def _bucket(side: Side, buckets: int) -> str:
    return f"MOD({LAKE_HASH.of(side.identity, 0)}, {buckets})"


def _where(side: Side) -> str:
    return "" if side.where is None else f" WHERE ({side.where})"
