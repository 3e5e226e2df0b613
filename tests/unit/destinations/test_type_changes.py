"""Statements that bring an enum to the labels of the source."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cdc_runner.destinations.postgres.type_changes import change_labels


def statements(wanted: str, present: str, *, rename: bool = True) -> list[str]:
    return [statement for statement, _ in change_labels("e", list(wanted), list(present), rename=rename)]


def test_labels_get_their_place() -> None:
    assert statements("xab", "ab") == ["ALTER TYPE e ADD VALUE 'x' BEFORE 'a'"]
    assert statements("axyb", "ab") == ["ALTER TYPE e ADD VALUE 'x' AFTER 'a'", "ALTER TYPE e ADD VALUE 'y' AFTER 'x'"]
    assert statements("x", "") == ["ALTER TYPE e ADD VALUE 'x'"]
    assert statements("ab", "ba") == []


def test_label_between_the_same_neighbours_was_renamed() -> None:
    assert statements("aXc", "abc") == ["ALTER TYPE e RENAME VALUE 'b' TO 'X'"]
    assert statements("aXc", "abc", rename=False) == ["ALTER TYPE e ADD VALUE 'X' AFTER 'a'"]
    assert statements("XYc", "abc") == ["ALTER TYPE e RENAME VALUE 'a' TO 'X'", "ALTER TYPE e RENAME VALUE 'b' TO 'Y'"]


def test_label_is_not_taken_as_renamed_where_it_is_not_clear() -> None:
    assert statements("aXYc", "abc") == ["ALTER TYPE e ADD VALUE 'X' AFTER 'a'", "ALTER TYPE e ADD VALUE 'Y' AFTER 'X'"]
    assert statements("aXc", "cba") == ["ALTER TYPE e ADD VALUE 'X' AFTER 'a'"]


labels = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(labels, labels)
def test_every_label_of_the_source_is_there_afterwards(wanted: list[str], present: list[str]) -> None:
    have = set(present)
    for statement, _ in change_labels("e", wanted, present, rename=True):
        words = statement.replace("'", "").split()
        if "RENAME" in words:
            have.remove(words[5])
            have.add(words[7])
        else:
            assert words[6:] == [] or words[7] in have
            have.add(words[5])
    assert have >= set(wanted)
