"""The conversion of Debezium's JSON values, on recorded lines and without a JVM."""

from __future__ import annotations

import json
import subprocess
import sys

import duckdb
import pytest

from cdc_runner.capture.debezium import convert, text_converter
from cdc_runner.capture.readable import unreadable_columns
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema

MARKER = "~rosetta-unchanged-00112233445566778899aabbccddeeff~"

# Values as the engine wrote them into an event (PostgreSQL 18, Debezium 3.6.3).
RECORDED = {
    "bool": r'"t"',
    "int8": r'"-9223372036854775808"',
    "float4": r'"1e-45"',
    "numeric": r'"12345678901234567890.123456789012345"',
    "bpchar": r'"ab   "',
    "text": r'"l1\nl2\t\\\"é😀\u0001"',
    "bytea": r'"\\x00ff5c27"',
    "json": r'"{\"b\": 1,  \"a\":2, \"a\":3}"',
    "date": r'"4714-11-24 BC"',
    "timetz": r'"24:00:00-15:59"',
    "timestamptz": r'"294276-12-31 23:59:59.999999+00"',
    "interval": r'"-1 years -2 mons +3 days -04:05:06.000001"',
    "money": r'"-$92,233,720,368,547,758.08"',
    "varbit": r'"10101"',
    "point": r'"(NaN,Infinity)"',
    "_int4": r'"[2:3][-1:0]={{1,2},{3,NULL}}"',
    "_interval": r'"{\"1 day\",infinity}"',
    "tsquery": "\"'a' & 'b'\"",
}


def column(type_name: str, kind: str = "b", schema: str = "pg_catalog") -> Column:
    return Column("v", type_name, type_name, schema, kind)


def evaluate(column: Column, value: str) -> tuple[str | None, bool]:
    """Return the converted value and whether it stands for an unchanged one, as the decoder computes them."""
    test = convert.unchanged_test(column, "v", MARKER) or "false"
    with duckdb.connect() as connection:
        found = connection.execute(
            f"""SELECT {convert.expression(column, "v")}, {test}
            FROM (SELECT json_extract_string(?, ['/after/v'])[1] AS v)""",
            ['{"after":{"v":' + value + "}}"],
        ).fetchone()
    assert found is not None
    return found


@pytest.mark.parametrize("type_name", RECORDED)
def test_recorded_value_becomes_the_servers_text(type_name: str) -> None:
    assert evaluate(column(type_name), RECORDED[type_name]) == (json.loads(RECORDED[type_name]), False)


@pytest.mark.parametrize("type_name", ["text", "int4", "jsonb", "_text"])
def test_null_stays_null_and_is_not_taken_for_unchanged(type_name: str) -> None:
    assert evaluate(column(type_name), "null") == (None, False)
    assert evaluate(column(type_name), '"null"') == ("null", False)


@pytest.mark.parametrize(
    "type_name", ["text", "bytea", "jsonb", "numeric", "_int4", "_money", "polygon", "int4multirange"]
)
def test_only_the_marker_itself_means_unchanged(type_name: str) -> None:
    assert evaluate(column(type_name), json.dumps(MARKER))[1] is True
    for near in (MARKER + " ", MARKER[:-1], MARKER.upper(), "__debezium_unavailable_value"):
        assert evaluate(column(type_name), json.dumps(near)) == (near, False)


@pytest.mark.parametrize(
    "fixed", [column("int4"), column("uuid"), column("char"), column("regclass"), column("mood", "e", "public")]
)
def test_types_of_fixed_length_have_no_test(fixed: Column) -> None:
    assert convert.unchanged_test(fixed, "v", MARKER) is None


@pytest.mark.parametrize(
    "variable",
    [column("note", "d", "public"), column("date", "c", "public"), column("_int4"), column("citext", "b", "x")],
)
def test_domains_and_types_of_other_schemas_are_tested(variable: Column) -> None:
    assert convert.unchanged_test(variable, "v", MARKER) is not None


def test_types_that_read_no_text_are_refused_by_name() -> None:
    columns = (column("int4"), Column("statistics", "pg_mcv_list", "pg_mcv_list"))
    schema = TableSchema(TableId("public", "t"), columns, (), (), ReplicaIdentity.FULL)
    assert unreadable_columns(schema) == {"statistics": "PostgreSQL reads no text as pg_mcv_list"}
    with pytest.raises(ValueError, match="column statistics"):
        convert.expression(columns[1], "v")


def test_marker_is_the_same_for_the_converter_and_the_test() -> None:
    marker = convert.new_marker()
    assert marker != convert.new_marker()
    assert convert.properties(marker)["rosetta.unchanged"] == marker
    assert convert.properties(marker)["rosetta.type"] == text_converter.CLASS_NAME


def test_importing_the_conversion_loads_no_java() -> None:
    script = "import sys, cdc_runner.capture.debezium.convert; sys.exit('jpype' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
