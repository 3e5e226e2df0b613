"""The plain loops for a few rows give what DuckDB gives for many."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from cdc_runner.capture.base import TableChanges, TableVersion
from cdc_runner.destinations.postgres import encode
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.shaping import net

MARK = "001"
TEXTS = [None, "", "a", "é😀", 'q"\\', "tab\tline\n", "~rosetta", "\\N", "x" * 300]


def _schema(key: tuple[str, ...], identity: ReplicaIdentity) -> TableSchema:
    columns = tuple(Column(name, "text", "text") for name in ("k", "Wei/rd ~", "v"))
    return TableSchema(TableId("public", "t"), columns, key, key, identity)


def _rows(keyed: bool, chance: random.Random, count: int, *, truncate: bool, left_out: float) -> pa.Table:
    """Return rows as an engine gives them: of a table without a key an update is a delete and an insert."""
    rows = []
    for number in range(count):
        op = chance.choice("uuuud" if keyed else "iiid")
        values: list[str | None] = [str(chance.randint(1, 5)), chance.choice(TEXTS), chance.choice(TEXTS)]
        mark = MARK if keyed and op == "u" and chance.random() < left_out else None
        if mark:
            values[2] = None
        if keyed and op == "d":
            values[1:] = None, None
        if truncate and chance.random() < 0.1:
            op, mark, values = "t", None, [None, None, None]
        rows.append((2 * number + (op in "ui"), op, mark, *values))
    types = [pa.int64(), *[pa.string()] * 5]
    columns = zip(zip(*rows, strict=True), types, strict=True)
    return pa.table([pa.array(column, type_) for column, type_ in columns], names=["ord", "op", "x", "c0", "c1", "c2"])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("left_out", [0.0, 0.5])
def test_net_changes_agree(monkeypatch: pytest.MonkeyPatch, seed: int, keyed: bool, left_out: float) -> None:
    """Shape the same rows in both ways."""
    chance = random.Random(seed)
    identity = ReplicaIdentity.DEFAULT if keyed else ReplicaIdentity.FULL
    version = TableVersion(_schema(("k",) if keyed else (), identity), 1)
    rows = _rows(keyed, chance, chance.randint(1, 60), truncate=seed % 2 == 0, left_out=left_out)
    shaper = net.NetShaper()
    small = list(shaper.shape(TableChanges(version, rows)))
    monkeypatch.setattr(net, "TINY_ROWS", 0)
    large = list(shaper.shape(TableChanges(version, rows)))
    for one, other in zip(small, large, strict=True):
        assert (one.kind, one.truncate, one.partial) == (other.kind, other.truncate, other.partial)
        assert other.deletes or not one.deletes
        assert one.rows.schema.equals(other.rows.schema)
        assert sorted(map(str, one.rows.to_pylist())) == sorted(map(str, other.rows.to_pylist()))


def test_binary_copy_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Byte for byte what DuckDB writes, NULLs and negative numbers included."""
    rows = pa.table(
        {
            "n": pa.array([-1, 2, None], pa.int64()),
            "d": pa.array([True, False, None], pa.bool_()),
            "x": pa.nulls(3, pa.string()),
            "c0": pa.array(["", "é😀", None], pa.string()),
        }
    )
    columns = [("n", "bigint"), ("d", "boolean"), ("x", "text"), ("c0", "text")]
    encoder = encode.BinaryEncoder(tmp_path)
    with encoder.encoded(rows, columns) as file:
        small = file.read()
    monkeypatch.setattr(encode, "TINY_ROWS", 0)
    with encoder.encoded(rows, columns) as file:
        assert file.read() == small
    monkeypatch.setattr(encode, "LARGE_ROW_BYTES", 0)
    with encoder.encoded(rows.slice(0, 3), columns) as file:
        # Many small values make a large row, too.
        assert not isinstance(getattr(file, "raw", None), encode.LargeRows)
        assert file.read() == small
    monkeypatch.setattr(encode, "LARGE_VALUE_BYTES", 0)
    with encoder.encoded(rows.slice(0, 3), columns) as file:
        assert isinstance(getattr(file, "raw", None), encode.LargeRows)
        assert b"".join(iter(lambda: file.read(7), b"")) == small
    assert list(tmp_path.iterdir()) == []
