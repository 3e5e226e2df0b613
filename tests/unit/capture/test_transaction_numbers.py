"""The engine `pgoutput` tells the numbers of a batch's transactions, stamped or not."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cdc_runner.capture.assemble import assemble
from cdc_runner.capture.base import transaction_numbers
from cdc_runner.capture.buffer import Part
from cdc_runner.capture.pgoutput.transactions import TransactionReader
from cdc_runner.position import Position


class _NoTables:
    """Relations of which none is captured."""

    def resolve(self, _: object) -> None:
        return None

    def forget(self) -> None:
        pass


def _transaction(number: int, end: int) -> list[bytes]:
    return [b"B" + struct.pack(">QQI", end - 8, 0, number), b"C\0" + struct.pack(">QQQ", end - 8, end, 0)]


def _streamed(number: int, end: int) -> list[bytes]:
    named = struct.pack(">I", number)
    return [b"S" + named + b"\1", b"E", b"c" + named + b"\0" + struct.pack(">QQQ", end - 8, end, 0)]


@pytest.mark.parametrize("stamped", [False, True])
def test_a_batch_has_the_numbers_of_its_transactions(tmp_path: Path, stamped: bool) -> None:
    parts: list[Part] = []

    def put(part: Part) -> bool:
        parts.append(part)
        return True

    relations: Any = _NoTables()
    reader = TransactionReader(relations, put, tmp_path, [Position(250)], stamped=stamped)
    messages = [*_transaction(7, 100), *_transaction(0xFFFFFFFF, 200), *_transaction(8, 300), *_streamed(9, 400)]
    reader.feed([*messages, *_transaction(10, 500)], 1000)
    assert [transaction_numbers(part.numbers) for part in parts] == [{7, 0xFFFFFFFF}, {8}, {9}, {10}]
    batch = assemble(parts[1:], 1000, lambda version, pieces: pa.table({}))
    assert transaction_numbers(batch.numbers) == {8, 9, 10}
    parts.clear()
    reader.restart()
    reader.feed([*_transaction(10, 500), *_transaction(11, 600)], 1000)
    assert [transaction_numbers(part.numbers) for part in parts] == [{11}], "what comes again is passed over"
