"""Which target types take which source types."""

from __future__ import annotations

import pytest

from cdc_runner.destinations.postgres.type_names import target_type
from cdc_runner.destinations.postgres.widening import accepts
from cdc_runner.schema import Column

_NAMES = {
    "integer": "int4", "bigint": "int8", "smallint": "int2", "character varying": "varchar", "character": "bpchar",
    "double precision": "float8", "real": "float4", "timestamp without time zone": "timestamp", "boolean": "bool",
    "timestamp with time zone": "timestamptz", "bit varying": "varbit",
}  # fmt: skip


def built_in(text: str) -> Column:
    array = text.endswith("[]")
    plain = text.removesuffix("[]")
    if "(" in plain:
        head, _, rest = plain.partition("(")
        plain = head + rest.partition(")")[2]
    name = _NAMES.get(plain.strip(), plain.strip())
    return Column(
        "c", text, f"_{name}" if array else name, type_category="A" if array else "U", element=name if array else None
    )


def same(schema: str) -> str:
    return schema


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("integer", "integer", True),
        ("integer", "bigint", True),
        ("bigint", "integer", False),
        ("integer", "numeric", True),
        ("integer", "numeric(10,0)", True),
        ("integer", "numeric(10,2)", False),
        ("bigint", "double precision", False),
        ("integer", "text", True),
        ("integer", "character varying", True),
        ("integer", "character varying(20)", False),
        ("numeric(8,2)", "numeric(8,2)", True),
        ("numeric(8,2)", "numeric(9,3)", True),
        ("numeric(8,2)", "numeric(8,3)", False),
        ("numeric(2,-3)", "numeric(5,0)", True),
        ("numeric(2,-3)", "numeric(4,0)", False),
        ("numeric", "numeric(100,10)", False),
        ("numeric", "double precision", False),
        ("character varying(5)", "character varying(6)", True),
        ("character varying(5)", "character varying(4)", False),
        ("character varying", "character varying(4)", False),
        ("text", "character varying(4)", False),
        ("text", "character varying", True),
        ("character(5)", "character varying(5)", True),
        ("character varying(5)", "character(5)", False),
        ("timestamp(3) without time zone", "timestamp without time zone", True),
        ("timestamp without time zone", "timestamp(3) without time zone", False),
        ("timestamp without time zone", "timestamp with time zone", False),
        ("date", "timestamp without time zone", True),
        ("integer[]", "bigint[]", True),
        ("integer[]", "integer", False),
        ("integer", "integer[]", False),
        ("integer[]", "text", True),
        ("integer", "text[]", False),
        ("bit(4)", "bit(5)", False),
        ("bit(4)", "bit varying(4)", True),
        ("json", "jsonb", False),
        ("real", "double precision", True),
        ("double precision", "real", False),
        ("boolean", "integer", False),
    ],
)
def test_target_takes_source(source: str, target: str, expected: bool) -> None:
    assert accepts(built_in(source), built_in(target), same) is expected


MOOD = Column("c", "sales.mood", "mood", "sales", "e", "E")


def test_user_types_are_compared_by_the_name_they_have_at_the_target() -> None:
    there = Column("c", "dw.mood", "mood", "dw", "e", "E")
    assert accepts(MOOD, there, lambda schema: "dw")
    assert not accepts(MOOD, there, same)
    assert accepts(MOOD, built_in("text"), same)
    assert not accepts(MOOD, built_in("integer"), same)
    assert not accepts(built_in("text"), MOOD, same)


def test_domains() -> None:
    domain = Column("c", "d", "d", "public", "d", "N", element="int4")
    assert accepts(domain, domain, same)
    assert accepts(domain, built_in("bigint"), same)
    assert not accepts(domain, built_in("smallint"), same)
    assert not accepts(built_in("integer"), domain, same)


def test_modifiers_of_extension_types() -> None:
    three = Column("c", "vector(3)", "vector", "public")
    assert accepts(three, Column("c", "vector", "vector", "public"), same)
    assert not accepts(Column("c", "vector", "vector", "public"), three, same)
    assert not accepts(three, Column("c", "vector(4)", "vector", "public"), same)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (built_in("numeric(10,2)[]"), "numeric(10,2)[]"),
        (MOOD, '"dw"."mood"'),
        (Column("c", "sales.mood[]", "_mood", "sales", "b", "A", element="mood"), '"dw"."mood"[]'),
        (Column("c", '"Odd ""x"" (1)"', 'Odd "x" (1)', "sales", "e", "E"), '"dw"."Odd ""x"" (1)"'),
        (Column("c", "public.geometry(Point,4326)", "geometry", "public"), '"dw"."geometry"(Point,4326)'),
        (Column("c", "vector(3)[]", "_vector", "public", "b", "A", element="vector"), '"dw"."vector"(3)[]'),
        (Column("c", "words", "words", "public", "d", "A", element="_text"), '"dw"."words"'),
        (Column("c", "information_schema.yes_or_no", "yes_or_no", "information_schema", "d"),
         '"information_schema"."yes_or_no"'),
    ],
)  # fmt: skip
def test_type_text_at_the_target(column: Column, expected: str) -> None:
    assert target_type(column, lambda schema: "dw") == expected
