"""Plain built-in types go across in COPY's binary form where both sides have the same ones, else as text."""

from __future__ import annotations

import json

import pytest

from tests.support.pipelines import PipelineHarness

pytestmark = [pytest.mark.pg, pytest.mark.timeout(300)]

PLAIN = """
CREATE TABLE plain (id bigint PRIMARY KEY, b bool, i2 int2, i4 int4, f4 float4, f8 float8, n numeric, np numeric(9, 2),
    t text, v varchar(9), c char(5), raw bytea, d date, tm time, tz timetz, ts timestamp, tsz timestamptz, iv interval,
    u uuid, j jsonb);
INSERT INTO plain VALUES
 (1, true, -32768, 2147483647, '-0', '-0', 'NaN', 1234567.89, E'a\\tb\\n\\\\N', 'ü', 'x', '\\x00ff', 'infinity',
  '24:00', '23:59:59.999999+15:59', '-infinity', 'infinity', '-178000000 years 3 mons -7 days 04:05:06.789',
  '00000000-0000-0000-0000-000000000001', '{"a": [1, 1.50, "\\u00fc", null]}'),
 (2, false, 0, 0, '3.4028235e38', '5e-324', 'Infinity', -0.01, '', '', '', '', '4713-01-01 BC', '00:00', '00:00-15:59',
  '4713-01-01 00:00 BC', '294276-12-31 23:59:59.999999+00', '0', 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'null');
INSERT INTO plain (id) VALUES (3);
INSERT INTO plain (id, f8, n, t) SELECT i, random(), i / 7.0, repeat('é', i % 50) FROM generate_series(4, 5000) i;
"""
OTHERS = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE moody (id int PRIMARY KEY, m mood, l int[]);
INSERT INTO moody SELECT i, 'ok', ARRAY[i, NULL] FROM generate_series(1, 100) i;
CREATE TABLE wider (id int PRIMARY KEY, n int);
INSERT INTO wider SELECT i, i FROM generate_series(1, 100) i;
"""


def test_rows_go_across_in_the_form_that_both_sides_have(pipeline: PipelineHarness) -> None:
    pipeline.engine = "pgoutput"
    pipeline.source.execute(PLAIN + OTHERS)
    # The target has been there before, with a wider type.
    pipeline.targets["target"].execute("CREATE TABLE wider (id int PRIMARY KEY, n bigint)")
    pipeline.configure()
    pipeline.start()
    pipeline.wait_caught_up()
    events = [json.loads(line) for line in pipeline.log_text().splitlines() if '"load.table_ready"' in line]
    forms = {one["table"]: one["binary"] for one in events}
    assert forms == {"public.plain": True, "public.moody": False, "public.wider": False}
    for table in ("plain", "moody", "wider"):
        rows = f"SELECT t::text FROM {table} t ORDER BY id"
        assert pipeline.targets["target"].execute(rows) == pipeline.source.execute(rows)
