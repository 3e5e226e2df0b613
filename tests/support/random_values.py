"""Random input texts of PostgreSQL's types, far beyond the values that people think of."""

from __future__ import annotations

import json
import math
import random
import struct
import uuid
from collections.abc import Callable
from datetime import date, timedelta


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
