"""Work that is one item ahead of its reader."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cdc_runner.pipeline.shaped import ahead
from tests.support.waiting import wait_for


def test_items_come_in_order_and_the_next_is_made_meanwhile() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    items = ahead(make)
    assert next(items) == 0
    wait_for(lambda: len(made) >= 2, 5, "the next item")
    assert list(items) == [1, 2, 3, 4]


def test_an_error_comes_after_the_items_before_it() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = ahead(make)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_a_reader_that_gives_up_ends_the_thread() -> None:
    closed = threading.Event()

    def make() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    items = ahead(make)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]  # it is a generator
    wait_for(lambda: not any(thread.name == "shape" for thread in threading.enumerate()), 5, "the thread to end")
    assert closed.wait(5)
