"""Which column is which when the source's catalog is ahead of the stream.

The stream tells names and type names of a table's columns at its own moment, the catalog everything of a later one: in
between columns may have come, gone, changed places, names and types. What holds throughout is the order: columns have
rising numbers, a new one a higher number than all before it, and a number never comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cdc_runner.schema import Column

_IMPOSSIBLE = -1_000_000

_BUILT_IN = frozenset({
    "bool", "bytea", "char", "name", "int8", "int2", "int4", "text", "oid", "json", "xml", "float4", "float8",
    "money", "macaddr", "macaddr8", "inet", "cidr", "bpchar", "varchar", "date", "time", "timestamp",
    "timestamptz", "interval", "timetz", "bit", "varbit", "numeric", "uuid", "jsonb", "tsvector", "tsquery",
    "point", "lseg", "path", "box", "polygon", "line", "circle", "int4range", "int8range", "numrange",
    "tsrange", "tstzrange", "daterange",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class StreamColumn:
    """A column as the change stream describes it: name and, where the engine tells, its type's name."""

    name: str
    type_name: str | None


_Side = tuple[Column, Column | None]


def is_ahead(described: Sequence[StreamColumn], catalog: Sequence[Column]) -> bool:
    """Tell whether the catalog shows other columns than the stream describes, in names, order or types."""
    return len(described) != len(catalog) or any(
        one.name != other.name or not same_type(one, other) for one, other in zip(described, catalog, strict=True)
    )


def align(described: Sequence[StreamColumn], before: Sequence[Column], catalog: Sequence[Column]) -> list[Column]:
    """Return the described columns with all that is known of them, in order.

    Args:
        described: the stream's columns now.
        before: the stream's columns before, in order.
        catalog: the catalog's columns, without generated ones, at some later moment.

    A column that the catalog still has by number was never dropped, so it is among the described ones. One that neither
    side knows has been dropped again by now and is taken as text, with number 0.
    """
    return _align(described, before, catalog)[1]


def _align(
    described: Sequence[StreamColumn], before: Sequence[Column], catalog: Sequence[Column]
) -> tuple[int, list[Column]]:
    present = {column.number: column for column in catalog if column.number}
    highest = max((column.number for column in before), default=0)
    later = [(column, None) for column in catalog if column.number > highest]
    # Each with the name it had before and the one it has by now, either of which it may have at the moment.
    sides = [(column, present.get(column.number)) for column in before]
    kept = _scores(described, sides, {column.number for column in before if column.number in present})
    if max(row[-1] for row in kept) < _IMPOSSIBLE // 2:
        # The stream leaves a column out that is still there: the publication has a list of columns.
        kept = _scores(described, sides, set())
    new = _scores(described[::-1], later[::-1], set(), skip_described=True)
    width = len(described)

    def score(place: int) -> int:
        return kept[place][len(before)] + new[width - place][len(later)]

    # The first `cut` columns were there before, the others are new.
    cut = max(range(width + 1), key=score)
    columns: list[Column] = []
    for column, known in _pairs(described[:cut], sides, kept):
        now = present.get(known.number, known) if known is not None else None
        columns.append(_typed(column, now, known))
    tail = _pairs(described[cut:][::-1], later[::-1], new, skip_described=True)[::-1]
    return score(cut), columns + [_typed(column, known, known) for column, known in tail]


def is_older_table(described: Sequence[StreamColumn], before: Sequence[Column], catalog: Sequence[Column]) -> bool:
    """Tell whether the stream describes the table before, where the catalog has another one under its name by now."""
    return _align(described, before, ())[0] >= _align(described, (), catalog)[0]


def same_type(described: StreamColumn, column: Column) -> bool:
    """Tell whether the types agree by name; the stream may spell a name in another case."""
    return described.type_name is None or described.type_name.casefold() == column.type_name.casefold()


def _likeness(described: StreamColumn, side: _Side) -> int:
    def to(column: Column) -> int:
        alike = same_type(described, column)
        if described.name == column.name:
            return 8 if alike else 6
        return 2 if alike else -2

    before, now = side
    # The last version is the nearer one: one description is mostly one change away from it.
    return to(before) if now is None else max(to(before), to(now) - 1)


def _scores(
    described: Sequence[StreamColumn], known: Sequence[_Side], needed: set[int], *, skip_described: bool = False
) -> list[list[int]]:
    """Return, for each number of leading columns of both sides, how well they can be paired in order."""
    table = [[_IMPOSSIBLE] * (len(known) + 1) for _ in range(len(described) + 1)]
    table[0][0] = 0
    for i in range(len(described) + 1):
        for j in range(len(known) + 1):
            best = table[i][j]
            if j and known[j - 1][0].number not in needed:
                best = max(best, table[i][j - 1] - 1)
            if i and skip_described:
                best = max(best, table[i - 1][j])
            if i and j:
                best = max(best, table[i - 1][j - 1] + _likeness(described[i - 1], known[j - 1]))
            table[i][j] = best
    return table


def _pairs(
    described: Sequence[StreamColumn],
    known: Sequence[_Side],
    scores: list[list[int]],
    *,
    skip_described: bool = False,
) -> list[tuple[StreamColumn, Column | None]]:
    """Return each described column with its known one, along the best way through the scores."""
    i, j = len(described), len(known)
    pairs: list[tuple[StreamColumn, Column | None]] = []
    while i:
        if j and scores[i][j] == scores[i - 1][j - 1] + _likeness(described[i - 1], known[j - 1]):
            pairs.append((described[i - 1], known[j - 1][0]))
            i, j = i - 1, j - 1
        elif skip_described and scores[i][j] == scores[i - 1][j]:
            pairs.append((described[i - 1], None))
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _typed(described: StreamColumn, now: Column | None, before: Column | None) -> Column:
    """Return a column by the stream's name and type, with what the catalog, or else the last version, knows of it."""
    for column in (now, before):
        if column is not None and same_type(described, column):
            return replace(column, name=described.name)
    name = (described.type_name or "").removeprefix("_").casefold()
    type_ = Column(described.name, "text", "text")
    if name in _BUILT_IN:
        array = (described.type_name or "").startswith("_")
        type_ = Column(
            described.name,
            ('"char"' if name == "char" else name) + ("[]" if array else ""),
            f"_{name}" if array else name,
            type_category="A" if array else "U",
            element=name if array else None,
        )
    known = now or before
    return type_ if known is None else replace(type_, number=known.number, not_null=known.not_null)
