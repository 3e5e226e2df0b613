"""What a filter may hold, and how it is written anew."""

from __future__ import annotations

import pytest

from cdc_runner.row_filter.form import render_form
from cdc_runner.row_filter.sql import FilterRefused, parse_filter


@pytest.mark.parametrize(
    ("given", "written", "columns"),
    [
        ("region = 'EU'", """("region" = 'EU')""", ("region",)),
        ("a OR b AND NOT c", '("a" OR ("b" AND (NOT "c")))', ("a", "b", "c")),
        ("orders.a IS NOT NULL", '("a" IS NOT NULL)', ("a",)),
        ('"Amount" <> 1.50 and AMOUNT != -2', '(("Amount" <> 1.50) AND ("amount" <> (- 2)))', ("Amount", "amount")),
        ("a NOT LIKE 'x!%' ESCAPE '!'", """("a" NOT LIKE 'x!%' ESCAPE '!')""", ("a",)),
        ("a ILIKE 'it''s'", """("a" ILIKE 'it''s')""", ("a",)),
        ("a NOT IN (1, NULL)", '(NOT ("a" IN (1, NULL)))', ("a",)),
        ("at::date >= '2024-01-01'", """(CAST("at" AS date) >= '2024-01-01')""", ("at",)),
        ("lower(a) IS DISTINCT FROM 'x'", """(pg_catalog.lower("a") IS DISTINCT FROM 'x')""", ("a",)),
        ("a = '\\'", """("a" = '\\')""", ("a",)),
    ],
)
def test_conditions_are_written_quoted_and_bracketed(given: str, written: str, columns: tuple[str, ...]) -> None:
    found = parse_filter(given)
    assert (found.sql, found.columns) == (written, columns)
    assert parse_filter(found.sql).sql.replace("(", "").replace(")", "") == written.replace("(", "").replace(")", "")


ATTACKS = [
    "a = 1; DROP TABLE x", "SELECT 1", "' OR 1=1 --", "id) OR (1=1", "a = (SELECT 1)", "a IN (SELECT 1)",
    "EXISTS (SELECT 1)", "pg_sleep(10) IS NULL", "a = pg_read_file('/etc/passwd')", "a = current_user", "a > now()",
    "a > 'now'", "a = 'today'::date", "random() > a", "a ~ '(a+)+$'", "a SIMILAR TO 'x'", "a = $1", "a = E'\\x41'",
    "a = repeat('x', 2000000000)", "a = lpad('x', 2000000000)", "a = set_config('x', 'y', false)", "a::regclass = 1",
    "count(*) > a", "sum(a) OVER () > 1", "a = dblink('x', 'y')", "a = lo_import('/etc/passwd')", "a = 1e99999 ",
    "a = query_to_xml('select 1', true, true, '')", "a = (b).c", "a[1] = 2", "1 = 1", "", " ", "a = 'x", "((a)",
    "a = 1 UNION SELECT 2", "a = 1 LIMIT 1", "a = 1 INTO x", "nextval('s') = a", "a = \x00",
    "a OPERATOR(pg_catalog.=) 1",
    "a = generate_series(1, 10)", "a = ANY (SELECT 1)", "CASE WHEN a THEN pg_sleep(1) END", "a COLLATE \"evil\" = 'x'",
    "myschema.f(a)", "a = ROW(1)", "(a, b) = (1, 2)", "TABLE x", "COPY x TO '/tmp/x'", "a = U&'\\0041'",
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_listed_is_refused(attack: str) -> None:
    with pytest.raises(FilterRefused):
        parse_filter(attack)


def test_long_and_deep_filters_are_refused() -> None:
    with pytest.raises(FilterRefused):
        parse_filter("(" * 4000 + "a" + ")" * 4000)
    with pytest.raises(FilterRefused):
        parse_filter("a = 1 OR " * 2000 + "a = 1")


def test_the_builder_form_says_the_same() -> None:
    form = {
        "all": [
            {"column": "region", "op": "=", "value": "E'U"},
            {"any": [{"column": "n", "op": "between", "value": [1, 2]}, {"column": "n", "op": "is null"}]},
            {"not": {"column": 'Weird "name', "op": "not in", "value": [1.5, True, "x"]}},
        ]
    }
    found = parse_filter(render_form(form))
    assert found.columns == ('Weird "name', "n", "region")
    assert "E''U" in found.sql and 'NOT ("Weird ""name" IN (1.5, true' in found.sql


@pytest.mark.parametrize(
    "form",
    [
        {"column": "a", "op": "; DROP", "value": 1}, {"column": "a", "op": "=", "value": None}, {"all": []},
        {"any": "x"},
        {"column": "a"}, {"column": "a", "op": "in", "value": "x"}, {"column": "a", "op": "=", "value": float("nan")},
        {"column": "a", "op": "between", "value": [1]}, {"all": [{"column": "a", "op": "is null"}], "x": 1},
        {"column": "a", "op": "=", "value": {"x": 1}}, {"column": "a\x00", "op": "is null"},
    ],
)  # fmt: skip
def test_wrong_forms_are_refused(form: dict[str, object]) -> None:
    with pytest.raises(FilterRefused):
        render_form(form)
