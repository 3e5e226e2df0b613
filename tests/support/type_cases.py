"""Types of PostgreSQL and of its extensions, with the values that replication gets wrong most often.

Values are input texts; `LARGE` are SQL expressions of values that go out of line, `RANDOM` makes input texts.
"""

from __future__ import annotations

import json
import math
import random
import struct
import uuid
from collections.abc import Callable
from datetime import date, timedelta

EXTENSIONS = ("hstore", "citext", "ltree", "cube", "seg", "isn", "vector")

SETUP = """
CREATE SCHEMA "Odd schema";
CREATE TYPE mood AS ENUM ('sad', 'très bien', 'a"b', 'c,d', '');
CREATE TYPE "Odd schema"."Mood" AS ENUM ('x');
CREATE TYPE pair AS (x int, y text);
CREATE TYPE nest AS (p pair, m mood[], t timestamptz);
CREATE TYPE "Odd schema"."date" AS (a text);
CREATE TYPE "Odd schema".money AS ENUM ('much');
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE DOMAIN very_positive AS positive CHECK (value > 1);
CREATE DOMAIN exact AS numeric(12,3);
CREATE DOMAIN zoned AS timetz;
CREATE DOMAIN words AS text[];
CREATE DOMAIN note AS text;
CREATE TYPE floatrange AS RANGE (subtype = float8);
CREATE TYPE textrange AS RANGE (subtype = text);
"""

_ODD_TEXT = [
    "",
    " ",
    "NULL",
    "\\N",
    "\\.",
    "a\tb\r\nc",
    "q\"'`q",
    "\\",
    "\\\\x00",
    "é😀\U0010ffff",
    "\u202eabc\u202c \u2028\u2029",
    "null",
    "{}",
    "[]",
    "\x01\x1f\x7f",
    "__debezium_unavailable_value",
    "~rosetta-unchanged-~",
    "x" * 3000,
]
_ODD_ARRAYS = ["{}", "{NULL}", "[0:1]={%s,%s}", "{{%s,%s},{%s,NULL}}", "[2:3][-1:0]={{%s,%s},{%s,%s}}"]


def _arrays(*elements: str) -> list[str]:
    quoted = ['"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in elements]
    shapes = [shape.replace("%s", quoted[0]) for shape in _ODD_ARRAYS]
    return ["{" + ",".join(quoted) + "}", *shapes]


_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "0",
    "-0",
    "1.10",
    "1e-45",
    "12345678901234567890.123456789012345",
    "-26588.24",
    "1" * 130 + "." + "7" * 100,
    "1e130",
    "-1e-130",
    "0.000",
]
_DATES = [
    "infinity",
    "-infinity",
    "4714-11-24 BC",
    "0001-12-31 BC",
    "0001-01-01",
    "1582-10-10",
    "2020-02-29",
    "5874897-12-31",
]
_STAMPS = [
    "infinity",
    "-infinity",
    "4714-11-24 00:00:00 BC",
    "0001-12-31 23:59:59.9 BC",
    "0001-01-01 00:00:00",
    "1582-10-10 12:00:00",
    "1999-12-31 23:59:59.999999",
    "2020-01-01 12:34:56.1234",
    "2020-03-29 02:30:00",
    "294276-12-31 23:59:59.999999",
]
_ZONED = [*_STAMPS, "2020-10-25 02:30:00+02", "2020-10-25 02:30:00+01", "1900-01-01 00:00:00+07:07:12"]
_INTERVALS = [
    "0",
    "1 mon -1 days",
    "-1 years -2 mons +3 days -04:05:06.000001",
    "178000000 years",
    "00:00:00.000001",
    "-00:00:00.5",
    "1 day -00:00:01",
    "-2147483648 days",
    "2562047788:00:54.775807",
    "-2562047788:00:54.775807",
    "25:01:01",
    "1 year 1 mon 1 day 01:01:01",
    "infinity",
    "-infinity",
]
_JSON = [
    '{"b": 1,  "a":2, "a":3}',
    "null",
    '"x"',
    "1234567890123456789012345",
    "1.10",
    '{"é": "\\ud83d\\ude00", "n": null}',
    "[1, [2, {}], []]",
    "true",
    '{"a":"' + "y" * 3000 + '"}',
    '"a\\nb\\\\c\\"d"',
]

