"""What Debezium is told about values, without a JVM."""

from __future__ import annotations

import subprocess
import sys

from cdc_runner.capture.debezium import convert, text_converter
from cdc_runner.capture.readable import unreadable_columns
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema


def test_types_that_read_no_text_are_refused_by_name() -> None:
    columns = (
        Column("v", "int4", "int4", "pg_catalog", "b"),
        Column("statistics", "pg_mcv_list", "pg_mcv_list"),
    )
    schema = TableSchema(TableId("public", "t"), columns, (), (), ReplicaIdentity.FULL)
    assert unreadable_columns(schema) == {"statistics": "PostgreSQL reads no text as pg_mcv_list"}


def test_marker_is_the_same_for_the_converter_and_the_writer() -> None:
    marker = convert.new_marker()
    assert marker != convert.new_marker()
    assert convert.properties(marker)["rosetta.unchanged"] == marker
    assert convert.properties(marker)["rosetta.type"] == text_converter.CLASS_NAME


def test_importing_the_conversion_loads_no_java() -> None:
    script = "import sys, cdc_runner.capture.debezium.convert; sys.exit('jpype' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
