"""Row messages to rows: the vectorised way, the plain loop and an independent reading of the protocol agree."""

from __future__ import annotations

import random
import struct

import pytest

from cdc_runner.capture.rows.columns import HEADER, Layout, decode, pack
from cdc_runner.capture.rows.plain import decode_plainly

Value = str | None | bool
"""A text, None for NULL, True for a large value that is not in the message."""


def tuple_bytes(values: list[Value]) -> bytes:
    out = struct.pack(">h", len(values))
    for value in values:
        if value is None:
            out += b"n"
        elif value is True:
            out += b"u"
        else:
            data = str(value).encode()
            out += b"t" + struct.pack(">i", len(data)) + data
    return out


def message(kind: str, old: tuple[str, list[Value]] | None, new: list[Value] | None, prefix: int) -> bytes:
    out = kind.encode() + b"\x00\x01\x02\x03\x04\x05\x06\x07"[: prefix - 1]
    if old is not None:
        out += old[0].encode() + tuple_bytes(old[1])
    if new is not None:
        out += b"N" + tuple_bytes(new)
    return out


def piece(messages: list[bytes], prefix: int = 5, layout: int = 0) -> bytes:
    return HEADER.pack(layout, prefix, len(messages), 0) + pack(messages)


def random_text(chance: random.Random) -> str:
    return chance.choice(["", "a", "NULL", "ä" * 3, "x" * chance.randint(0, 40), "line\nfeed", "\x01t\x7f"])


def random_messages(chance: random.Random, prefix: int, *, keyed: bool, width: int, count: int) -> list[bytes]:
    """Messages as a server would send them; the key, if there is one, is column 1."""
    found = []
    for _ in range(count):
        new: list[Value] = [chance.choice([None, random_text(chance)]) for _ in range(width)]
        old: list[Value] = [chance.choice([None, random_text(chance)]) for _ in range(width)]
        if keyed:
            new[1], old[1] = str(chance.randint(0, 5)), str(chance.randint(0, 5))
        kind = chance.choice("IUUUDT" if chance.random() < 0.5 else "IU")
        full = chance.random() < 0.5 or not keyed
        if kind == "T":
            found.append(message("T", None, None, prefix))
        elif kind == "I":
            found.append(message("I", None, new, prefix))
        else:
            key_only: list[Value] = [value if place == 1 else None for place, value in enumerate(old)]
            before: tuple[str, list[Value]] = ("O", old) if full else ("K", key_only)
            if kind == "D":
                found.append(message("D", before, None, prefix))
                continue
            for place in range(width):
                if chance.random() < 0.2 and (place != 1 or not keyed) and (old[place] is not None or not full):
                    new[place] = True
            with_old = chance.random() < 0.5 or not keyed
            found.append(message("U", before if with_old else None, new, prefix))
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "keyless"])
def test_both_ways_give_the_same_rows(seed: int, keyed: bool) -> None:
    chance = random.Random(seed)
    width = chance.randint(2, 6)
    places = list(range(width))
    chance.shuffle(places)
    layouts = [Layout(width, tuple(places), (places.index(1),) if keyed else ())]
    pieces = [
        piece(random_messages(chance, prefix, keyed=keyed, width=width, count=chance.randint(1, 90)), prefix)
        for prefix in chance.choices([5, 9], k=4)
    ]
    fast, plain = decode(layouts, pieces), decode_plainly(layouts, pieces)
    fast.validate(full=True)
    assert set(fast.column_names) == set(plain.column_names)
    assert fast.select(plain.column_names).to_pylist() == plain.to_pylist()


def both(layout: Layout, messages: list[bytes]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = decode([layout], [piece(messages)]).to_pylist()
    assert decode_plainly([layout], [piece(messages)]).to_pylist() == rows
    return rows


KEYED = Layout(3, (0, 1, 2), (0,))
KEYLESS = Layout(2, (0, 1), ())


def test_inserts_and_plain_updates_carry_every_value() -> None:
    rows = both(KEYED, [message("I", None, ["1", None, ""], 5), message("U", None, ["1", "a", "b"], 5)])
    assert rows == [
        {"ord": 1, "op": "u", "x": None, "c0": "1", "c1": None, "c2": ""},
        {"ord": 3, "op": "u", "x": None, "c0": "1", "c1": "a", "c2": "b"},
    ]


def test_a_value_that_did_not_change_is_marked() -> None:
    rows = both(KEYED, [message("U", None, ["1", True, "b"], 5), message("I", None, ["2", "a", "b"], 5)])
    assert [(row["x"], row["c1"]) for row in rows] == [("010", None), (None, "a")]


def test_a_full_old_row_gives_the_value_that_did_not_change() -> None:
    rows = both(KEYED, [message("U", ("O", ["1", "large", "b"]), ["1", True, "c"], 5)])
    assert rows == [{"ord": 1, "op": "u", "x": None, "c0": "1", "c1": "large", "c2": "c"}]


def test_a_changed_key_is_a_delete_and_a_row_or_a_move() -> None:
    whole = both(KEYED, [message("U", ("K", ["1", None, None]), ["2", "a", "b"], 5)])
    assert [(row["ord"], row["op"], row["c0"], row["c1"]) for row in whole] == [(0, "d", "1", None), (1, "u", "2", "a")]
    moved = both(KEYED, [message("U", ("K", ["1", None, None]), ["2", True, "b"], 5)])
    assert moved == [{"ord": 1, "op": "m", "x": "010", "c0": "2", "c1": None, "c2": "b", "k0": "1"}]


def test_a_full_old_row_with_the_same_key_is_an_update() -> None:
    rows = both(KEYED, [message("U", ("O", ["1", "a", "b"]), ["1", "c", "d"], 5)])
    assert [row["op"] for row in rows] == ["u"]


def test_a_delete_carries_the_key_only() -> None:
    rows = both(KEYED, [message("D", ("O", ["1", "a", "b"]), None, 5)])
    assert rows == [{"ord": 0, "op": "d", "x": None, "c0": "1", "c1": None, "c2": None}]


def test_a_table_without_a_key_loses_and_gains_whole_rows() -> None:
    rows = both(
        KEYLESS,
        [
            message("I", None, ["1", "a"], 5),
            message("U", ("O", ["1", "large"]), ["2", True], 5),
            message("T", None, None, 5),
            message("D", ("O", ["2", None]), None, 5),
        ],
    )
    assert [(row["ord"], row["op"], row["c0"], row["c1"]) for row in rows] == [
        (1, "i", "1", "a"),
        (2, "d", "1", "large"),
        (3, "i", "2", "large"),
        (4, "t", None, None),
        (6, "d", "2", None),
    ]


def test_columns_that_the_table_does_not_have_are_passed_over() -> None:
    rows = both(Layout(3, (2, 0), (1,)), [message("I", None, ["1", "left out", "c"], 5)])
    assert rows == [{"ord": 1, "op": "u", "x": None, "c0": "c", "c1": "1"}]