CASES: dict[str, list[str]] = {
    "bool": ["t", "f"],
    "int2": ["-32768", "32767", "0"],
    "int4": ["-2147483648", "2147483647"],
    "int8": ["-9223372036854775808", "9223372036854775807", "9007199254740993"],
    "oid": ["0", "4294967295"],
    "float4": ["NaN", "Infinity", "-Infinity", "-0", "1e-45", "3.4028235e38", "0.1", "1e6", "16777217", "1.5"],
    "float8": [
        "NaN",
        "Infinity",
        "-Infinity",
        "-0",
        "5e-324",
        "1.7976931348623157e308",
        "0.1",
        "1e15",
        "1e-5",
        "2e-323",
    ],
    "numeric": _NUMBERS,
    "numeric(10,2)": ["-26588.24", "-26672.12", "0.10", "NaN", "99999999.99"],
    "numeric(38,10)": ["1234567890123456789012345678.0123456789"],
    "numeric(50,5)": ["-" + "9" * 45 + ".00001"],
    "numeric(5,-2)": ["1234567", "-49", "100"],
    "numeric(3,5)": ["0.00123"],
    "text": _ODD_TEXT,
    "varchar": _ODD_TEXT,
    "varchar(20)": ["v", "é" * 20, ""],
    "bpchar": ["a  ", ""],
    "char(5)": ["", "ab", "é😀"],
    '"char"': ["", "a", "\\377"],
    "name": ["", "n" * 63, 'é"x'],
    "citext": ["CiT", "", "ÀÉ"],
    "bytea": ["\\x", "\\x00ff5c27", "\\x5c783030", "\\x" + "00ff" * 3000],
    "json": _JSON,
    "jsonb": _JSON,
    "jsonpath": ["$.a[*]", '$."é" ? (@.x > 1)', "strict $"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"],
    "date": _DATES,
    "time": ["00:00:00", "24:00:00", "23:59:59.999999", "12:00:00.5"],
    "time(0)": ["23:59:59", "24:00:00"],
    "timetz": ["12:34:56+02:30", "24:00:00-15:59", "00:00:00+15:59:59", "23:59:59.999999+00"],
    "timestamp": _STAMPS,
    "timestamp(0)": ["2020-01-01 12:34:56.5"],
    "timestamp(3)": ["2020-01-01 12:34:56.1235"],
    "timestamptz": _ZONED,
    "timestamptz(3)": ["2020-01-01 12:34:56.1235+07"],
    "interval": _INTERVALS,
    "interval day to second(3)": ["1 day 00:00:01.2345"],
    "money": ["-92233720368547758.08", "92233720368547758.07", "0", "1234.5", "-0.01"],
    "bit(1)": ["0", "1"],
    "bit(3)": ["101", "000"],
    "varbit": ["", "0", "10101", "1" * 65],
    "varbit(8)": ["1", "00000000"],
    "inet": ["192.168.1.5/24", "10.0.0.1", "::1", "2001:db8::1/64", "0.0.0.0/0"],
    "cidr": ["10.0.0.0/8", "::/0", "2001:db8::/32"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "pg_lsn": ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"],
    "pg_snapshot": ["10:20:10,14,15", "1:1:"],
    "txid_snapshot": ["10:20:10,14,15"],
    "xid": ["4294967295"],
    "xid8": ["18446744073709551615"],
    "cid": ["4294967295"],
    "tid": ["(4294967295,65535)"],
    "refcursor": ["a cursor"],
    "regclass": ["pg_class"],
    "regtype": ["integer", "-"],
    "regproc": ["now", "-"],
    "regprocedure": ["sqrt(numeric)", "-"],
    "regoper": ["||/", "0"],
    "regoperator": ["+(integer,integer)", "0"],
    "regconfig": ["simple"],
    "regdictionary": ["simple"],
    "regnamespace": ["pg_catalog", '"Odd schema"'],
    "regrole": ["pg_monitor"],
    "regcollation": ['"C"'],
    "aclitem": ["=r/pg_monitor"],
    "point": ["(1,2)", "(-0,1e300)", "(NaN,Infinity)", "(0.1,5e-324)"],
    "line": ["{1,2,3}", "{-0.1,1e-300,0}"],
    "lseg": ["[(0,0),(1,1.5)]"],
    "box": ["(1,1),(0,0)", "(0.1,1e15),(-1,-2)"],
    "path": ["((0,0),(1,1),(2,0))", "[(0,0),(1,1)]"],
    "polygon": ["((0,0),(1,1),(2,0))", "((1e20,2))"],
    "circle": ["<(0,0),2>", "<(1,-1),0>"],
    "tsvector": ["'a':1 'b':2A,3B", "", "'it''s' 'é\\\\'"],
    "tsquery": ["'a' & 'b'", "!'x' | 'y':*AB <2> 'z'"],
    "int2vector": ["", "1 2 3"],
    "oidvector": ["", "1 4294967295"],
    "int4range": ["empty", "[1,5)", "(,)", "[1,)", "(,5)"],
    "int8range": ["[-9223372036854775808,9223372036854775807)"],
    "numrange": ["[1.50,2.5]", "(NaN,NaN)", "[-Infinity,Infinity]"],
    "tsrange": ["[2020-01-01,2020-02-01)", "[-infinity,infinity]"],
    "tstzrange": ["[2020-01-01 00:00+07,2020-02-01 00:00+00)", "[4714-11-24 00:00:00+00 BC,infinity)"],
    "daterange": ["[2020-01-01,2020-02-01)", "[,infinity]"],
    "int4multirange": ["{}", "{[1,3),[5,7)}", "{(,)}"],
    "int8multirange": ["{[1,3)}"],
    "nummultirange": ["{[1.10,2.20]}"],
    "tsmultirange": ["{[2020-01-01,2020-02-01)}"],
    "tstzmultirange": ["{[2020-01-01 00:00+07,2020-02-01 00:00+00)}"],
    "datemultirange": ["{[2020-01-01,2020-02-01),[2021-01-01,)}"],
    "floatrange": ["[0.1,1e300)"],
    "textrange": ['["a,b","c""d"]'],
    "hstore": ["", "a=>1, b=>NULL", '"k\\"é"=>"v\\\\", ""=>"", "NULL"=>"NULL"'],
    "ltree": ["a.b.c", ""],
    "lquery": ["*.a|b.*{1,2}"],
    "ltxtquery": ["a & b*"],
    "cube": ["(1,2,3)", "(0.1),(5e-324)"],
    "seg": ["1.5 .. 2.5", "~5.0", "6.25e1 ..", "1.50"],
    "isbn": ["0-393-04002-X"],
    "isbn13": ["978-0-393-04002-9"],
    "ean13": ["978-0-393-04002-9"],
    "ismn": ["979-0-2600-0043-8"],
    "issn": ["1436-4522"],
    "issn13": ["977-1436-452-00-8"],
    "ismn13": ["979-0-2600-0043-8"],
    "upc": ["220356483481"],
    "vector": ["[1,2,3]"],
    "vector(3)": ["[0.1,-1e-30,3e30]"],
    "halfvec": ["[1,-2.5]"],
    "sparsevec": ["{1:1,3:2.5}/5"],
    "mood": ["sad", "très bien", 'a"b', ""],
    '"Odd schema"."Mood"': ["x"],
    '"Odd schema".money': ["much"],
    '"Odd schema"."date"': ["(x)"],
    "pair": ['(1,"a,b")', "(,)", '(,"")'],
    "nest": ['("(1,""a,b"")","{sad,NULL}","2020-01-01 00:00:00+07")'],
    "positive": ["5"],
    "very_positive": ["2147483647"],
    "exact": ["5", "-1.5"],
    "zoned": ["12:34:56+02:30"],
    "words": _arrays("a", "NULL"),
    "note": _ODD_TEXT,
    "int4[]": _arrays("1", "-2"),
    "int8[]": _arrays("9223372036854775807"),
    "bool[]": _arrays("t", "f"),
    "text[]": _arrays(*_ODD_TEXT[:12]),
    "varchar(20)[]": _arrays("v", "a b"),
    "char(3)[]": _arrays("a"),
    "numeric[]": _arrays("1.10", "NaN", "-Infinity", "1e-45"),
    "numeric(10,2)[]": _arrays("1.1"),
    "float4[]": _arrays("0.1", "NaN", "3.4028235e38"),
    "float8[]": _arrays("0.1", "-0", "5e-324"),
    "date[]": _arrays(*_DATES),
    "time[]": _arrays("24:00:00"),
    "timetz[]": _arrays("12:34:56+02:30"),
    "timestamp[]": _arrays(*_STAMPS),
    "timestamptz[]": _arrays(*_ZONED),
    "interval[]": _arrays(*_INTERVALS),
    "money[]": _arrays("1234.5", "-0.01"),
    "uuid[]": _arrays("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "bytea[]": _arrays("\\x", "\\x00ff5c27"),
    "json[]": _arrays(*_JSON[:4]),
    "jsonb[]": _arrays(*_JSON),
    "inet[]": _arrays("10.0.0.1", "::1"),
    "bit(3)[]": _arrays("101"),
    "varbit[]": _arrays("1", ""),
    "point[]": _arrays("(1,2)"),
    "box[]": ["{(1,1),(0,0);(2,2),(1,1)}"],
    "int4range[]": _arrays("[1,3)", "empty"),
    "int4multirange[]": _arrays("{[1,3)}"),
    "tsvector[]": _arrays("'a':1"),
    "oid[]": _arrays("4294967295"),
    "name[]": _arrays("n"),
    "hstore[]": _arrays("a=>1"),
    "citext[]": _arrays("AbC"),
    "mood[]": _arrays("sad", "très bien", ""),
    "pair[]": _arrays('(1,"a,b")'),
    "positive[]": _arrays("5"),
    "words[]": ['{"{a,b}"}'],
    "vector[]": _arrays("[1,2,3]"),
}

_MANY = "(SELECT array_agg(md5(i::text || %L)) FROM generate_series(1, 400) i)"
_HEX = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 400) i)"
_INTS = "(SELECT array_agg((i * 7919) % 1000003) FROM generate_series(1, 3000) i)"

LARGE: dict[str, str] = {
    "text": f"repeat({_HEX}, 100)",
    "varchar": _HEX,
    "bpchar": _HEX,
    "citext": _HEX,
    "note": _HEX,
    "refcursor": f"{_HEX}::refcursor",
    "bytea": f"decode({_HEX}, 'hex')",
    "json": f"to_json({_HEX})",
    "jsonb": f"jsonb_build_object('k', {_HEX})",
    "jsonpath": f"('$.\"' || {_HEX} || '\"')::jsonpath",
    "numeric": "(repeat('1234567890', 10000) || '.' || repeat('987654321', 1000))::numeric",
    "varbit": f"('x' || {_HEX})::varbit",
    "tsvector": "(SELECT string_agg(md5(i::text), ' ') FROM generate_series(1, 400) i)::tsvector",
    "hstore": "(SELECT hstore(array_agg(md5(i::text)), array_agg(md5((-i)::text))) FROM generate_series(1, 200) i)",
    "ltree": "(SELECT string_agg(md5(i::text), '.') FROM generate_series(1, 400) i)::ltree",
    "polygon": "(SELECT '(' || string_agg(format('(%s,%s)', i, i * 7919 % 10007), ',') || ')' FROM "
    "generate_series(1, 1000) i)::polygon",
    "path": "(SELECT '[' || string_agg(format('(%s,%s)', i, i * 7919 % 10007), ',') || ']' FROM "
    "generate_series(1, 1000) i)::path",
    "vector": "(SELECT array_agg(sin(i))::vector FROM generate_series(1, 3000) i)",
    "pg_snapshot": "(SELECT '1:99999999:' || string_agg((i * 7919)::text, ',' ORDER BY i) FROM "
    "generate_series(1, 1500) i)::pg_snapshot",
    "int4multirange": "(SELECT range_agg(int4range(i * 3, i * 3 + 1)) FROM generate_series(1, 2000) i)",
    "textrange": f"textrange('a', 'b' || {_HEX})",
    "pair": f"ROW(1, {_HEX})::pair",
    "text[]": _MANY.replace("%L", "'a'"),
    "words": _MANY.replace("%L", "'a'"),
    "varchar(20)[]": f"(SELECT array_agg(left(v, 20)) FROM unnest({_MANY.replace('%L', chr(39) * 2)}) v)",
    "char(3)[]": f"(SELECT array_agg(left(v, 3)) FROM unnest({_MANY.replace('%L', chr(39) * 2)}) v)",
    "int4[]": _INTS,
    "int8[]": _INTS,
    "numeric[]": _INTS,
    "float8[]": f"(SELECT array_agg(sin(v)) FROM unnest({_INTS}) v)",
    "date[]": "(SELECT array_agg(date '2000-01-01' + i * 37) FROM generate_series(1, 3000) i)",
    "timestamptz[]": "(SELECT array_agg(to_timestamp(i * 37.5)) FROM generate_series(1, 3000) i)",
    "interval[]": "(SELECT array_agg(i * interval '37 s') FROM generate_series(1, 3000) i)",
    "money[]": "(SELECT array_agg(i::money) FROM generate_series(1, 3000) i)",
    "uuid[]": f"(SELECT array_agg(v::uuid) FROM unnest({_MANY.replace('%L', chr(39) * 2)}) v)",
    "bytea[]": f"(SELECT array_agg(v::bytea) FROM unnest({_MANY.replace('%L', chr(39) * 2)}) v)",
    "json[]": f"(SELECT array_agg(to_json(v)) FROM unnest({_MANY.replace('%L', chr(39) * 2)}) v)",
    "jsonb[]": f"(SELECT array_agg(to_jsonb(v)) FROM unnest({_MANY.replace('%L', chr(39) * 2)}) v)",
    "mood[]": "(SELECT array_agg((ARRAY['sad','très bien']::mood[])[1 + i % 2]) FROM generate_series(1, 3000) i)",
    "pair[]": f"(SELECT array_agg(ROW(1, v)::pair) FROM unnest({_MANY.replace('%L', chr(39) * 2)}) v)",
    "hstore[]": f"(SELECT array_agg(hstore(v, v)) FROM unnest({_MANY.replace('%L', chr(39) * 2)}) v)",
}


def _text(source: random.Random) -> str:
    return "".join(
        chr(
            source.choice([source.randrange(1, 128), source.randrange(160, 0xD800), source.randrange(0xE000, 0x110000)])
        )
        for _ in range(source.randrange(40))
    )


def _float8(source: random.Random) -> str:
    (value,) = struct.unpack("<d", source.randbytes(8))
    return repr(value) if math.isfinite(value) else "NaN"


def _float4(source: random.Random) -> str:
    (value,) = struct.unpack("<f", source.randbytes(4))
    return repr(value) if math.isfinite(value) else "NaN"


def _numeric(source: random.Random) -> str:
    digits = "".join(source.choices("0123456789", k=source.randrange(1, 60)))
    place = source.randrange(len(digits) + 1)
    return source.choice(["", "-"]) + (digits[:place] or "0") + "." + digits[place:]


def _day(source: random.Random) -> tuple[str, str]:
    day = (date(1, 1, 1) + timedelta(days=source.randrange(3652058))).isoformat()
    era = source.choice(["", " BC"])
    return (day, "" if day.endswith("02-29") or day > "4700" else era)


def _date(source: random.Random) -> str:
    return "".join(_day(source))


def _stamp(source: random.Random) -> str:
    day, era = _day(source)
    return f"{day} {_time(source)}{era}"


def _time(source: random.Random) -> str:
    micros = source.randrange(10 ** source.randrange(1, 7))
    return f"{source.randrange(24):02}:{source.randrange(60):02}:{source.randrange(60):02}.{micros:06}"


def _interval(source: random.Random) -> str:
    months, days, time = (source.choice(["", "-"]) for _ in range(3))
    return (
        f"{months}{source.randrange(10**5)} mons {days}{source.randrange(10**5)} days "
        f"{time}{source.randrange(10**4)}:{source.randrange(60)}:{source.randrange(60)}.{source.randrange(10**6):06}"
    )


def _nested(source: random.Random) -> str:
    rows, width = source.randrange(1, 4), source.randrange(1, 4)
    low = source.randrange(-3, 4)
    body = ",".join("{" + ",".join(_quote(_text(source)) for _ in range(width)) + "}" for _ in range(rows))
    return f"[{low}:{low + rows - 1}][1:{width}]={{{body}}}"


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _json(source: random.Random) -> str:
    return json.dumps({_text(source): [source.randrange(10**9), _text(source)]}).replace("\\u0000", "")


RANDOM: dict[str, Callable[[random.Random], str]] = {
    "int8": lambda source: str(source.randrange(-(2**63), 2**63)),
    "float4": _float4,
    "float8": _float8,
    "numeric": _numeric,
    "text": _text,
    "bytea": lambda source: "\\x" + source.randbytes(source.randrange(60)).hex(),
    "json": _json,
    "jsonb": _json,
    "date": _date,
    "time": _time,
    "timetz": lambda source: f"{_time(source)}{source.choice('+-')}{source.randrange(15):02}:{source.randrange(60):02}",
    "timestamp": _stamp,
    "timestamptz": _stamp,
    "interval": _interval,
    "money": lambda source: f"{source.randrange(-(2**63), 2**63) // 100}.{source.randrange(100):02}",
    "uuid": lambda source: str(uuid.UUID(int=source.getrandbits(128))),
    "varbit": lambda source: "".join(source.choices("01", k=source.randrange(80))),
    "inet": lambda source: str(source.randrange(256)) + ".1.2.3/" + str(source.randrange(33)),
    "point": lambda source: f"({_float8(source)},{_float8(source)})",
    "text[]": _nested,
    "hstore": lambda source: f"{_quote(_text(source))}=>{_quote(_text(source))}",
    "pair": lambda source: f"({source.randrange(10)},{_quote(_text(source))})",
}
