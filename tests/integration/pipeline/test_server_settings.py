"""Databases whose owners have set what shapes texts, plans and limits of a session: values and states stay the same."""

from __future__ import annotations

import pytest

from tests.support import type_cases
from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.jvm, pytest.mark.both_engines, pytest.mark.timeout(300)]

SOURCE = {
    "TimeZone": "'Asia/Kolkata'",
    "DateStyle": "'SQL, DMY'",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "lc_monetary": "'C'",
    "quote_all_identifiers": "on",
    "array_nulls": "off",
    "default_transaction_isolation": "serializable",
    "search_path": "'\"Odd schema\", public'",
    "statement_timeout": "'1500ms'",
    "lock_timeout": "'1ms'",
    "idle_in_transaction_session_timeout": "'1500ms'",
}
TARGET = SOURCE | {
    "TimeZone": "'America/St_Johns'",
    "DateStyle": "'German'",
    "IntervalStyle": "sql_standard",
    "default_transaction_isolation": "'repeatable read'",
    "standard_conforming_strings": "off",
    "row_security": "off",
    "enable_indexscan": "off",
}
TYPES = (
    "int4[]", "text[]", "float4", "float8", "date", "timestamp", "timestamptz", "timetz", "interval", "interval[]", "bytea", "bytea[]",
    "money", "numeric", "tstzrange", "daterange", "regclass", "regtype", "\"Odd schema\".\"Mood\"", "mood", "pair", "nest", "jsonb", "point",
    "text", "hstore", "words",
)  # fmt: skip


def test_values_are_exact_whatever_the_databases_settings(pipeline: PipelineHarness) -> None:
    """After the load, an insert and an update, also where a statement may take no longer than a moment."""
    source, target = pipeline.source, pipeline.targets["target"]
    source.execute("CREATE EXTENSION hstore")
    source.execute(type_cases.SETUP)
    version = int(str(source.execute("SHOW server_version_num")[0][0]))
    for number, name in enumerate(TYPES):
        source.execute(f"CREATE TABLE public.s{number} (id int PRIMARY KEY, tag int, v {name})")
        for place, value in enumerate(type_cases.CASES[name]):
            if name.startswith("interval") and "infinity" in value and version < 170000:
                # Intervals without end came with PostgreSQL 17.
                continue
            source.execute(f"INSERT INTO public.s{number} VALUES (%s, 0, %s)", (place, value))
    source.execute("CREATE TABLE public.slow (id int PRIMARY KEY, v text)")
    source.execute("INSERT INTO public.slow SELECT i, repeat('x', 900) FROM generate_series(1, 100000) i")
    for database, settings in ((source, SOURCE), (target, TARGET)):
        for name, value in settings.items():
            database.execute(f'ALTER DATABASE "{database.name}" SET {name} = {value}')
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()
    for number in range(len(TYPES)):
        source.execute(
            f"INSERT INTO public.s{number} SELECT id + 1000, 1, v FROM public.s{number}; "
            f"UPDATE public.s{number} SET tag = tag + 1, v = (SELECT v FROM public.s{number} WHERE id = 0)"
        )
    pipeline.wait_caught_up(120)
    pipeline.assert_equal()
