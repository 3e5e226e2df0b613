"""The plain loops for a few rows give what DuckDB gives for many."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from cdc_runner.capture.base import TableChanges, TableVersion
from cdc_runner.capture.debezium import decode, tiny
from cdc_runner.destinations.postgres import encode
from cdc_runner.schema import Column, ReplicaIdentity, TableId, TableSchema
from cdc_runner.shaping import net

MARKER = "~rosetta-unchanged-0~"
TEXTS = [None, "", "a", "é😀", 'q"\\', "tab\tline\n", "~rosetta", "\\N", "x" * 300]


def _schema(key: tuple[str, ...], identity: ReplicaIdentity) -> TableSchema:
    columns = tuple(Column(name, "text", "text") for name in ("k", "Wei/rd ~", "v"))
    return TableSchema(TableId("public", "t"), columns, key, key, identity)


def _events(schema: TableSchema, chance: random.Random, count: int, *, truncate: bool, left_out: float) -> bytes:
    lines = []
    for _ in range(count):
        op = chance.choice("ccuuud")
        after = {name: chance.choice(TEXTS) for name in schema.stream_names} | {"k": str(chance.randint(1, 5))}
        if op == "u" and chance.random() < left_out:
            after["v"] = MARKER
        full = {name: chance.choice(TEXTS) for name in schema.stream_names} | {"k": after["k"]}
        before = full if schema.replica_identity is ReplicaIdentity.FULL else {"k": after["k"], "v": None}
        event = {
            "before": None if op == "c" or (op == "u" and schema.key) else before,
            "after": None if op == "d" else after,
            "op": op,
        }
        if truncate and chance.random() < 0.1:
            event = {"before": None, "after": None, "op": "t"}
        lines.append(json.dumps(event, ensure_ascii=False, separators=(",", ":")))
    return "\n".join(lines).encode()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("left_out", [0.0, 0.5])
def test_rows_and_net_changes_agree(monkeypatch: pytest.MonkeyPatch, seed: int, keyed: bool, left_out: float) -> None:
    """Decode and shape the same events in both ways."""
    chance = random.Random(seed)
    identity = ReplicaIdentity.DEFAULT if keyed else ReplicaIdentity.FULL
    schema = _schema(("k",) if keyed else (), identity)
    version = TableVersion(schema, 1)
    data = _events(schema, chance, chance.randint(1, 60), truncate=seed % 2 == 0, left_out=left_out)
    decoder, shaper = decode.Decoder(MARKER), net.NetShaper()
    small = tiny.tiny_rows(schema, data, MARKER)
    assert small is not None
    small_net = list(shaper.shape(TableChanges(version, small)))
    monkeypatch.setattr(decode, "TINY_EVENTS", 0)
    monkeypatch.setattr(net, "TINY_ROWS", 0)
    large = decoder.rows(version, data)
    large_net = list(shaper.shape(TableChanges(version, large)))

    def plain(rows: pa.Table) -> list[dict[str, object]]:
        found = [{name: value for name, value in row.items() if name not in ("ord", "k0")} for row in rows.to_pylist()]
        return found

    assert plain(small) == plain(large)
    assert small.column_names == [name for name in large.column_names if name != "k0"]
    for one, other in zip(small_net, large_net, strict=True):
        assert (one.kind, one.truncate, one.partial) == (other.kind, other.truncate, other.partial)
        assert other.deletes or not one.deletes
        assert one.rows.schema.equals(other.rows.schema)
        assert sorted(map(str, plain(one.rows))) == sorted(map(str, plain(other.rows)))


def test_a_value_that_is_missing_is_never_taken_as_text() -> None:
    """An unchanged TOAST value stays as it is at the target."""
    schema = _schema(("k",), ReplicaIdentity.DEFAULT)
    line = json.dumps({"before": None, "after": {"k": "1", "Wei/rd ~": "x", "v": MARKER}, "op": "u"}).encode()
    rows = tiny.tiny_rows(schema, line, MARKER)
    assert rows is not None
    assert rows.column("x").to_pylist() == ["001"]
    assert rows.column("c2").to_pylist() == [None]
    assert decode.Decoder(MARKER).rows(TableVersion(schema, 1), line).column("x").to_pylist() == ["001"]


def test_a_changed_key_with_a_missing_value_goes_the_long_way() -> None:
    """Debezium sends it as a delete and a create, which belong together."""
    schema = _schema(("k",), ReplicaIdentity.DEFAULT)
    gone = {"before": {"k": "1"}, "after": None, "op": "d"}
    come = {"before": None, "after": {"k": "2", "Wei/rd ~": "x", "v": MARKER}, "op": "c"}
    data = "\n".join(map(json.dumps, (gone, come))).encode()
    assert tiny.tiny_rows(schema, data, MARKER) is None
    assert decode.Decoder(MARKER).rows(TableVersion(schema, 1), data).column("op").to_pylist() == ["m"]


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
    assert list(tmp_path.iterdir()) == []


def test_threads_decode_side_by_side() -> None:
    """The reader decodes small batches while appliers decode large ones; each gets the rows of its own table."""
    decoder = decode.Decoder(MARKER)
    count = tiny.TINY_EVENTS + 50
    wrong: list[str] = []

    def work(name: str) -> None:
        columns = (Column("k", "text", "text"), Column("v", "text", "text"))
        schema = TableSchema(TableId("public", name), columns, ("k",), ("k",), ReplicaIdentity.DEFAULT)
        lines = [json.dumps({"before": None, "after": {"k": str(n), "v": name}, "op": "c"}) for n in range(count)]
        data = "\n".join(lines).encode()
        for _ in range(40):
            try:
                found = decoder.rows(TableVersion(schema, 1), data).column("c1").to_pylist()
            except Exception as error:
                wrong.append(repr(error))
                return
            if found != [name] * count:
                wrong.append(f"{name}: rows of another table, or not all")

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
