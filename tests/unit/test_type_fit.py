from __future__ import annotations

import pytest

from cdc_runner.doctor.type_fit import Fit, type_fit


@pytest.mark.parametrize(
    ("source", "target", "fit"),
    [
        ("integer", "integer", "equal"),
        ("smallint", "bigint", "wider"),
        ("bigint", "integer", "narrower"),
        ("integer", "numeric", "wider"),
        ("integer", "numeric(10,0)", "wider"),
        ("integer", "numeric(10,2)", "narrower"),
        ("numeric", "integer", "narrower"),
        ("numeric(10,2)", "numeric(12,2)", "wider"),
        ("numeric(10,2)", "numeric(12,5)", "narrower"),
        ("numeric(10,2)", "numeric(10,1)", "narrower"),
        ("numeric", "numeric(1000,500)", "narrower"),
        ("numeric(10,2)", "numeric", "wider"),
        ("real", "double precision", "wider"),
        ("double precision", "real", "narrower"),
        ("numeric", "double precision", "narrower"),
        ("character varying(10)", "character varying(20)", "wider"),
        ("character varying(20)", "character varying(10)", "narrower"),
        ("character varying(20)", "text", "wider"),
        ("text", "character varying(20)", "narrower"),
        ("text", "character varying", "wider"),
        ("character(3)", "character varying(3)", "wider"),
        ("character varying(3)", "character(5)", "different"),
        ("timestamp without time zone", "timestamp(3) without time zone", "narrower"),
        ("timestamp(3) with time zone", "timestamp with time zone", "wider"),
        ("timestamp without time zone", "timestamp with time zone", "different"),
        ("timestamp without time zone", "date", "different"),
        ("bit(3)", "bit(5)", "different"),
        ("bit varying(3)", "bit varying(5)", "wider"),
        ("integer[]", "bigint[]", "wider"),
        ("bigint[]", "integer[]", "narrower"),
        ("integer[]", "integer", "different"),
        ("sales.mood", "text", "wider"),
        ("sales.mood", "other.mood", "different"),
        ("jsonb", "text", "wider"),
        ("json", "jsonb", "different"),
    ],
)
def test_fit(source: str, target: str, fit: Fit):
    assert type_fit(source, target) == fit
