"""What is compared of a table: which columns, as which texts, and which cannot be compared and why. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from cdc_runner.destinations.base import TableState
from cdc_runner.destinations.postgres.target_table import TargetTable
from cdc_runner.destinations.postgres.type_names import SchemaMap, same_schema, target_type
from cdc_runner.schema import Column, TableId, TableSchema, quote_identifier

_NAMES_OF_OBJECTS = frozenset(
    f"{array}reg{kind}"
    for array in ("", "_")
    for kind in ("class", "collation", "config", "dictionary", "namespace", "oper", "operator", "proc", "procedure",
                 "role", "type")
)  # fmt: skip

Pair = TypeVar("Pair")

NOTHING = "NULL::text"
"""The text of a column that holds nothing."""


@dataclass(frozen=True, slots=True)
class Side:
    """How one side of a table is read. Expressions are SQL over the alias `t`.

    Attributes:
        table: the table or partition root.
        key: texts of the columns that identify a row; empty for a table without a key.
        columns: texts of all compared columns.
        where: condition that rows must meet; None for all rows.
    """

    table: TableId
    key: tuple[str, ...]
    columns: tuple[str, ...]
    where: str | None = None

    @property
    def row(self) -> str:
        """A row as one text, which tells NULL from an empty text."""
        return f"ROW({', '.join(self.columns)})::text"

    @property
    def identity(self) -> str:
        """A row's key as one text; the whole row where there is no key."""
        if not self.key:
            return self.row
        return self.key[0] if len(self.key) == 1 else f"ROW({', '.join(self.key)})::text"


@dataclass(frozen=True, slots=True)
class TablePlan:
    """How a source table and its target are compared.

    Attributes:
        source: how the source is read.
        target: how the target is read.
        key: names of the key's columns at the target.
        left_out: columns that are not compared, with the reason.
    """

    source: Side
    target: Side
    key: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a target is meant to differ from its source table.

    Attributes:
        skipped: why its content is not that of the source table at all; None when it is.
        where: which rows of the source it is to hold, as SQL over the table's columns; None for all.
        target_where: which rows of the target stand for rows of the source, as SQL over the alias `t`; None for all.
        origins: for target columns the source's columns as they were when the target was made for them, where they
            are others than the destination remembers.
        added: target columns that do not come from the source.
        fixed: target columns that hold one text in every row, as SQL of type text.
        altered: target columns that hold other values on purpose, with the reason.
        left_behind: source columns that are not copied on purpose.
    """

    skipped: str | None = None
    where: str | None = None
    target_where: str | None = None
    origins: Mapping[str, Column] = field(default_factory=dict)
    added: frozenset[str] = frozenset()
    fixed: Mapping[str, str] = field(default_factory=dict)
    altered: Mapping[str, str] = field(default_factory=dict)
    left_behind: frozenset[str] = frozenset()


class NotComparable(Exception):
    """A table cannot be compared; the text says why."""


def plan_table(
    present: TableSchema, known: TableState, target: TargetTable, schema_map: SchemaMap, rules: Rules | None = None
) -> TablePlan:
    """Return how a table is compared.

    Args:
        present: the source table at the fence.
        known: what the destination remembers of it; its columns have the target's names.
        target: the target table.
        schema_map: source schema to target schema, for names of types.
        rules: how the target is meant to differ.

    Raises:
        NotComparable: the target lacks a column, or the key has changed and the stream has not told of it yet.
    """
    rules = rules or Rules()
    columns = target.columns

    def pair(name: str, source: Column) -> tuple[str, str] | str:
        there = columns[name].column
        return _fixed(rules.fixed[name], there) if name in rules.fixed else _texts(source, there, schema_map)

    key, texts, left_out = pair_columns(present, known, rules, columns.keys(), pair)
    sides = [
        Side(
            table,
            tuple(texts[name][place] for name in key),
            tuple(pair[place] for pair in texts.values()),
            rules.where if place == 0 else rules.target_where,
        )
        for place, table in enumerate((present.table, target.table))
    ]
    return TablePlan(sides[0], sides[1], key, left_out)


def pair_columns(
    present: TableSchema,
    known: TableState,
    rules: Rules,
    there: Collection[str],
    pair: Callable[[str, Column], tuple[Pair, Pair] | str],
) -> tuple[tuple[str, ...], dict[str, tuple[Pair, Pair]], dict[str, str]]:
    """Return the key's columns, what is compared of each target column, and the columns left out with the reason.

    Args:
        present: the source table at the fence.
        known: what the destination remembers of it; its columns have the target's names.
        rules: how the target is meant to differ.
        there: names of the target's columns.
        pair: gives for a target column and its partner at the source what is compared on both sides, or why nothing is.

    Raises:
        NotComparable: the target lacks a column, or the key has changed and the stream has not told of it yet.
    """
    left_out: dict[str, str] = {}
    pairs: dict[str, tuple[Pair, Pair]] = {}
    partner: dict[str, str] = {}
    for name, source in _partners(present, known, rules):
        if source is None:
            left_out[name] = "the source does not have it any more"
            continue
        if name not in there:
            raise NotComparable(f"the target has no column {name}")
        partner[source.name] = name
        found = rules.altered[name] if name in rules.altered else pair(name, source)
        if isinstance(found, str):
            left_out[name] = found
        else:
            pairs[name] = found
    for column in present.stream_columns:
        if column.name not in partner and column.name not in rules.left_behind:
            left_out[column.name] = "the target does not have it yet; it comes with the table's next change"
    key = tuple(partner.get(name, "") for name in present.key)
    if key != known.schema.key or any(name not in pairs for name in key):
        raise NotComparable("its key is not that of the target: it has changed, or its values cannot be compared")
    if not pairs:
        raise NotComparable("none of its columns can be compared")
    return key, pairs, left_out


def _partners(present: TableSchema, known: TableState, rules: Rules) -> Iterator[tuple[str, Column | None]]:
    """Yield the target's columns that come from the source, with the column there; None when it is gone."""
    by_number = {column.number: column for column in present.stream_columns if column.number}
    by_name = {column.name: column for column in present.stream_columns}
    for column in known.schema.stream_columns:
        if column.name not in rules.added:
            origin = rules.origins.get(column.name, column)
            yield column.name, by_number.get(origin.number) if origin.number else by_name.get(origin.name)


