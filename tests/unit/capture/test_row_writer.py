"""The byte string of a batch of Debezium, cut into pieces by table, without a JVM."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from cdc_runner.capture.debezium import row_writer, row_writer_source
from cdc_runner.capture.rows.columns import HEADER, Layout, pack
from cdc_runner.capture.rows.plain import rows_of

INSERT = b"IN" + struct.pack(">h", 2) + b"t" + struct.pack(">i", 1) + b"7" + b"n"
DELETE = b"DO" + struct.pack(">h", 2) + b"t" + struct.pack(">i", 1) + b"8" + b"n"


def piece(table: int, messages: list[bytes]) -> bytes:
    return HEADER.pack(table, row_writer_source.PREFIX, len(messages), 0) + pack(messages)


def batch(tables: list[tuple[int, list[bytes]]]) -> bytes:
    pieces = [(table, len(messages), piece(table, messages)) for table, messages in tables]
    heads = b"".join(struct.pack("<III", table, count, len(data)) for table, count, data in pieces)
    return struct.pack("<I", len(pieces)) + heads + b"".join(data for _, _, data in pieces) + b"unused"


def test_each_table_gets_its_piece_and_an_empty_one_is_left_out() -> None:
    """A table of which only the first half of a changed key has come has no message yet."""
    found = list(row_writer._cut(batch([(4, [INSERT]), (0, []), (9, [DELETE, INSERT])])))
    assert [(one.table, one.messages, one.data) for one in found] == [
        (4, 1, piece(4, [INSERT])),
        (9, 2, piece(9, [DELETE, INSERT])),
    ]


def test_large_values_are_put_where_they_belong(tmp_path: Path) -> None:
    """One at the end of a piece, two in the next, none in the last."""
    values = {f"~large-1~{len(text)}:{tmp_path}/{text[:1]}:~.part": text for text in ("aaaa", "bbbbb", "ccc")}
    for name, text in values.items():
        Path(name.split(":", 1)[1]).write_text(text)
    names = list(values)
    pieces = [(7, b"<1><|"), (8, b"<2|><3|>"), (9, b"<4>")]
    heads = b"".join(struct.pack("<III", table, 1, len(data.replace(b"|", b""))) for table, data in pieces)
    body = b"".join(data for _, data in pieces)
    start = 4 + len(heads)
    places = [
        start + place - number for number, place in enumerate(i for i, sign in enumerate(body) if sign == ord("|"))
    ]
    whole = struct.pack("<I", 3) + heads + body.replace(b"|", b"")
    found = list(row_writer._cut(whole, list(zip(places, names, strict=True))))
    assert [one.data for one in found] == [b"<1><aaaa", b"<2bbbbb><3ccc>", b"<4>"]


@pytest.mark.parametrize("count", [1, 100])
def test_messages_without_a_relation_are_cut_like_those_with_one(count: int) -> None:
    """By the plain loop, and by numpy."""
    layouts = {3: Layout(2, (0, 1), (0,))}
    rows = rows_of(layouts, [piece(3, [INSERT, DELETE] * count)]).to_pylist()
    assert [(row["ord"], row["op"], row["c0"], row["c1"]) for row in rows[:2]] == [
        (1, "u", "7", None),
        (2, "d", "8", None),
    ]
    assert len(rows) == 2 * count