def _fixed(text: str, target: Column) -> tuple[str, str] | str:
    """Return the SQL for both sides of a column that holds one text, or why the target's type could write another."""
    if text != NOTHING and target.type_name != "text":
        return f"a mask's constant stands in its place, as {target.type_text}"
    return text, f"t.{quote_identifier(target.name)}::text"


def _texts(source: Column, target: Column, schema_map: SchemaMap) -> tuple[str, str] | str:
    """Return the SQL for a column's text on both sides, or why these could differ though the values do not."""
    here, there = f"t.{quote_identifier(source.name)}", f"t.{quote_identifier(target.name)}"
    if source.type_name in _NAMES_OF_OBJECTS or target.type_name in _NAMES_OF_OBJECTS:
        return f"{source.type_text} names objects of a server, whose numbers differ"
    wanted = target_type(source, schema_map)
    if wanted == target_type(target, same_schema):
        return f"{here}::text", f"{there}::text"
    # The text that travels is that of the type's output function, which `::text` is not for every type (boolean, inet).
    output = output_text(here)
    if target.type_schema == "pg_catalog":
        return f"({output})::{target.type_text}::text", f"{there}::text"
    if target.type_kind == "e":
        return output, f"{there}::text"
    return (
        f"it is {source.type_text} at the source and {target.type_text} at the target, which write values differently"
    )


def output_text(column: str) -> str:
    """Return SQL for what the output function of a column's type gives, NULL for NULL."""
    # A composite value of NULLs only would be NULL to `IS NULL`.
    return f"CASE WHEN num_nulls({column}) = 0 THEN concat({column}) END"


def describe(left_out: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each column that is not compared."""
    for name, reason in left_out.items():
        yield f"column {name}: {reason}"
